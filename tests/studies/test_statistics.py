from __future__ import annotations

import numpy as np
import pytest

from studies.definition import StudyError
from studies.statistics import Interval, as_array, bootstrap_means, interval, paired_interval


def test_equal_differences_have_an_interval_of_no_width() -> None:
    theirs = {0: {"a": 0.25, "b": 0.75}, 1: {"a": 0.5, "b": 0.625}}
    ours = {seed: {scan: value + 0.125 for scan, value in scans.items()} for seed, scans in theirs.items()}
    assert paired_interval(ours, theirs) == Interval(0.125, 0.125, 0.125)


def test_two_scans_enumerated() -> None:
    # drawn twice from {0, 1}: means 0, 1/2, 1/2, 1
    means = bootstrap_means(np.array([[0.0, 1.0]]), draws=40_000)
    values, counts = np.unique(means, return_counts=True)
    assert values.tolist() == [0.0, 0.5, 1.0]
    np.testing.assert_allclose(counts / 40_000, [0.25, 0.5, 0.25], atol=0.01)  # 4 standard deviations of 0.5
    assert interval(np.array([[0.0, 1.0]])) == Interval(0.5, 0.0, 1.0)


def test_seeds_are_drawn_as_well() -> None:
    # scans are equal within a seed, so all the spread is that of the seeds
    assert interval(np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])) == Interval(0.5, 0.0, 1.0)


def test_both_are_drawn_jointly() -> None:
    # rows a, b in {0, 1}, columns likewise: the mean is the product of the share of row 1 and that of column 1
    means = bootstrap_means(np.array([[0.0, 0.0], [0.0, 1.0]]), draws=40_000)
    values, counts = np.unique(means, return_counts=True)
    assert values.tolist() == [0.0, 0.25, 0.5, 1.0]
    np.testing.assert_allclose(counts / 40_000, [7 / 16, 4 / 16, 4 / 16, 1 / 16], atol=0.01)


def test_only_common_seeds_are_compared() -> None:
    ours, theirs = {0: {"a": 0.5}, 1: {"a": 0.9}}, {0: {"a": 0.25}, 2: {"a": 0.1}}
    assert paired_interval(ours, theirs) == Interval(0.25, 0.25, 0.25)
    assert paired_interval({1: {"a": 0.5}}, theirs) is None


def test_the_same_scans_in_every_seed() -> None:
    with pytest.raises(StudyError, match=r"seeds \[0, 1\] were scored on different scans"):
        as_array({0: {"a": 0.5}, 1: {"b": 0.5}})


def test_arms_were_scored_on_the_same_scans() -> None:
    with pytest.raises(StudyError, match="two arms were scored on different scans; only one has b, c"):
        paired_interval({0: {"a": 0.5, "b": 0.5}}, {0: {"a": 0.5, "c": 0.5}})


@pytest.mark.parametrize(("seeds", "share"), [(2, 0.81), (3, 0.88)])
def test_intervals_of_few_seeds_are_too_narrow(seeds: int, share: float) -> None:
    """The shares in `summary.py`; standard deviations in points, means of the five differences of two rounds."""
    of_seeds, of_scans, rest = 1.4, 0.66, 2.3
    rng = np.random.default_rng(0)
    held = []
    for _ in range(500):
        truth = rng.normal(0, of_seeds, (seeds, 1)) + rng.normal(0, of_scans, (1, 15))
        low, high = interval(truth + rng.normal(0, rest, (seeds, 15)), draws=1000)[1:]
        held.append(low <= 0 <= high)
    assert np.mean(held) == pytest.approx(share, abs=0.03)  # 2 standard deviations of 500 tries
