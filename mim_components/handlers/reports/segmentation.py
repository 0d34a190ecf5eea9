"""Files of a segmentation's evaluation: from the scores of cases to figures, text, pictures and tables.

Scores are 0 to 1 in the figures and in CSV, and percent in tables, as in the paper.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

from mim_components import __version__
from mim_components.data.prepare.cases import PreparedCases
from mim_components.handlers.reports.frame import (
    known,
    page,
    percent,
    scans_of_training,
    training_facts,
    training_notes,
    why_not_comparable,
    write_report,
)
from mim_components.labels import COLOURS
from mim_components.metrics.segmentation import CaseResult, CaseScores, TargetScore, mean_of
from mim_components.utils.files import shorten_name
from mim_components.utils.text import counted, csv_table, markdown_table
from mim_components.visualize.overlay import LegendEntry, overlay_figure
from mim_components.visualize.sheet import save_figure
from mim_components.weights.trained import TrainedNetwork

logger = logging.getLogger(__name__)


def target_rows(results: Sequence[CaseResult], tolerance_mm: Mapping[str, float]) -> list[dict[str, Any]]:
    """Per target: means over the cases whose label has it, their number, and the number of others with predictions."""
    rows = []
    for target, tolerance in tolerance_mm.items():
        scores = [result.scores[target] for result in results]
        rows.append({
            "name": target,
            "dice": known(mean_of(score.dice for score in scores)),
            "nsd": known(mean_of(score.nsd for score in scores)),
            "tolerance_mm": tolerance,
            "cases": sum(not math.isnan(score.dice) for score in scores),
            "predicted_elsewhere": sum(math.isnan(score.dice) and score.pred_ml > 0 for score in scores),
        })  # fmt: skip
    return rows


def mean_row(results: Sequence[CaseResult]) -> dict[str, Any]:
    """Means over the targets of a case, then over the cases whose label has any."""
    return {
        "dice": known(mean_of(result.dice for result in results)),
        "nsd": known(mean_of(result.nsd for result in results)),
        "cases": sum(not math.isnan(result.dice) for result in results),
    }


def case_rows(results: Sequence[CaseResult], measures: Sequence[str] = ("dice", "nsd")) -> list[dict[str, Any]]:
    """Per case: its means, then scores and volumes of every target; None if the label lacks it."""
    rows = []
    for result in results:
        row = {"case": result.name, **{f"mean_{measure}": known(getattr(result, measure)) for measure in measures}}
        for field in (*measures, "label_ml", "pred_ml"):
            row |= {f"{field}_{target}": known(getattr(score, field)) for target, score in result.scores.items()}
        rows.append(row)
    return rows


def case_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """`case_rows` as CSV; a cell is empty if the label lacks the target."""
    return csv_table([
        {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()} for row in rows
    ])  # fmt: skip


def markdown(report: Mapping[str, Any]) -> str:
    """The report as a page: what was evaluated, the scores, the paper's figures, pictures, and how to read them."""
    sections = {
        "": [markdown_table(["setting", "value"], report["settings"].items())],
        "Scores": [target_table(report)],
        "The paper's figures (not ours)": [published_text(report)],
        "Pictures": [f"![{name} case]({file})" for name, file in report["pictures"].items()],
    }
    return page("Evaluation of a segmentation", sections, report["notes"])


def target_table(report: Mapping[str, Any]) -> str:
    """Scores of every target and their mean, in Markdown."""
    head = ["class or region", "Dice (%)", "NSD (%)", "NSD tolerance (mm)", "cases with it"]
    rows = [
        [row["name"], percent(row["dice"]), percent(row["nsd"]), f"{row['tolerance_mm']:g}", str(row["cases"])]
        for row in report["targets"]
    ]
    mean = report["mean"]
    return markdown_table(head, [*rows, ["mean", percent(mean["dice"]), percent(mean["nsd"]), "", str(mean["cases"])]])


