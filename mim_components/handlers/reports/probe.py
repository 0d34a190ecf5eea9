"""The report of a probe: one table, one line per scan and kind of features, pictures of three scans."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mim_components import __version__
from mim_components.handlers.reports.segmentation import choose_cases, known
from mim_components.labels import COLOURS
from mim_components.metrics.probe.probe import FeatureProbe, ProbeResult
from mim_components.metrics.segmentation import CaseResult
from mim_components.utils.files import write_text_safely
from mim_components.utils.text import csv_table, markdown_table
from mim_components.visualize.overlay import LegendEntry, overlay_figure
from mim_components.visualize.sheet import save_figure

logger = logging.getLogger(__name__)


class ProbeReport:
    """Write `report.md`, `metrics.json`, `cases.csv` and `best_`, `median_` and `worst_<rank>.png`.

    Args:
        results: by kind of features; pictures are of the first.
        facts: settings to name.
        probe: that found the results.
    """

    def __init__(self, results: Mapping[str, ProbeResult], facts: Mapping[str, Any], probe: FeatureProbe) -> None:
        self.results = results
        self.facts = facts
        self.probe = probe

    def write(self, folder: Path) -> list[Path]:
        """Write the files and log the table; returns the files."""
        first = next(iter(self.results.values()))
        chosen = choose_cases(first.cases)
        pictures = {rank: f"{rank}.png" for rank in chosen}
        for rank, case in chosen.items():
            save_figure(
                overlay_figure(first.pictures[case.name], _title(case, rank, len(first.cases)), _legend(case)),
                folder / pictures[rank],
            )
        metrics = self.metrics()
        texts = {
            "cases.csv": csv_table(self._case_rows()),
            "metrics.json": json.dumps(metrics, indent=1, allow_nan=False, default=str) + "\n",
            "report.md": self._markdown(metrics, pictures),
        }
        for name, text in texts.items():
            write_text_safely(folder / name, text)
        logger.info("%s\nReport: %s", self.table(), folder / "report.md")
        return [folder / name for name in (*texts, *pictures.values())]

    def metrics(self) -> dict[str, Any]:
        """Everything that `metrics.json` holds; figures are 0 to 1, None where no label map has the class."""
        prepared, labels = self.probe.prepared, self.probe.labels
        return {
            "settings": {
                **self.facts,
                "classes": {labels.names[number]: value for value, number in labels.values.items() if number},
                "training_scans": len(prepared.training),
                "validation_scans": len(prepared.validation),
                "data_digest": prepared.digest,
                "version": __version__,
            },
            "excluded": [str(bad) for bad in prepared.bad],
            "features": {
                kind: {
                    "dice": known(result.dice),
                    "knn": known(result.knn),
                    "class_dice": {name: known(value) for name, value in result.class_dice.items()},
                    "class_knn": {name: known(value) for name, value in result.retrieval.items()},
                }
                for kind, result in self.results.items()
            },
        }

    def table(self) -> str:
        """Dice and retrieval of every class and their means, in Markdown."""
        kinds = list(self.results)
        head = ["in %", *(f"Dice, {kind}" for kind in kinds), *(f"kNN, {kind}" for kind in kinds)]
        rows = []
        for name in self.probe.labels.names:
            dice = [result.class_dice.get(name, math.nan) for result in self.results.values()]
            rows.append([name, *map(_percent, dice), *(_percent(r.retrieval[name]) for r in self.results.values())])
        means = [*(r.dice for r in self.results.values()), *(r.knn for r in self.results.values())]
        return markdown_table(head, [*rows, ["mean", *map(_percent, means)]])

    def _case_rows(self) -> list[dict[str, Any]]:
        rows = []
        for kind, result in self.results.items():
            for case in result.cases:
                row = {"features": kind, "case": case.name, "mean_dice": _cell(case.dice)}
                for field in ("dice", "label_ml", "pred_ml"):
                    row |= {f"{field}_{name}": _cell(getattr(score, field)) for name, score in case.scores.items()}
                rows.append(row)
        return rows

    def _markdown(self, metrics: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
        notes = [
            "The encoder is frozen. Dice: a linear classifier of single voxels' features, fitted on voxels of the "
            "training scans, on every voxel of the validation scans; mean over the scans whose label map has the "
            "class, then over the classes. It is no segmentation network: compare columns, not papers.",
            f"kNN: share of the sampled voxels of validation scans whose class is that of most of the "
            f"{self.probe.neighbours} nearest voxels (cosine) of other patients; guessing gives "
            f"{100 / len(self.probe.labels.names):.1f} %.",
            "Features of an encoder that has learned something must beat both other columns: random weights of the "
            "same network, which hold its structure and positions, and intensity with position, which need no network.",
            "A class without a voxel in a training scan's label map counts as absent there, as does every value that "
            "is none of the classes.",
        ]
        if metrics["excluded"]:
            notes.append(f"{len(metrics['excluded'])} scans were left out; see metrics.json.")
        parts = [
            "# Probe of frozen features",
            markdown_table(["setting", "value"], metrics["settings"].items()),
            "## Scores",
            self.table(),
            "## Pictures",
            *(f"![{rank} scan]({name})" for rank, name in pictures.items()),
            "## Notes",
            "\n".join(f"- {note}" for note in notes),
        ]
        return "\n\n".join(parts) + "\n"


def _title(case: CaseResult, rank: str, count: int) -> str:
    return f"{case.name}: mean Dice {100 * case.dice:.1f} % ({rank} of {count} scans)"


def _legend(case: CaseResult) -> list[LegendEntry]:
    return [
        LegendEntry(
            name,
            COLOURS[number % len(COLOURS)],
            "not in the label" if math.isnan(score.dice) else f"Dice {_percent(score.dice)} %",
        )
        for number, (name, score) in enumerate(case.scores.items())
    ]


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"
