"""Voxel values of an image or a label map, examined a few slices at a time."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

import nibabel as nib
import numpy as np

from mim_components.data.read.limits import check_range
from mim_components.data.read.stored import scaled_parts
from mim_components.data.volumes import VolumeError

_OFFSET = 2**15
_PART = 2**22  # voxels copied at a time
# a label map has fewer distinct values than this, an image more
MANY_VALUES = 64


@dataclass
class LabelValues:
    """Values of a label map.

    Attributes:
        counts: number of voxels of every whole number.
        fractions: number of voxels with values that are not whole.
        example: one such value.
        unfit: number of voxels that are NaN or infinite.
    """

    counts: Counter[int] = field(default_factory=Counter)
    fractions: int = 0
    example: float = 0.0
    unfit: int = 0

    @property
    def like_image(self) -> bool:
        """Whether there are as many values as in an image."""
        return len(self.counts) > MANY_VALUES or self.fractions > sum(self.counts.values())


def count_labels(raw: np.ndarray, scale: tuple[float, float]) -> LabelValues:
    """Count the values of a label map `(H, W, D)`, read as float32."""
    values = LabelValues()
    for _, part in scaled_parts(raw, scale):
        whole = part.ravel("K")
        if whole.dtype.kind == "f":
            whole = _whole_numbers(whole.astype(np.float32), values)
        # most maps fit into 16 bits, where counting is fast
        small = (whole >= -_OFFSET) & (whole < _OFFSET)
        if not small.all():
            values.counts.update(dict(zip(*_unique(whole[~small]), strict=True)))
            whole = whole[small]
        found = np.bincount(whole.astype(np.int32) + _OFFSET, minlength=1)
        values.counts.update({int(index) - _OFFSET: int(found[index]) for index in np.flatnonzero(found)})
    return values


def check_channel(raw: np.ndarray, scale: tuple[float, float]) -> tuple[float, float]:
    """Lowest and highest intensity of a channel `(H, W, D)`.

    Raises:
        VolumeError: NaN or infinite voxels, or intensities that only a damaged file holds.
    """
    low, high, unfit = np.inf, -np.inf, 0
    for _, part in scaled_parts(raw, scale):
        if part.dtype.kind == "f":
            unfit += part.size - int(np.count_nonzero(np.isfinite(part)))
        low, high = min(low, float(part.min())), max(high, float(part.max()))
    if unfit:
        raise VolumeError(f"NaN or infinite values in {unfit:,} of {raw.size:,} voxels")
    check_range(low, high)
    return low, high


def in_ras_order(voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """A view `(R, A, S)` of voxels `(H, W, D)` whose 4x4 affine leads to RAS."""
    return nib.orientations.apply_orientation(voxels, nib.orientations.io_orientation(affine))


def hash_voxels(voxels: np.ndarray, digest: hashlib._Hash) -> None:
    """Add the voxels to a digest, the first axis fastest; only a few slices are copied at a time."""
    step = max(_PART // (voxels.shape[0] * voxels.shape[1]), 1)
    for z in range(0, voxels.shape[2], step):
        digest.update(voxels[..., z : z + step].ravel("F").view(np.uint8).data)


def holds_only(raw: np.ndarray, scale: tuple[float, float], values: Collection[int]) -> bool:
    """Whether all voxels `(H, W, D)` are among the given values."""
    wanted = np.array(sorted(values))
    for _, part in scaled_parts(raw, scale):
        # images usually exceed the range of label values, so two comparisons suffice
        if not (part.min() >= wanted[0] and part.max() <= wanted[-1] and np.isin(part, wanted).all()):
            return False
    return True


def _whole_numbers(part: np.ndarray, values: LabelValues) -> np.ndarray:
    finite = np.isfinite(part)
    values.unfit += part.size - int(np.count_nonzero(finite))
    part = part[finite]
    whole = np.rint(part)
    broken = whole != part
    if broken.any():
        values.fractions += int(np.count_nonzero(broken))
        values.example = float(part[broken][0])
    return whole[~broken]


def _unique(values: np.ndarray) -> tuple[list[int], list[int]]:
    found, counts = np.unique(values, return_counts=True)
    return [int(value) for value in found], [int(count) for count in counts]
