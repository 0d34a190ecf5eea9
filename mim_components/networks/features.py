"""Feature maps of whole volumes: windows that begin at token edges, and the position of a feature in space.

Axes: volume (B, C, H, W, D); feature map (B, E, h, w, d), one feature per block of `stride`^3 voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from mim_components.networks.hybrid import HybridEncoder
from mim_components.networks.vit import ViTEncoder


class FeatureMap(nn.Module):
    """One map of an encoder's pyramid.

    Args:
        encoder: `HybridEncoder` or `ViTEncoder`.
        level: index in the pyramid: 0 is the finest, -1 the last.

    Raises:
        ValueError: `level` is out of range.

    Example:
        >>> import torch
        >>> from mim_components.networks import HybridEncoder
        >>> FeatureMap(HybridEncoder(preset="nano"), level=0)(torch.zeros(1, 1, 32, 32, 32)).shape
        torch.Size([1, 8, 16, 16, 16])
    """

    def __init__(self, encoder: HybridEncoder | ViTEncoder, level: int = -1) -> None:
        super().__init__()
        count = len(encoder.channels)
        if not -count <= level < count:
            raise ValueError(f"feature_level must be between {-count} and {count - 1}, got {level}.")
        self.encoder = encoder
        self.level = level

    def forward(self, image: Tensor) -> Tensor:
        """Encode `(B, C, H, W, D)`, sides divisible by the patch size, to `(B, E, h, w, d)`."""
        return self.encoder(image)[self.level].to(image.dtype)


def window_overlap(input_size: Sequence[int], patch_size: int, overlap: float) -> tuple[float, ...]:
    """Largest overlap per axis, up to `overlap`, with which MONAI's sliding windows begin at token edges.

    Otherwise the maps of two windows would not lie on one grid, and stitching would shift them.

    Args:
        input_size: size of a window, voxels.
        patch_size: edge of a token, voxels.
        overlap: wanted share of a window, in [0, 1).

    Raises:
        ValueError: `overlap` is not in [0, 1).

    Example:
        >>> [int(96 * (1 - each)) for each in window_overlap((96, 96, 96), 16, 0.25)]
        [80, 80, 80]
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must be in [0, 1), got {overlap}.")
    steps = [min(math.ceil(side * (1 - overlap) / patch_size) * patch_size, side) for side in input_size]
    # half a voxel more: MONAI takes the integer part of side * (1 - overlap), and 31.999 would become 31
    return tuple(max(side - step - 0.5, 0.0) / side for side, step in zip(input_size, steps, strict=True))


def pad_to_windows(
    image: Tensor, input_size: Sequence[int], multiple: Sequence[int], mode: str = "constant"
) -> Tensor:  # fmt: skip
    """Append zeros (air) to `(B, C, H, W, D)` until every side is at least `input_size` and divisible by `multiple`.

    Nothing is prepended, so voxel indices do not change. With `mode` "replicate" the last voxels are repeated instead.
    """
    wanted = [
        max(math.ceil(have / step) * step, least)
        for have, least, step in zip(image.shape[2:], input_size, multiple, strict=True)
    ]
    missing = [want - have for want, have in zip(wanted, image.shape[2:], strict=True)]
    return F.pad(image, [0, missing[2], 0, missing[1], 0, missing[0]], mode=mode)


def feature_affine(affine: np.ndarray, stride: int) -> np.ndarray:
    """Affine 4x4 from feature index to world in mm: a feature lies at the centre of its block of `stride`^3 voxels.

    Args:
        affine: 4x4, voxel index to world in mm; integer indices are voxel centres.
        stride: edge of a block, voxels.

    Example:
        >>> feature_affine(np.eye(4), 16)[:3].tolist()
        [[16.0, 0.0, 0.0, 7.5], [0.0, 16.0, 0.0, 7.5], [0.0, 0.0, 16.0, 7.5]]
    """
    to_voxel = np.diag([stride, stride, stride, 1.0])
    to_voxel[:3, 3] = (stride - 1) / 2
    return np.asarray(affine, dtype=np.float64) @ to_voxel
