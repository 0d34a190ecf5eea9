"""Evidence of a study: scores by arm, number of labelled patients, seed and scan, and which arm is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from studies.definition import Study
from studies.results import DONE, FAILED
from studies.statistics import Interval, as_array, interval, paired_interval

NOT_RUN = "not run"
Scores = dict[int, dict[str, float]]


class Evidence:
    """Scores of a study by arm, number of labelled patients, seed and scan.

    Args:
        study: the study.
        results: newest line of every cell, by name; see `read_results`.
    """

    def __init__(self, study: Study, results: Mapping[str, Mapping[str, Any]]) -> None:
        self.study = study
        self.results = results
        self.arms = list(dict.fromkeys(cell.arm for cell in study.cells.values()))
        cells = [cell for cell in study.cells.values() if cell.phase == "fine_tuning"]
        self.labels = sorted({cell.labels for cell in cells if cell.labels is not None})
        done = [self.results[cell.name] for cell in cells if self._state(cell.name) == DONE]
        self.classes: list[str] = list(done[0]["scores"]["dice"]) if done else []

    def _state(self, name: str) -> str:
        return str(self.results.get(name, {}).get("state", NOT_RUN))

    @property
    def done(self) -> list[Mapping[str, Any]]:
        """Lines of all cells that are done."""
        return [line for line in self.results.values() if line["state"] == DONE]

    def lines(self, arm: str, labels: int | None) -> list[Mapping[str, Any]]:
        """Results of finished cells of an arm: fine-tunings with that many labels, or pre-trainings if None."""
        return [
            self.results[cell.name]
            for cell in self.study.cells.values()
            if cell.arm == arm and cell.labels == labels and self._state(cell.name) == DONE
        ]

    def digests(self, arm: str) -> set[str]:
        """Digests of the definitions of an arm's finished pre-trainings."""
        return {line["digest"] for line in self.lines(arm, None)}

    def needing(self, name: str) -> list[Mapping[str, Any]]:
        """Results of finished cells that need the pre-training of this name."""
        cells = [cell.name for cell in self.study.cells.values() if cell.needs == name]
        return [self.results[cell] for cell in cells if self._state(cell) == DONE]

    def counts(self, arm: str, labels: int | None) -> tuple[int, int, int]:
        """Numbers of cells of an arm that are planned, done, and failed."""
        cells = [cell for cell in self.study.cells.values() if cell.arm == arm and cell.labels == labels]
        states = [self._state(cell.name) for cell in cells]
        return len(states), states.count(DONE), states.count(FAILED)

    def scores(self, arm: str, labels: int, score: str = "dice", name: str | None = None) -> Scores:
        """Scores of a class, or means over all classes, by seed and scan; empty if nothing was run."""
        found: Scores = {}
        for line in self.lines(arm, labels):
            by_class = line["scores"][score]
            chosen = [by_class[each] for each in ([name] if name else self.classes)]
            found[line["seed"]] = {scan: _mean([of[scan] for of in chosen]) for scan in chosen[0]}
        return found

    def interval(self, arm: str, labels: int, score: str = "dice", name: str | None = None) -> Interval | None:
        """Mean over scans and seeds with its interval; None if nothing was run."""
        scores = self.scores(arm, labels, score, name)
        return interval(as_array(scores)) if scores else None

    def difference(self, arm: str, other: str, labels: int) -> Interval | None:
        """Mean Dice of an arm minus that of another; None if they have no seed in common."""
        return paired_interval(self.scores(arm, labels), self.scores(other, labels))

    def common_seeds(self, arm: str, other: str, labels: int) -> int:
        """Number of seeds that both arms have."""
        return len(self.scores(arm, labels).keys() & self.scores(other, labels).keys())

    def by_seed(self, arm: str, other: str, labels: int) -> dict[int, float]:
        """Mean difference in Dice of every seed that both arms have."""
        ours, theirs = self.scores(arm, labels), self.scores(other, labels)
        return {
            seed: float((as_array({0: ours[seed]}) - as_array({0: theirs[seed]})).mean())
            for seed in sorted(ours.keys() & theirs.keys())
        }

    def probe(self, arm: str, kind: str = "encoder") -> dict[str, float]:
        """Dice and kNN of the frozen features of an arm, means over its pre-trainings; empty if there are none."""
        found = [line["probe"][kind] for line in self.lines(arm, None) if kind in line.get("probe", {})]
        return {score: float(np.mean([each[score] for each in found])) for score in ("dice", "knn")} if found else {}

    def probe_draws(self, arm: str) -> int:
        """Draws of the probe's voxels, the fewest of its pre-trainings; 1 for probes that did not yet repeat theirs."""
        return min(len(line["probe"]["encoder"].get("draw_dice", [0])) for line in self.lines(arm, None))

    def probe_kinds(self, arm: str) -> list[str]:
        """Kinds of features beside those of the encoder that its probe has, such as random weights."""
        kinds = dict.fromkeys(kind for line in self.lines(arm, None) for kind in line.get("probe", {}))
        return [kind for kind in kinds if kind != "encoder"]

    def probe_scores(self, arm: str, kind: str = "encoder") -> Scores:
        """Dice of the probe by seed of the pre-training and scan; empty if scores of single scans were not kept."""
        found = {line["seed"]: line.get("probe", {}).get(kind, {}).get("scans") for line in self.lines(arm, None)}
        return {seed: scans for seed, scans in found.items() if scans}

    def probe_interval(self, arm: str, kind: str = "encoder") -> Interval | None:
        """Mean Dice of the probe over pre-trainings and scans, with its interval; None without `probe_scores`."""
        scores = self.probe_scores(arm, kind)
        return interval(as_array(scores)) if scores else None

    def probe_difference(self, arm: str, other: str) -> Interval | None:
        """Dice of an arm's probe minus another's, paired by seed and scan; None without `probe_scores` of both."""
        return paired_interval(self.probe_scores(arm), self.probe_scores(other))

    def most_pretrainings(self) -> int:
        """The largest number of finished pre-trainings of an arm."""
        return max((len(self.lines(arm, None)) for arm in self.arms), default=0)


def direction(found: Interval) -> str | None:
    """Direction of a difference: "better", "worse", or None if its interval contains 0.

    Example:
        >>> direction(Interval(0.02, 0.01, 0.05)), direction(Interval(0.02, -0.01, 0.05))
        ('better', None)
    """
    return "better" if found.low > 0 else "worse" if found.high < 0 else None


def verdict(found: Interval | None, published: str | None) -> str:
    """Whether our difference agrees with the paper's direction.

    Example:
        >>> worse = Interval(-0.02, -0.05, -0.01)
        >>> verdict(worse, "worse"), verdict(worse, "better"), verdict(worse, None), verdict(None, "worse")
        ('agrees', 'disagrees', 'ours: worse', 'cannot tell')
    """
    ours = None if found is None else direction(found)
    if ours is None:
        return "cannot tell"
    if published is None:
        return f"ours: {ours}"
    return "agrees" if ours == published else "disagrees"


def _mean(values: Sequence[float | None]) -> float:
    """Mean of a scan over its classes, except those that its label lacks."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")
