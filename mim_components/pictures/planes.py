"""The three planes as a radiologist sees them, and slice numbers.

Volumes are `(H, W, D)` in RAS: the index of axis 0 grows to the patient's right, of axis 1 to anterior, of axis 2 to
superior. A panel is the 2D array that is drawn, row 0 on top and column 0 on the left: `(up, across)`.
"""

from typing import NamedTuple

import numpy as np


class Plane(NamedTuple):
    """One viewing plane: the axis it cuts, the two it shows, and the letters at its four edges."""

    name: str
    axis: int  # cut by the plane
    across: int  # axis shown horizontally; its index grows to the left of the picture
    up: int  # axis shown vertically; its index grows upwards
    left: str
    right: str
    top: str
    bottom: str


PLANES = (
    Plane("axial", axis=2, across=0, up=1, left="R", right="L", top="A", bottom="P"),  # seen from the feet
    Plane("coronal", axis=1, across=0, up=2, left="R", right="L", top="S", bottom="I"),  # seen from the front
    Plane("sagittal", axis=0, across=1, up=2, left="A", right="P", top="S", bottom="I"),  # anterior on the left
)


def panel_of(volume: np.ndarray, plane: Plane, index: int) -> np.ndarray:
    """Cut one slice and turn it the way it is read.

    In all three planes the index of both shown axes grows towards the top left of the picture, so one flip serves all.

    Args:
        volume: `(H, W, D)` in RAS, any type.
        plane: which plane.
        index: voxel index along the axis that the plane cuts.

    Returns:
        `(up, across)`, row 0 on top and column 0 on the left.

    Example:
        >>> volume = np.zeros((2, 3, 4))
        >>> volume[1, 2, 3] = 7.0  # the right, anterior, superior corner
        >>> [panel_of(volume, plane, volume.shape[plane.axis] - 1)[0, 0].item() for plane in PLANES]
        [7.0, 7.0, 7.0]
    """
    return np.flip(volume.take(index, axis=plane.axis).T)


def native_slice(index: int, size: int, native_size: int, start: int = 0) -> int:
    """Voxel of the scan that holds the centre of a voxel of a resized volume, along one axis.

    Args:
        index: voxel of the resized volume, counted from 0.
        size: voxels of the resized volume.
        native_size: voxels of the scan that the resized volume covers.
        start: index in the scan of the first voxel covered.

    Returns:
        Voxel index in the scan, counted from 0.

    Example:
        >>> native_slice(20, size=96, native_size=384, start=10)  # covers voxels 80 to 83 of the volume, centre at 82.0
        92
    """
    return start + (2 * index + 1) * native_size // (2 * size)


def slice_text(number: int, scan_size: int | None = None) -> str:
    """What is written of a slice: its number, unless it lies beyond the scan, where there is padding.

    Args:
        number: voxel index in the scan, counted from 0.
        scan_size: voxels of the scan along this axis; None = not known.

    Example:
        >>> slice_text(78, 79), slice_text(80, 79), slice_text(-1)
        ('slice 78 of scan', 'padding outside the scan', 'padding outside the scan')
    """
    inside = number >= 0 and (scan_size is None or number < scan_size)
    return f"slice {number} of scan" if inside else "padding outside the scan"


def resized_slice(native_index: int, size: int, native_size: int) -> int:
    """Voxel of a resized volume that holds the centre of a native voxel, along one axis; inverse of `native_slice`.

    Args:
        native_index: native voxel, counted from 0 at the volume's first voxel.
        size: voxels of the resized volume.
        native_size: native voxels that the resized volume covers.

    Returns:
        Voxel index in the resized volume, counted from 0.

    Example:
        >>> resized_slice(82, size=96, native_size=384)
        20
    """
    return (2 * native_index + 1) * size // (2 * native_size)


def nearest_to_centre(centres: np.ndarray, middle: np.ndarray, preferred: np.ndarray) -> int:
    """Row of `centres` closest to `middle`, among the preferred rows if there are any; ties go to the first.

    Args:
        centres: `(K, 3)` points.
        middle: `(3,)` point in the same unit.
        preferred: bool `(K,)`.

    Returns:
        A row number.
    """
    distance = np.square(centres - middle).sum(-1)
    if preferred.any():
        distance = np.where(preferred, distance, np.inf)
    return int(distance.argmin())
