"""Write what the evaluation of a segmentation found when it is complete."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

from mim_components import __version__
from mim_components.handlers.reports.segmentation import (
    case_rows,
    case_table,
    markdown,
    mean_row,
    published_text,
    target_rows,
    target_table,
    why_not_comparable,
)
from mim_components.labels import COLOURS
from mim_components.metrics.segmentation import CaseResult, TargetScore
from mim_components.segmentation.case_scores import CaseScores
from mim_components.utils.files import shorten_name, write_text_safely
from mim_components.visualize.overlay import LegendEntry, overlay_figure
from mim_components.visualize.sheet import save_figure

logger = logging.getLogger(__name__)

SPACES = ("resampled", "original")
NOTES = (
    "The mean is over the classes or regions of a case, then over the cases. The other rows are means over the cases "
    "whose label has the class.",
    "A class that the label of a case does not have is not counted there, also where it is predicted. One that only "
    "the prediction lacks scores 0.",
    "NSD is MONAI's: the share of the voxels at the edges of both masks that lie within the tolerance of the other's "
    "edge. Tools that weigh pieces of surface give other values.",
    "No test labels of this dataset are public. The figures are of the validation fold, by which the best model is "
    "chosen too, so new cases may score lower.",
)


class EvaluationReport:
    """At the end, write `cases.csv`, `metrics.json`, `report.md` and pictures of three cases, and log the tables.

    The pictures are `best_<case>.png`, `median_<case>.png` and `worst_<case>.png`, by mean Dice.

    Args:
        scores: of the cases.
        output_dir: folder for the files; made when missing.
        published: the paper's figures, see metadata.json; empty = none.
        facts: what else the report is to record: dataset, fold, label_ratio, network, weights, ...
        space: grid of the scores: "resampled" or "original".

    Raises:
        ValueError: unknown `space`.
    """

    def __init__(
        self,
        scores: CaseScores,
        output_dir: str | Path,
        published: Mapping[str, Any],
        facts: Mapping[str, Any],
        space: str = "resampled",
    ) -> None:
        if space not in SPACES:
            raise ValueError(f"space must be one of {', '.join(SPACES)}, got {space!r}.")
        self.scores = scores
        self.output_dir = Path(output_dir)
        self.published = published
        self.facts = facts
        self.space = space

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator; every process draws the pictures of its own cases, the first writes the rest."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the files."""
        results = self.scores.gather()
        chosen = choose_cases(results)
        pictures = {rank: f"{rank}_{_file_name(result.name)}.png" for rank, result in chosen.items()}
        for rank, result in chosen.items():
            if result.name in self.scores.pictures:
                self._draw(rank, result, len(results), self.output_dir / pictures[rank])
        if idist.get_rank() != 0:
            return
        for rank in ("best", "median", "worst"):  # of an evaluation before this one
            for path in self.output_dir.glob(f"{rank}_*.png"):
                if path.name != pictures.get(rank):
                    path.unlink()
        report = self.report(results, pictures)
        files = {
            "cases.csv": case_table(results),
            "metrics.json": json.dumps(report, indent=1, allow_nan=False, default=str) + "\n",
            "report.md": markdown(report),
        }
        for name, text in files.items():
            write_text_safely(self.output_dir / name, text)
        logger.info("%s", "\n".join([f"{len(results)} cases", target_table(report), published_text(report)]))
        logger.info("Report: %s", self.output_dir / "report.md")

    def report(self, results: Sequence[CaseResult], pictures: Mapping[str, str]) -> dict[str, Any]:
        """Everything that `metrics.json` holds."""
        labels = self.scores.labels
        targets = target_rows(results, self.scores.tolerance_mm)
        reasons = why_not_comparable(self.published, labels.name, self.space, self.facts)
        return {
            "settings": {
                **self.facts,
                "label_set": labels.name,
                "space": self.space,
                "seed": None,
                "version": __version__,
                "cases": len(results),
            },
            "mean": mean_row(results),
            "targets": targets,
            "per_case": case_rows(results),
            "published": {} if reasons else dict(self.published),
            "not_comparable": reasons if self.published else [],
            "pictures": dict(pictures),
            "notes": [*NOTES, *_warnings(targets)],
        }

    def _draw(self, rank: str, result: CaseResult, count: int, path: Path) -> None:
        legend = [
            LegendEntry(target, COLOURS[number % len(COLOURS)], score_text(score))
            for number, (target, score) in enumerate(result.scores.items())
        ]
        mean = "mean " if len(legend) > 1 else ""
        figures = f"{mean}Dice {100 * result.dice:.1f} %, {mean}NSD {100 * result.nsd:.1f} %"
        title = f"{result.name}: {figures} ({rank} of {count} cases)"
        save_figure(overlay_figure(self.scores.pictures[result.name], title, legend), path)


def choose_cases(results: Sequence[CaseResult]) -> dict[str, CaseResult]:
    """The best, median and worst case by mean Dice; fewer where there are fewer, none without a label."""
    ranked = sorted((each for each in results if not math.isnan(each.dice)), key=lambda each: (-each.dice, each.name))
    places = {1: {"best": 0}, 2: {"best": 0, "worst": -1}}
    chosen = places.get(len(ranked), {"best": 0, "median": len(ranked) // 2, "worst": -1})
    return {rank: ranked[place] for rank, place in chosen.items() if ranked}


def score_text(score: TargetScore) -> str:
    """Scores of a target as the legend of a picture shows them.

    Example:
        >>> score_text(TargetScore(0.912, 0.8, 12.0, 11.5)), score_text(TargetScore(math.nan, math.nan, 0.0, 0.25))
        ('Dice 91.2 %, NSD 80.0 %', 'not in the label, 0.25 ml predicted')
    """
    if math.isnan(score.dice):
        return "not in the label" + (f", {score.pred_ml:.2f} ml predicted" if score.pred_ml else "")
    return f"Dice {100 * score.dice:.1f} %, NSD {100 * score.nsd:.1f} %"


def _warnings(targets: Sequence[Mapping[str, Any]]) -> list[str]:
    extra = [f"{row['name']} ({row['predicted_elsewhere']})" for row in targets if row["predicted_elsewhere"]]
    if not extra:
        return []
    return [f"Predicted in cases whose label does not have it, which the scores do not show: {', '.join(extra)}."]


def _file_name(case: str) -> str:
    return shorten_name(re.sub(r"[^\w.+-]", "_", case))
