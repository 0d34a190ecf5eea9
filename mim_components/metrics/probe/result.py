"""The result of a probe: scores of its draws, and their means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mim_components.metrics.segmentation import CaseResult, TargetScore, mean_of
from mim_components.visualize.overlay import OverlayPicture


@dataclass
class ProbeResult:
    """Result of a probe.

    Attributes:
        cases: Dice of the linear classifier by validation scan and class, the mean over the draws; NaN where a label
            map lacks the class.
        retrieval: share of sampled voxels whose neighbours give their class, by class, the background first, the mean
            over the draws.
        pictures: slices of every validation scan by name, if requested, with the prediction of the first draw.
        draw_dice: mean of the classes' mean Dice of every single draw.
    """

    cases: list[CaseResult]
    retrieval: dict[str, float]
    pictures: dict[str, OverlayPicture] = field(default_factory=dict)
    draw_dice: list[float] = field(default_factory=list)

    @property
    def class_dice(self) -> dict[str, float]:
        """Mean Dice of every class over the scans that have it."""
        return {name: mean_of(case.scores[name].dice for case in self.cases) for name in self.cases[0].scores}

    @property
    def dice(self) -> float:
        """Mean of the classes' mean Dice."""
        return mean_of(self.class_dice.values())

    @property
    def spread(self) -> str:
        """The lowest and the highest mean Dice of a draw in words; empty for one draw."""
        if len(self.draw_dice) < 2:
            return ""
        return f" ({min(self.draw_dice):.4f} to {max(self.draw_dice):.4f} over {len(self.draw_dice)} draws)"

    @property
    def knn(self) -> float:
        """Mean of the classes' retrieval including the background: the balanced accuracy."""
        return mean_of(self.retrieval.values())


def mean_case(draws: Sequence[CaseResult]) -> CaseResult:
    """The mean of a scan's results by several draws, score by score."""
    scores = {
        name: TargetScore(*map(mean_of, zip(*(each.scores[name] for each in draws), strict=True)))
        for name in draws[0].scores
    }
    return CaseResult(draws[0].name, scores)
