"""Resize volumes and scale a window of intensities to [0, 1].

Both modes of resizing are weighted means along one axis after the other, with weights that add up to 1. So scaling may
come last: the voxels of a large crop stay integers, as stored, and only the few that are left are scaled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

RESIZE_MODES = ("area", "trilinear")

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_SUMS = (torch.int16, torch.int32, torch.int64)
_SLAB = 2**21  # voxels processed at once: few enough to stay in a processor's cache


def resize_volumes(
    volumes: Tensor,
    size: Sequence[int],
    mode: str = "area",
    window: Sequence[float] | None = None,
    padding: Sequence[int] = (0, 0, 0, 0, 0, 0),
) -> Tensor:
    """Resize `(V, C, H, W, D)` to `(V, C, *size)`, a new float32 tensor.

    Args:
        volumes: `(V, C, H, W, D)` of any real type.
        size: wanted size, voxels.
        mode: "area" averages along axes that shrink (exact where the factor is an integer) and interpolates along axes
            that grow; "trilinear" interpolates both ways, which aliases when it shrinks by more than 2.
        window: intensities that become 0 and 1; voxels are clipped to them before the resize. None = unscaled.
        padding: voxels added first, with the value that becomes 0, in PyTorch's order: before and after along D,
            then W, then H. The padded volumes are never in memory as a whole.
    """
    have = [n + sum(padding[4 - 2 * axis : 6 - 2 * axis]) for axis, n in enumerate(volumes.shape[2:])]
    factor = [n // m if mode == "area" and n % m == 0 else 1 for n, m in zip(have, size, strict=True)]
    out = _block_means(volumes, have, factor, window, padding)
    sizes = {axis: (out.shape[axis], size[axis - 2]) for axis in (2, 3, 4)}
    # slices along H are contiguous in memory: shrinking begins there, growing ends there
    shrinking = [axis for axis, (old, new) in sizes.items() if new < old]
    growing = [axis for axis, (old, new) in reversed(sizes.items()) if new > old]
    for axis in shrinking + growing:
        out = _resize_axis(out, axis, size[axis - 2], mode)
    return out


def _block_means(
    volumes: Tensor, have: Sequence[int], factor: Sequence[int], window: Sequence[float] | None, padding: Sequence[int]
) -> Tensor:
    """Means over blocks of `factor` of `have` padded voxels, clipped to the window and scaled, in slabs along H."""
    exact = _integer_range(volumes.dtype, factor, window)
    limits = exact if exact and window else window
    bound = max(map(abs, exact)) if exact else 0
    shape = [n // f for n, f in zip(have, factor, strict=True)]
    out = _empty((*volumes.shape[:2], *shape), volumes.device)
    rows = max(_SLAB * shape[0] // (math.prod(volumes.shape[:2]) * math.prod(have)), 1) * factor[0]
    for first in range(0, have[0], rows):
        count = min(rows, have[0] - first)
        begin = first - padding[4]  # in the volumes
        slab = volumes[:, :, max(begin, 0) : max(begin + count, 0)]
        slab = slab if exact else slab.float()
        slab = slab if limits is None else slab.clamp(*limits)
        if any(padding):
            before = min(max(-begin, 0), count)
            added = (*padding[:4], before, count - before - slab.shape[2])
            slab = F.pad(slab, added, value=0 if limits is None else limits[0])
        mean = out[:, :, first // factor[0] : (first + count) // factor[0]]
        mean.copy_(_block_sums(slab, factor, bound))
        mean /= math.prod(factor)
        if window is not None:
            mean.sub_(window[0]).div_(window[1] - window[0])
    return out


def _integer_range(
    dtype: torch.dtype, factor: Sequence[int], window: Sequence[float] | None
) -> tuple[int, int] | None:  # fmt: skip
    """Smallest and largest clipped voxel if clipping and summing are exact in integers, else None."""
    if dtype not in _INTEGERS:
        return None
    low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    if window is not None:
        if not all(float(end).is_integer() and low <= end <= high for end in window):
            return None
        low, high = (int(end) for end in window)
    return (low, high) if max(-low, high) * math.prod(factor) <= torch.iinfo(_SUMS[-1]).max else None


def _block_sums(voxels: Tensor, factor: Sequence[int], bound: int) -> Tensor:
    """Sums over blocks; integers of magnitude up to `bound` use the smallest type that holds the sum so far."""
    for axis, edge in enumerate(factor, start=2):
        if edge > 1:
            bound *= edge
            if not voxels.is_floating_point():
                voxels = voxels.to(next(dtype for dtype in _SUMS if bound <= torch.iinfo(dtype).max))
            first, second, *others = voxels.unflatten(axis, (-1, edge)).unbind(axis + 1)
            voxels = first + second
            for other in others:
                voxels += other
    return voxels


def _resize_axis(volumes: Tensor, axis: int, wanted: int, mode: str) -> Tensor:
    have = volumes.shape[axis]
    weights = _weights(have, wanted, "area" if mode == "area" and wanted < have else "linear")
    return weighted_means(volumes, axis, weights)


def weighted_means(volumes: Tensor, axis: int, weights: Sequence[Sequence[tuple[int, float]]]) -> Tensor:
    """Weighted means along one axis, slice by slice: several times faster than PyTorch's trilinear resize.

    Args:
        volumes: float32, any shape.
        axis: axis to resize.
        weights: for each new voxel the old voxels that it is a mean of, and their weights.
    """
    shape = volumes.shape
    out = _empty((*shape[:axis], len(weights), *shape[axis + 1 :]), volumes.device)
    for mean, ((first, weight), *others) in zip(out.unbind(axis), weights, strict=True):
        torch.mul(volumes.select(axis, first), weight, out=mean)
        for voxel, weight in others:
            mean.add_(volumes.select(axis, voxel), alpha=weight)
    return out


@lru_cache
def _weights(have: int, wanted: int, mode: str) -> list[list[tuple[int, float]]]:
    """For each of `wanted` new voxels, the old voxels that it averages, and their weights."""
    each = torch.eye(have)[None]  # one channel per voxel
    weights = F.interpolate(each, wanted, mode=mode)[0].T
    return [[(int(voxel), float(row[voxel])) for voxel in row.nonzero()[:, 0]] for row in weights]


def _empty(shape: Sequence[int], device: torch.device) -> Tensor:
    # NumPy requests huge pages: page faults of a large new tensor take longer than computing it
    if device.type == "cpu":
        return torch.from_numpy(np.empty(shape, dtype=np.float32))
    return torch.empty(tuple(shape), device=device)
