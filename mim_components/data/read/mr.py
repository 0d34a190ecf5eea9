"""Voxels of MR volumes, which have no unit: per mille of the range between two percentiles of the volume."""

from __future__ import annotations

import numpy as np

from mim_components.data.read.limits import check_mr_intensities, check_range
from mim_components.data.read.parts import scaled_parts
from mim_components.data.volumes import VolumeError
from mim_components.transforms.intensity import MR_RANGE, PERCENTILES

_COUNTED = 2**16


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
        raise VolumeError(f"NaN or infinite values in {unfit:,} of {raw.size:,} voxels")
    counted = whole and low >= 0 and high < _COUNTED
    return low, high, int(np.count_nonzero(seen)) if counted else _COUNTED, whole
