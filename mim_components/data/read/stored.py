"""Voxels as stored in a file, to int16: HU of a CT, or per mille of the range between two percentiles of an MR.

A part at a time: a whole volume as float64 would not fit into memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mim_components.data.read.limits import check_constant, check_intensities, check_mr_intensities, check_range
from mim_components.data.volumes import VolumeError
from mim_components.transforms.intensity import MR_RANGE, PERCENTILES

_INT16 = np.iinfo(np.int16)
_PART = 2**22  # voxels scaled at a time
_COUNTED = 2**16


def scaled_parts(
    raw: np.ndarray, scale: tuple[float, float]
) -> Iterator[tuple[tuple[slice, slice, slice], np.ndarray]]:
    """A few slices at a time, float64 if floats or a scale are stored.

    Args:
        raw: stored voxels (H, W, D).
        scale: slope and intercept to apply.
    """
    step = max(_PART // (raw.shape[0] * raw.shape[1]), 1)
    for z in range(0, raw.shape[2], step):
        part = (slice(None), slice(None), slice(z, z + step))
        values = raw[part]
        if scale != (1.0, 0.0) or values.dtype.kind == "f":
            with np.errstate(over="ignore", invalid="ignore"):
                values = values.astype(np.float64) * scale[0] + scale[1]
        yield part, values


def to_int16(raw: np.ndarray, scale: tuple[float, float]) -> tuple[np.ndarray, list[str], int]:
    """Scale to HU, check and round; returns voxels int16 `(H, W, D)`, notes, and the number of different values.

    Args:
        raw: stored voxels (H, W, D).
        scale: slope and intercept from stored value to HU.

    Raises:
        VolumeError: not finite, or no CT in HU.
    """
    total = raw.size
    if not any(raw.strides):
        raw = raw[:1, :1, :1]  # all are equal, see `read_stored`, so one is enough
    voxels = np.empty(raw.shape, dtype=np.int16, order="F")
    histogram = np.zeros(2**16, dtype=np.int64)
    low, high, clipped, unfit, whole = np.inf, -np.inf, 0, 0, True
    for part, values in scaled_parts(raw, scale):
        if values.dtype.kind == "f":
            finite = np.isfinite(values)
            if not finite.all():
                unfit += int((~finite).sum())
                continue
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        if values.dtype != np.int16:
            clipped += int(np.count_nonzero((values < _INT16.min) | (values > _INT16.max)))
            rounded = np.rint(values)
            whole = whole and np.array_equal(values, rounded)
            values = np.clip(rounded, _INT16.min, _INT16.max)
        voxels[part] = values
        histogram += np.bincount((voxels[part].ravel("K").astype(np.int32) + 32768), minlength=2**16)
    if unfit:
        raise VolumeError(f"NaN or infinite values in {unfit * (total // raw.size):,} of {total:,} voxels")
    return voxels, check_intensities(histogram, low, high, clipped, whole), int(np.count_nonzero(histogram))


def to_per_mille(
    raw: np.ndarray, scale: tuple[float, float]
) -> tuple[np.ndarray, list[str], int, tuple[float, float]]:  # fmt: skip
    """Scale an MR volume to 0 to 1000, check and round.

    MONAI's `ScaleIntensityRangePercentiles(0.5, 99.5, 0, 1000, clip=True)` gives the same except for the rounding.

    Args:
        raw: stored voxels (H, W, D).
        scale: slope and intercept from stored value to intensity.

    Returns:
        Voxels int16 `(H, W, D)`; notes; the least number of different intensities; and the intensities that became 0
        and 1000.

    Raises:
        VolumeError: not finite, constant between the percentiles, a label map, or no intensities.

    Example:
        >>> raw = np.arange(1001, dtype=np.int16).reshape(7, 11, 13)  # percentiles 5 and 995
        >>> voxels, notes, count, window = to_per_mille(raw, (1.0, 0.0))
        >>> voxels.ravel()[[0, 5, 500, 995, 1000]].tolist(), count, window
        ([0, 0, 500, 1000, 1000], 1001, (5.0, 995.0))
    """
    low, high, count, whole = _span(raw, scale)
    check_range(low, high)
    check_constant(low, high)  # percentiles of a large volume take memory and time
    with np.errstate(over="ignore", invalid="ignore"):
        window = np.sort(np.percentile(raw, PERCENTILES).astype(np.float64) * scale[0] + scale[1])  # a slope may be < 0
    first, last = float(window[0]), float(window[1])
    notes = check_mr_intensities(low, high, first, last, count, whole)
    voxels = np.empty(raw.shape, dtype=np.int16, order="F")
    for part, values in scaled_parts(raw, scale):
        share = (values.astype(np.float64) - first) / (last - first)
        voxels[part] = np.rint(np.clip(share, 0, 1) * MR_RANGE[1])
    return voxels, notes, count, (first, last)


def _span(raw: np.ndarray, scale: tuple[float, float]) -> tuple[float, float, int, bool]:
    """Lowest and highest; number of different ones, 2^16 if beyond 16 bits or not whole; whether all are whole."""
    total = raw.size
    if not any(raw.strides):
        raw = raw[:1, :1, :1]  # as in `to_int16`
    low, high, unfit, whole = np.inf, -np.inf, 0, True
    seen = np.zeros(_COUNTED, dtype=bool)
    for _, values in scaled_parts(raw, scale):
        if values.dtype.kind == "f":
            unfit += values.size - int(np.count_nonzero(np.isfinite(values)))
            whole = whole and not unfit and np.array_equal(values, np.rint(values))
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        if whole and low >= 0 and high < _COUNTED:
            seen |= np.bincount(values.ravel("K").astype(np.int64), minlength=_COUNTED) > 0
    if unfit:
        raise VolumeError(f"NaN or infinite values in {unfit * (total // raw.size):,} of {total:,} voxels")
    counted = whole and low >= 0 and high < _COUNTED
    return low, high, int(np.count_nonzero(seen)) if counted else _COUNTED, whole
