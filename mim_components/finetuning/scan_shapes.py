"""How large the scans of a validation will be, from their headers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mim_components.data.read.headers import read_header
from mim_components.data.volumes import VolumeError, VolumeSource


def resampled_shapes(
    items: Sequence[Mapping[str, Any]], spacing: Sequence[float], channels: int
) -> list[tuple[int, int]]:
    """Channels and voxels of scans after they are resampled; at most, since the foreground may be cut out.

    Args:
        items: of prepared cases; of several files of an image the first counts.
        spacing: they are resampled to, mm.
        channels: of image and label together.

    Returns:
        `(channels, voxels)` of every scan whose header can still be read; who loads another names it.
    """
    shapes = []
    for item in items:
        files = item["image"] if isinstance(item["image"], list) else [item["image"]]
        path = Path(files[0])
        try:
            header = read_header(VolumeSource(path, (path,)))
        except (VolumeError, OSError):
            continue
        voxel = math.prod(spacing) if header.affine is None else abs(np.linalg.det(header.affine[:3, :3]))
        shapes.append((channels, math.ceil(math.prod(header.shape[:3]) * voxel / math.prod(spacing))))
    return shapes
