"""Bring a volume to the grid of another by nearest voxels, without a map of coordinates.

Axes: volume (C, H, W, D); affines are 4x4, voxel index to world in mm.
"""

from __future__ import annotations

import torch
from monai.data import MetaTensor
from monai.transforms import ResampleToMatch
from torch import Tensor

from mim_components.utils.tensors import without_meta

TOLERANCE = 0.01  # of a voxel, by which an index along one axis may depend on the others


def nearest_on_grid(volume: Tensor, affine: Tensor, target: MetaTensor) -> Tensor:
    """The nearest voxel of a volume at every voxel of a target; beyond its faces its outermost voxels.

    Where the axes of both are parallel, as after resampling to a spacing, indices are looked up axis by axis, which
    needs no memory but for the result. MONAI's `ResampleToMatch` needs about 59 bytes per voxel.

    Args:
        volume: `(C, H, W, D)`.
        affine: its affine.
        target: volume on the wanted grid.

    Returns:
        `(C, *target.shape[1:])` of the type of `volume`, on its device.

    Example:
        >>> target = MetaTensor(torch.zeros(1, 6, 1, 1), affine=torch.eye(4))
        >>> pairs = torch.diag(torch.tensor([2.0, 1.0, 1.0, 1.0]))  # voxels of 2 mm, whose centres lie at 0.5, 2.5, 4.5
        >>> pairs[0, 3] = 0.5
        >>> nearest_on_grid(torch.tensor([7, 8, 9]).view(1, 3, 1, 1), pairs, target).flatten().tolist()
        [7, 7, 8, 8, 9, 9]
    """
    to_volume = torch.linalg.solve(affine.double().cpu(), target.affine.double().cpu())
    sides = torch.tensor(target.shape[1:], dtype=torch.float64)
    steps = to_volume[:3, :3].diagonal()
    if float(((to_volume[:3, :3] - torch.diag(steps)).abs() * sides).max()) > TOLERANCE:
        placed = MetaTensor(volume, affine=affine)
        return without_meta(ResampleToMatch(mode="nearest")(placed, target)).to(volume.dtype)
    for axis, (step, start) in enumerate(zip(steps, to_volume[:3, 3], strict=True), 1):
        places = (step * torch.arange(target.shape[axis]) + start).round().long()
        volume = volume.index_select(axis, places.clamp(0, volume.shape[axis] - 1).to(volume.device))
    return volume