def published_text(report: Mapping[str, Any]) -> str:
    """Our figures beside the paper's, or why those are not shown."""
    published, reasons = report["published"], report["not_comparable"]
    if reasons:
        return f"Not shown, since they are not comparable: {'; '.join(reasons)}."
    if not published:
        return "None are known for this dataset."
    entries = list(dict.fromkeys([*published.get("dice", {}), *published.get("nsd", {})]))
    per_class = published.get("per_class", {})
    rows = [["mean Dice", percent(report["mean"]["dice"]), *_cells(published.get("dice", {}), entries)]]
    if published.get("nsd"):
        rows.append(["mean NSD", percent(report["mean"]["nsd"]), *_cells(published["nsd"], entries)])
    for target in report["targets"] if per_class else []:
        theirs = {entry: figures[target["name"]] for entry, figures in per_class.items() if target["name"] in figures}
        rows.append([f"Dice of {target['name']}", percent(target["dice"]), *_cells(theirs, entries)])
    table = markdown_table(["in %", "this run", *(f"the paper's: {entry}" for entry in entries)], rows)
    source = f"Source: {published.get('source', 'unknown')}. {published.get('note', '')}".strip()
    return f"{table}\n\n{source} Their trainings, and perhaps their cases, differ from ours."


def _cells(figures: Mapping[str, float], entries: Sequence[str]) -> list[str]:
    return [f"{figures[entry]:.2f}" if entry in figures else "-" for entry in entries]


SPACES = ("resampled", "original")
NOTES = (
    "The mean is over the classes or regions of a case, then over the cases. The other rows are means over the cases "
    "whose label has the class.",
    "A class that the label of a case lacks is not counted there, even where it is predicted. One that only "
    "the prediction lacks scores 0.",
    "NSD is MONAI's: the share of the voxels at the edges of both masks that lie within the tolerance of the other's "
    "edge. Tools that weight surface elements give other values.",
    "No test labels of this dataset are public. The figures are for the validation fold, on which the best model is "
    "also chosen, so new cases may score lower.",
)


