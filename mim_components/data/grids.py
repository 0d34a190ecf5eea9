"""Check whether two files lie on one grid: the same shape at the same position."""

from __future__ import annotations

from itertools import product

import nibabel as nib
import numpy as np

from mim_components.data.volumes import per_axis

# of a voxel's shortest edge; rounding in headers is far below, a shift by one voxel or a mirrored axis far above
TOLERANCE = 0.05


def grid_fault(shape: tuple[int, ...], affine: np.ndarray, other: np.ndarray) -> str:
    """How the second grid differs from the first at the corners of the volume; "" if it does not.

    Args:
        shape: shape (H, W, D) of both.
        affine: affine of the first, 4x4, voxel index to world in mm.
        other: affine of the second.

    Example:
        >>> moved = np.eye(4)
        >>> moved[:3, 3] = 0, 0, 2
        >>> grid_fault((4, 4, 4), np.eye(4), moved)
        'its position differs by 0 x 0 x 2 mm'
        >>> grid_fault((4, 4, 4), np.eye(4), np.diag([1, 1, 1.5, 1]))
        'its spacing is 1 x 1 x 1.5 mm, expected 1 x 1 x 1'
    """
    corners = np.array([(*corner, 1) for corner in product(*((0, length - 1) for length in shape))], dtype=np.float64)
    spacing = nib.affines.voxel_sizes(affine)
    distance = np.linalg.norm((corners @ (other - affine).T)[:, :3], axis=1).max()
    if distance <= TOLERANCE * spacing.min():
        return ""
    other_spacing = nib.affines.voxel_sizes(other)
    if not np.allclose(spacing, other_spacing, rtol=1e-3):
        return f"its spacing is {per_axis(other_spacing, 4)} mm, expected {per_axis(spacing, 4)}"
    axes, other_axes = ("".join(nib.aff2axcodes(each)) for each in (affine, other))
    if axes != other_axes:
        return f"its axes are {other_axes}, expected {axes} (mirrored or turned)"
    if np.allclose(affine[:3, :3], other[:3, :3], atol=1e-3 * spacing.min()):
        return f"its position differs by {per_axis(np.abs(other - affine)[:3, 3], 4)} mm"
    return f"it is turned: its corners are up to {distance:.3g} mm away"
