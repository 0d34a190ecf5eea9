"""Means with intervals, from scores `(S, N)` of S seeds and N scans.

The bootstrap resamples seeds and scans jointly, with replacement, and takes the mean of each sample, so that an
interval covers the spread over both. Arms are compared by the differences between scores of the same seed and scan, so
that a hard scan, or a poor choice of labelled patients, affects both arms alike.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from studies.definition import StudyError

DRAWS = 10_000


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


def bootstrap_means(values: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Means `(draws,)` of scores `(S, N)` whose rows and columns are drawn with replacement.

    Example:
        >>> bootstrap_means(np.array([[0.25, 0.25], [0.25, 0.25]]), draws=3)
        array([0.25, 0.25, 0.25])
    """
    rng = np.random.default_rng(seed)
    rows, columns = (rng.multinomial(size, np.full(size, 1 / size), draws) / size for size in values.shape)
    return np.einsum("ds,sn,dn->d", rows, values, columns)


def interval(values: np.ndarray, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Mean of scores `(S, N)`, with the 2.5 and 97.5 percentiles of its bootstrap."""
    low, high = np.percentile(bootstrap_means(values, draws, seed), [2.5, 97.5])
    return Interval(float(values.mean()), float(low), float(high))


def paired_interval(
    ours: dict[int, dict[str, float]], theirs: dict[int, dict[str, float]], draws: int = DRAWS, seed: int = 0
) -> Interval | None:
    """Interval of the difference between two arms over the seeds that both have; None if there are none.

    Args:
        ours: scores by seed, then by scan.
        theirs: scores that are subtracted.
        draws: number of samples of the bootstrap.
        seed: seed of the bootstrap.

    Raises:
        StudyError: the two were scored on different scans.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    if other := ours[seeds[0]].keys() ^ theirs[seeds[0]].keys():
        raise StudyError(f"two arms were scored on different scans; only one has {', '.join(sorted(other))}.")
    return interval(
        as_array({key: ours[key] for key in seeds}) - as_array({key: theirs[key] for key in seeds}), draws, seed
    )


def as_array(scores: dict[int, dict[str, float]]) -> np.ndarray:
    """Scores `(S, N)`, sorted by seed and scan.

    Raises:
        StudyError: seeds have different scans.
    """
    scans = sorted(next(iter(scores.values())))
    if any(sorted(of_seed) != scans for of_seed in scores.values()):
        raise StudyError(f"seeds {sorted(scores)} were scored on different scans.")
    return np.array([[scores[seed][scan] for scan in scans] for seed in sorted(scores)])
