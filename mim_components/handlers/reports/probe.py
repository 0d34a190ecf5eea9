"""The report of a probe: one table, one line per scan and kind of features, pictures of three scans."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mim_components import __version__
from mim_components.handlers.reports.frame import known, page, percent, write_report
from mim_components.handlers.reports.segmentation import case_rows, case_table, choose_cases, legend_of
from mim_components.metrics.probe.probe import FeatureProbe, ProbeResult
from mim_components.metrics.segmentation import CaseResult
from mim_components.utils.text import counted, markdown_table, shorten
from mim_components.visualize.overlay import overlay_figure
from mim_components.visualize.sheet import save_figure


class ProbeReport:
    """Write `report.md`, `metrics.json`, `cases.csv` and `best_`, `median_` and `worst_<rank>.png`.

    Args:
        results: results by kind of features; pictures show the first.
        facts: settings to state.
        probe: probe that gave the results.
        seen: names of the validation scans that the weights were pre-trained on; None = unknown.
    """

    def __init__(
        self,
        results: Mapping[str, ProbeResult],
        facts: Mapping[str, Any],
        probe: FeatureProbe,
        seen: Sequence[str] | None = None,
    ) -> None:
        self.results = results
        self.facts = facts
        self.probe = probe
        self.seen = seen

    def write(self, folder: Path) -> list[Path]:
        """Write the files and log the table; returns the files."""
        first = next(iter(self.results.values()))
        chosen = choose_cases(first.cases)
        pictures = {rank: f"{rank}.png" for rank in chosen}
        for rank, case in chosen.items():
            save_figure(
                overlay_figure(first.pictures[case.name], _title(case, rank, len(first.cases)), legend_of(case)),
                folder / pictures[rank],
            )
        metrics = self.metrics()
        rows = [
            {"features": kind, **row}
            for kind, result in self.results.items()
            for row in case_rows(result.cases, measures=["dice"])
        ]
        tables = {"cases.csv": case_table(rows)}
        files = write_report(folder, metrics, self._markdown(metrics, pictures), tables, self.table())
        return [*files, *(folder / name for name in pictures.values())]

    def metrics(self) -> dict[str, Any]:
        """Content of `metrics.json`; figures are 0 to 1, None if no label map has the class."""
        prepared, labels = self.probe.prepared, self.probe.labels
        return {
            "settings": {
                **self.facts,
                "classes": {labels.names[number]: value for value, number in labels.values.items() if number},
                "training_scans": len(prepared.training),
                "validation_scans": len(prepared.validation),
                "seen_in_training": self.seen if self.seen is None else list(self.seen),
                "data_digest": prepared.digest,
                "version": __version__,
            },
            "excluded": [str(bad) for bad in prepared.bad],
            "features": {
                kind: {
                    "dice": known(result.dice),
                    "knn": known(result.knn),
                    "draw_dice": [known(value) for value in result.draw_dice],
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
            rows.append(
                [
                    name,
                    *(percent(value, 1) for value in dice),
                    *(percent(r.retrieval[name], 1) for r in self.results.values()),
                ]
            )
        means = [*(r.dice for r in self.results.values()), *(r.knn for r in self.results.values())]
        rows.append(["mean", *(percent(value, 1) for value in means)])
        spreads = [r.draw_dice for r in self.results.values()]
        if max(map(len, spreads)) > 1:
            ranges = [f"{percent(min(each), 1)} to {percent(max(each), 1)}" for each in spreads]
            rows.append(["draws", *ranges, *("" for _ in ranges)])
        return markdown_table(head, rows)

    def _markdown(self, metrics: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
        notes = [
            "The encoder is frozen. Dice: a linear classifier of single voxels' features, fitted on voxels of the "
            "training scans, its biases set for the best Dice on other voxels of them, on every voxel of the "
            "validation scans; mean over the scans whose label map has the class, then over the classes. It is no "
            "segmentation network: compare columns, not papers.",
            f"kNN: share of the sampled voxels of validation scans whose class is that of most of the "
            f"{self.probe.neighbours} nearest voxels (cosine) of other patients; guessing gives "
            f"{100 / len(self.probe.labels.names):.1f} %.",
            "Features of an encoder that has learned something must beat both other columns: random weights of the "
            "same network, which hold its structure and positions, and intensity with position, which need no network.",
            "All figures are means over the draws of voxels; 'draws' gives the lowest and highest mean Dice of one.",
            "A class without a voxel in a training scan's label map counts as absent there, as does every value that "
            "is not one of the classes.",
            self._seen(metrics["settings"]["validation_scans"]),
        ]
        if metrics["excluded"]:
            notes.append(f"{counted(len(metrics['excluded']), 'scan')} left out; see metrics.json.")
        sections = {
            "": [markdown_table(["setting", "value"], metrics["settings"].items())],
            "Scores": [self.table()],
            "Pictures": [f"![{rank} scan]({name})" for rank, name in pictures.items()],
        }
        return page("Probe of frozen features", sections, notes)

    def _seen(self, count: int) -> str:
        if self.seen is None:
            return (
                "Whether the encoder was pre-trained on validation scans is unknown: the weights have no "
                "training_volumes.txt. If it was, the lead over random weights is too large."
            )
        if not self.seen:
            return "The encoder was pre-trained on none of the validation scans, as far as equal voxels tell."
        return (
            f"The encoder was pre-trained on {len(self.seen)} of the {counted(count, 'validation scan')}, with "
            f"the same voxels; the lead over random weights is too large: {shorten(self.seen, 20)}."
        )


def _title(case: CaseResult, rank: str, count: int) -> str:
    return f"{case.name}: mean Dice {100 * case.dice:.1f} % ({rank} of {count} scans)"
