"""Resample a volume to another spacing without aliasing.

MONAI's `Spacing` and `ResampleToMatch` interpolate at points: for voxels four times as long they read one or two of
four and ignore the others. Here every axis that shrinks is averaged by area, and every axis that grows is
interpolated. The outer edges, and with them the field of view, stay.

Axes: (H, W, D) = (R, A, S). Spacing is mm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import nibabel as nib
import numpy as np
import torch

from mim_components.data.volumes import DataError, per_axis
from mim_components.transforms.resize import weighted_means

Spacing = tuple[float, float, float]
Weights = list[list[tuple[int, float]]]

_SLAB = 2**24  # voxels processed at once, as float32


def as_spacing(spacing: object) -> Spacing | None:
    """Convert to three positive floats; None = native voxels.

    Raises:
        DataError: anything else.
    """
    if spacing is None:
        return None
    if isinstance(spacing, Sequence) and len(spacing) == 3 and all(_is_length(each) for each in spacing):
        r, a, s = (float(each) for each in spacing)
        return r, a, s
    raise DataError(
        "spacing must be three positive numbers, mm along R, A and S, such as [1.5,1.5,2], or null for native voxels; "
        f"got {spacing!r}."
    )


def _is_length(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def resampled_shape(
    shape: Sequence[int], affine: np.ndarray, spacing: Spacing, max_voxels: int
) -> tuple[int, int, int]:  # fmt: skip
    """Shape (H, W, D) in RAS of a volume after resampling: n * old / new voxels along each axis, halves round up.

    Args:
        shape: shape of the volume as stored.
        affine: 4x4, voxel index to RAS world in mm; oblique axes count as the nearest of R, A and S.
        spacing: target spacing, mm.
        max_voxels: largest number of voxels accepted.

    Raises:
        DataError: less than half a voxel along an axis, or too many voxels. It is not a `VolumeError`: the volume is
            fit for another spacing.
    """
    order = np.argsort(nib.io_orientation(affine)[:, 0])
    have = [int(shape[axis]) for axis in order]
    steps = nib.affines.voxel_sizes(affine)[order]
    exact = [n * old / new for n, old, new in zip(have, steps, spacing, strict=True)]
    h, w, d = (math.floor(n + 0.5) for n in exact)
    what = f"{per_axis(have)} voxels of {per_axis(steps)} mm, resampled to {per_axis(spacing)} mm,"
    if min(h, w, d) < 1:
        axis = "RAS"[[h, w, d].index(0)]
        raise DataError(f"{what} would be {min(exact):.2g} voxels along {axis}, expected at least 1; lower --spacing")
    if h * w * d > max_voxels:
        raise DataError(
            f"{what} would be {per_axis((h, w, d))} = {h * w * d:,} voxels, more than max_voxels={max_voxels:,}; "
            "raise --spacing"
        )
    return h, w, d


def resample(
    voxels: np.ndarray, affine: np.ndarray, spacing: Spacing, max_voxels: int
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Resample to the whole number of voxels nearest to a spacing.

    A longer new voxel is the mean of the old ones that it covers, weighted by the share that it covers of each; a
    shorter one is interpolated linearly between their centres. Direction and field of view stay.

    Args:
        voxels: int16 (H, W, D), RAS.
        affine: 4x4, voxel index to RAS world in mm.
        spacing: target spacing, mm along the axes of the volume.
        max_voxels: largest number of voxels accepted.

    Returns:
        int16 voxels, rounded to the nearest (ties to even), and their affine.

    Raises:
        DataError: see `resampled_shape`.

    Example:
        >>> row = np.array([0, 100, 200, 400], dtype=np.int16).reshape(4, 1, 1)
        >>> half, affine = resample(row, np.eye(4), (2.0, 1.0, 1.0), 100)
        >>> half.ravel().tolist(), affine[0].tolist()
        ([50, 300], [2.0, 0.0, 0.0, 0.5])
    """
    shape = resampled_shape(voxels.shape, affine, spacing, max_voxels)
    if shape == voxels.shape:
        return voxels, affine
    factors = np.array(voxels.shape) / shape
    moved = affine.astype(np.float64)
    moved[:3, :3] *= factors
    moved[:3, 3] += affine[:3, :3] @ ((factors - 1) / 2)  # centre of the first voxel; its edge stays
    return _resize(voxels, shape), moved


def _resize(voxels: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Resize in slabs along H, so that the volume is never in memory as floats."""
    have = voxels.shape
    weights = [axis_weights(old, new) for old, new in zip(have, shape, strict=True)]
    shrinking = [axis for axis in range(3) if shape[axis] < have[axis]]
    growing = [axis for axis in (2, 1, 0) if shape[axis] > have[axis]]
    row = max(have[1], shape[1]) * max(have[2], shape[2]) * max(have[0] / shape[0], 1.0)
    rows = max(int(_SLAB / row), 1)
    out = np.empty(shape, dtype=np.int16)
    for first in range(0, shape[0], rows):
        of_rows = weights[0][first : first + rows]
        begin, end = of_rows[0][0][0], of_rows[-1][-1][0] + 1
        of_slab = [[(voxel - begin, weight) for voxel, weight in each] for each in of_rows]
        slab = torch.from_numpy(voxels[begin:end]).float()
        for axis in shrinking + growing:
            slab = weighted_means(slab, axis, weights[axis] if axis else of_slab)
        out[first : first + rows] = slab.round_().numpy()  # means of int16 stay in its range
    return out


def axis_weights(have: int, wanted: int) -> Weights:
    """For each of `wanted` new voxels along an axis, the old voxels that it averages, and their weights.

    Example:
        >>> axis_weights(3, 2)  # each covers one and a half
        [[(0, 0.6666666666666666), (1, 0.3333333333333333)], [(1, 0.3333333333333333), (2, 0.6666666666666666)]]
        >>> axis_weights(1, 2)
        [[(0, 1.0)], [(0, 1.0)]]
    """
    return [_covered(j, have, wanted) if wanted <= have else _between(j, have, wanted) for j in range(wanted)]


def _covered(j: int, have: int, wanted: int) -> list[tuple[int, float]]:
    # in units of 1 / wanted of an old voxel, where all edges are integers
    low, high = j * have, (j + 1) * have
    voxels = range(low // wanted, -(-high // wanted))
    return [(v, (min(high, (v + 1) * wanted) - max(low, v * wanted)) / have) for v in voxels]


def _between(j: int, have: int, wanted: int) -> list[tuple[int, float]]:
    centre = min(max(((2 * j + 1) * have / wanted - 1) / 2, 0.0), have - 1.0)
    lower = math.floor(centre)
    weights = [(lower, lower + 1 - centre), (lower + 1, centre - lower)]
    return [(voxel, weight) for voxel, weight in weights if weight > 0]
