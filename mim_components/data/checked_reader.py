"""MONAI reader on the project's own reading of files: checks, training and inference read the same voxels.

Axes: scan (C, H, W, D), in the order of the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data import ImageReader
from monai.utils.enums import MetaKeys, SpaceKeys

from mim_components.data.find.sources import as_source
from mim_components.data.grids import grid_fault
from mim_components.data.read.headers import VolumeHeader
from mim_components.data.read.limits import MAX_VOXELS, check_extent
from mim_components.data.read.stored import scaled_parts
from mim_components.data.read.volume import cause_of, inspect_source, read_stored
from mim_components.data.volumes import BadVolume, BadVolumesError, VolumeError, VolumeSource


class CheckedReader(ImageReader):
    """Reads a scan to its last byte, verifies its checksums, and uses the affine of the checks; for `LoadImaged`.

    Formats: NIfTI, MetaImage, NRRD, and folders of one DICOM series. Several files are the channels of one scan, on one
    grid; a fourth axis of NIfTI becomes channels. Voxels are float32 `(C, H, W, D)`, scaled as stated in their file,
    and the affine maps voxel indices to RAS world in mm.

    Args:
        max_voxels: larger headers are refused.

    Raises:
        BadVolumesError: when a scan that cannot be read is loaded; names the file and the cause.

    Example:
        >>> from monai.transforms import LoadImaged
        >>> load = LoadImaged(["image", "label"], reader="mim_components.data.CheckedReader")
    """

    def __init__(self, max_voxels: int = MAX_VOXELS) -> None:
        super().__init__()
        self.max_voxels = max_voxels

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """True: the content of a file decides, not its name."""
        return True

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> tuple[PathLike, ...]:
        """The paths; files are opened in `get_data`, because after an error here `LoadImage` tries other readers."""
        return (data,) if isinstance(data, str) or not isinstance(data, Sequence) else tuple(data)

    def get_data(self, img: Sequence[PathLike]) -> tuple[np.ndarray, dict[str, Any]]:
        """Voxels and metadata of the files."""
        parts = [as_source(Path(path)) for path in img]
        headers = []
        for part in parts:
            try:
                headers.append(inspect_source(part, self.max_voxels, any_channels=True))
            except (VolumeError, OSError) as error:
                raise BadVolumesError([BadVolume(str(part), cause_of(error))], 1) from error
        try:
            voxels, affine = read_channels(parts, headers)
        except (VolumeError, OSError) as error:
            raise BadVolumesError([BadVolume(str(parts[0]), cause_of(error))], 1) from error
        return voxels, metadata(voxels, affine)


def read_channels(
    parts: Sequence[VolumeSource],
    headers: Sequence[VolumeHeader],
    check: Callable[[np.ndarray, tuple[float, float]], object] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Read the files of a scan: float32 `(C, H, W, D)`, and the 4x4 affine from voxel index to RAS world in mm.

    Args:
        parts: the files: one, or one per channel.
        headers: their headers, already checked.
        check: called with the stored voxels `(H, W, D)` and scale of every channel.

    Raises:
        VolumeError: damaged, refused by `check`, or the files do not lie on one grid; names the file after the first.
        OSError: a file cannot be read.
    """
    channels = sum(header.shape[3] if len(header.shape) == 4 else 1 for header in headers)
    voxels = np.empty((channels, *headers[0].shape[:3]), dtype=np.float32)
    affine, number = np.eye(4), 0
    for index, (part, header) in enumerate(zip(parts, headers, strict=True)):
        if header.shape[:3] != voxels.shape[1:]:
            raise VolumeError(f"{part.path.name}: shape {header.shape}, {parts[0].path.name} has {headers[0].shape}")
        raw, placed = read_stored(part, header, hashlib.sha256())
        check_extent(header.shape, placed)
        if index == 0:
            affine = placed
        elif fault := grid_fault(header.shape, affine, placed):
            raise VolumeError(f"{part.path.name}: {fault}")
        for channel in np.moveaxis(raw, 3, 0) if raw.ndim == 4 else [raw]:
            if check is not None:
                check(channel, header.scale)
            for where, values in scaled_parts(channel, header.scale):
                voxels[number][where] = values
            number += 1
    return voxels, affine


def metadata(voxels: np.ndarray, affine: np.ndarray) -> dict[str, Any]:
    """MONAI's metadata for voxels `(C, H, W, D)` with a 4x4 affine."""
    return {
        MetaKeys.AFFINE: affine,
        MetaKeys.ORIGINAL_AFFINE: affine.copy(),
        MetaKeys.SPATIAL_SHAPE: np.asarray(voxels.shape[1:]),
        MetaKeys.ORIGINAL_CHANNEL_DIM: 0,
        MetaKeys.SPACE: SpaceKeys.RAS,
    }