class EvaluationReport:
    """At the end, write `cases.csv`, `metrics.json`, `report.md` and pictures of three cases, and log the tables.

    The pictures are `best_<case>.png`, `median_<case>.png` and `worst_<case>.png`, by mean Dice.

    Args:
        scores: scores of the cases.
        output_dir: folder for the files; created if missing.
        published: the paper's figures, see metadata.json; empty = none.
        facts: what else the report is to record: dataset, fold, label_ratio, network, weights, ...
        space: grid of the scores: "resampled" or "original".
        trained: network that was evaluated; None = nothing is known about its training.
        prepared: cases of the evaluation, among which those of the training are looked for.

    Raises:
        ValueError: unknown `space`.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from mim_components.labels import LabelSet
        >>> scores = CaseScores(LabelSet(("background", "spleen"), {}, {}), {"spleen": 2})
        >>> for name, dice, pred_ml in (("1", 0.5, 100.0), ("2", 1.0, 200.0)):
        ...     scores.results.append(CaseResult(name, {"spleen": TargetScore(dice, dice, 200.0, pred_ml)}))
        >>> with TemporaryDirectory() as folder:
        ...     EvaluationReport(scores, folder, published={}, facts={})(Engine(lambda engine, batch: None))
        ...     print(Path(folder, "cases.csv").read_text(), end="")
        case,mean_dice,mean_nsd,dice_spleen,nsd_spleen,label_ml_spleen,pred_ml_spleen
        1,0.5,0.5,0.5,0.5,200,100
        2,1,1,1,1,200,200
    """

    def __init__(
        self,
        scores: CaseScores,
        output_dir: str | Path,
        published: Mapping[str, Any],
        facts: Mapping[str, Any],
        space: str = "resampled",
        trained: TrainedNetwork | None = None,
        prepared: PreparedCases | None = None,
    ) -> None:
        if space not in SPACES:
            raise ValueError(f"space must be one of {', '.join(SPACES)}, got {space!r}.")
        self.scores = scores
        self.output_dir = Path(output_dir)
        self.published = published
        self.facts = {**facts, **training_facts(trained)}
        self.space = space
        self.seen = scans_of_training(trained, prepared)

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator; every process draws the pictures of its own cases, the first writes the rest."""
        self.scores.attach(engine)
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
        for rank in ("best", "median", "worst"):  # of an earlier evaluation
            for path in self.output_dir.glob(f"{rank}_*.png"):
                if path.name != pictures.get(rank):
                    path.unlink()
        report = self.report(results, pictures)
        log = "\n".join([counted(len(results), "case"), target_table(report), published_text(report)])
        for note in training_notes(self.seen, len(results)):
            logger.warning("%s", note)
        write_report(self.output_dir, report, markdown(report), {"cases.csv": case_table(report["per_case"])}, log)

    def report(self, results: Sequence[CaseResult], pictures: Mapping[str, str]) -> dict[str, Any]:
        """Everything that `metrics.json` holds."""
        labels = self.scores.labels
        targets = target_rows(results, self.scores.tolerance_mm)
        reasons = why_not_comparable(self.published, self.facts, self.seen, labels.name, self.space)
        return {
            "settings": {
                **self.facts,
                "label_set": labels.name,
                "space": self.space,
                "version": __version__,
                "cases": len(results),
            },
            "mean": mean_row(results),
            "targets": targets,
            "per_case": case_rows(results),
            "published": {} if reasons else dict(self.published),
            "not_comparable": reasons if self.published else [],
            "pictures": dict(pictures),
            "in_training": list(self.seen),
            "notes": [*training_notes(self.seen, len(results)), *NOTES, *_warnings(targets)],
        }

    def _draw(self, rank: str, result: CaseResult, count: int, path: Path) -> None:
        legend = legend_of(result)
        mean = "mean " if len(legend) > 1 else ""
        figures = f"{mean}Dice {100 * result.dice:.1f} %, {mean}NSD {100 * result.nsd:.1f} %"
        title = f"{result.name}: {figures} ({rank} of {count} cases)"
        save_figure(overlay_figure(self.scores.pictures[result.name], title, legend), path)


def choose_cases(results: Sequence[CaseResult]) -> dict[str, CaseResult]:
    """The best, median and worst case by mean Dice; fewer if there are fewer, none without a label."""
    ranked = sorted((each for each in results if not math.isnan(each.dice)), key=lambda each: (-each.dice, each.name))
    places = {1: {"best": 0}, 2: {"best": 0, "worst": -1}}
    chosen = places.get(len(ranked), {"best": 0, "median": len(ranked) // 2, "worst": -1})
    return {rank: ranked[place] for rank, place in chosen.items() if ranked}


def legend_of(case: CaseResult) -> list[LegendEntry]:
    """Colour and scores of every target of a case."""
    return [
        LegendEntry(target, COLOURS[number % len(COLOURS)], score_text(score))
        for number, (target, score) in enumerate(case.scores.items())
    ]


def score_text(score: TargetScore) -> str:
    """Scores of a target for the legend of a picture; without NSD if it was not measured.

    Example:
        >>> score_text(TargetScore(0.912, 0.8, 12.0, 11.5)), score_text(TargetScore(math.nan, math.nan, 0.0, 0.25))
        ('Dice 91.2 %, NSD 80.0 %', 'not in the label, 0.25 ml predicted')
    """
    if math.isnan(score.dice):
        return "not in the label" + (f", {score.pred_ml:.2f} ml predicted" if score.pred_ml else "")
    nsd = "" if math.isnan(score.nsd) else f", NSD {100 * score.nsd:.1f} %"
    return f"Dice {100 * score.dice:.1f} %{nsd}"


def _warnings(targets: Sequence[Mapping[str, Any]]) -> list[str]:
    extra = [f"{row['name']} ({row['predicted_elsewhere']})" for row in targets if row["predicted_elsewhere"]]
    if not extra:
        return []
    return [f"Predicted in cases whose label lacks it, which the scores do not show: {', '.join(extra)}."]


def _file_name(case: str) -> str:
    return shorten_name(re.sub(r"[^\w.+-]", "_", case))


def is_original(space: str) -> bool:
    """Whether predictions are resampled to the scan's own grid before they are scored.

    Args:
        space: "resampled", the grid that the network sees, on which published figures are measured; or "original".

    Raises:
        ValueError: neither of the two.

    Example:
        >>> is_original("original"), is_original("resampled")
        (True, False)
    """
    if space not in SPACES:
        raise ValueError(f"space must be one of {', '.join(SPACES)}, got {space!r}.")
    return space == "original"
