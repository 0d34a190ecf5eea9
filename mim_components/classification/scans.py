"""Read a scan as an 8-bit volume: a folder of slices, or CT in HU through a window.

Axes of a volume: (H, W, D) as in RAS, so that axis 0 grows to the patient's right and axis 1 to anterior, given slices
that are shown as viewers do. Axis 2 is the order of the slices: in a folder of pictures nothing says which end is up.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from monai.transforms import SpatialPad

from mim_components.data.read.slices import is_slice, read_slices
from mim_components.data.read.volume import load_volume
from mim_components.data.volumes import VolumeError
from mim_components.transforms.intensity import window_to_grey

HU_ADVICE = "for CT in HU set --hu_window '[low,high]', the HU that become black and white"


def read_scan(path: str | Path, hu_window: Sequence[float] | None = None) -> np.ndarray:
    """Read a folder of slices, or with `hu_window` a CT volume (NIfTI, MetaImage, NRRD, DICOM series).

    Args:
        path: folder of the slices or of a DICOM series, or a volume file.
        hu_window: HU that become 0 and 255.

    Returns:
        uint8 (H, W, D).

    Raises:
        VolumeError: a slice cannot be used, or there are none; names the slice.
        BadVolumesError: a CT volume cannot be used.
    """
    path = Path(path)
    if hu_window is not None and not holds_slices(path):
        voxels, _ = load_volume(path)
        return hu_to_8_bit(voxels, hu_window)
    if path.is_file():
        raise VolumeError(f"is a file, expected a folder of slices; {HU_ADVICE}")
    return stack_slices(read_slices(path))


def holds_slices(path: Path) -> bool:
    """Whether slices lie in the folder itself."""
    return path.is_dir() and any(is_slice(each.name) for each in path.iterdir())


def stack_slices(slices: Sequence[np.ndarray]) -> np.ndarray:
    """Make a volume of pictures; those that are smaller than the largest are padded with 0 around their centre.

    Slices are not resized: pictures of one scan that differ in size are cut or padded copies of one matrix.

    Args:
        slices: uint8 (rows, columns) each, row 0 anterior, column 0 the patient's right.

    Returns:
        uint8 (H, W, D) = (columns, rows, slices).

    Example:
        >>> picture = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8)  # 1 is right anterior, 6 is left posterior
        >>> stack_slices([picture])[..., 0].tolist()
        [[6, 3], [5, 2], [4, 1]]
    """
    size = np.max([each.shape for each in slices], axis=0)
    if any(each.shape != tuple(size) for each in slices):
        pad = SpatialPad(size)
        slices = [np.asarray(pad(torch.from_numpy(each[None])))[0] for each in slices]
    return np.ascontiguousarray(np.stack([each.T[::-1, ::-1] for each in slices], axis=-1))


def hu_to_8_bit(voxels: np.ndarray, window: Sequence[float]) -> np.ndarray:
    """HU to 0 ... 255 through a window.

    Example:
        >>> hu_to_8_bit(np.array([-2000, -1000, -500, 0, 400]), (-1000.0, 0.0)).tolist()
        [0, 0, 128, 255, 255]
    """
    low, high = window
    return np.rint(255 * window_to_grey(voxels, (low, high))).astype(np.uint8)
