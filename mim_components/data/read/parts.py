"""Stored voxels as intensities, a few slices at a time: a float copy of a whole volume would not fit into memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_PART = 2**22  # voxels scaled at a time


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
