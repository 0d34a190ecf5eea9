"""Resampling a stack of slices to a fixed number, and its in-plane size."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Resize, Transform
from torch import Tensor

from mim_components.utils.tensors import without_meta


class UniformSlices(Transform):
    """Take equally spaced slices, including the first and the last; interpolate if there are too few.

    Slice k of K, counted from 0, is taken at `k * (D - 1) / (K - 1)`: the nearest slice if D >= K, else interpolated.

    Args:
        num_slices: number of slices K, at least 2.

    Returns:
        When called on `(C, H, W, D)`, `(C, H, W, K)` of the same type.

    Raises:
        ValueError: `num_slices` is below 2.

    Example:
        >>> ramp = torch.arange(0, 70, 10, dtype=torch.uint8).view(1, 1, 1, 7)
        >>> UniformSlices(4)(ramp).flatten().tolist(), UniformSlices(3)(ramp[..., :2]).flatten().tolist()
        ([0, 20, 40, 60], [0, 5, 10])
    """

    def __init__(self, num_slices: int) -> None:
        if num_slices < 2:
            raise ValueError(f"num_slices must be at least 2, got {num_slices}.")
        self.num_slices = num_slices

    def __call__(self, volume: Tensor) -> Tensor:
        """Sample one volume."""
        volume = without_meta(volume)
        depth = volume.shape[-1]
        if depth >= self.num_slices:
            positions = np.linspace(0, depth - 1, self.num_slices)
            return volume[..., np.floor(positions + 0.5).astype(int)]
        size = (*volume.shape[1:3], self.num_slices)
        between = Resize(size, mode="trilinear", align_corners=True)(volume)
        assert isinstance(between, Tensor)
        return torch.as_tensor(between).round().to(volume.dtype)


class UniformSlicesd(MapTransform):
    """Dictionary version of `UniformSlices`.

    Args:
        keys: items `(C, H, W, D)`.
        num_slices: slices to take, or the size (height, width, slices) of the network's input.

    Example:
        >>> scan = torch.arange(8).view(1, 1, 1, 8)
        >>> UniformSlicesd("image", num_slices=2)({"image": scan})["image"].flatten().tolist()
        [0, 7]
    """

    def __init__(self, keys: KeysCollection, num_slices: int | Sequence[int]) -> None:
        super().__init__(keys)
        self.sample = UniformSlices(num_slices if isinstance(num_slices, int) else num_slices[-1])

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Sample the volumes."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self.sample(out[key])
        return out


def in_plane_size(size: Sequence[int], margin: int = 0) -> list[int]:
    """Spatial size for a crop or padding that keeps the number of slices.

    Args:
        size: height, width and slices of the network's input.
        margin: voxels to add on each in-plane side.

    Example:
        >>> in_plane_size([192, 192, 64]), in_plane_size([192, 192, 64], margin=6)
        ([192, 192, -1], [204, 204, -1])
    """
    return [side + 2 * margin for side in size[:2]] + [-1]
