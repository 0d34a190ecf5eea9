"""From the scores of cases to the figures of a report, and from those to text.

Scores are 0 to 1 in the figures and in CSV, and percent in tables, as the paper's are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mim_components.metrics.segmentation import CaseResult, mean_of
from mim_components.utils.text import csv_table, markdown_table


def known(value: float) -> float | None:
    """The value, or None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value


def target_rows(results: Sequence[CaseResult], tolerance_mm: Mapping[str, float]) -> list[dict[str, Any]]:
    """Per target: means over the cases whose label has it, their number, and that of others where it is predicted."""
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


def case_rows(results: Sequence[CaseResult]) -> list[dict[str, Any]]:
    """Per case: its means, then scores and volumes of every target; None where the label does not have it."""
    rows = []
    for result in results:
        row = {"case": result.name, "mean_dice": known(result.dice), "mean_nsd": known(result.nsd)}
        for field in ("dice", "nsd", "label_ml", "pred_ml"):
            row |= {f"{field}_{target}": known(getattr(score, field)) for target, score in result.scores.items()}
        rows.append(row)
    return rows


def case_table(results: Sequence[CaseResult]) -> str:
    """`case_rows` as CSV; a cell is empty where the label does not have the target."""
    return csv_table([
        {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()}
        for row in case_rows(results)
    ])  # fmt: skip


def why_not_comparable(published: Mapping[str, Any], label_set: str, space: str, facts: Mapping[str, Any]) -> list[str]:
    """What differs from how the paper's figures were measured; nothing = they may stand beside ours."""
    wanted = published.get("label_set", label_set)
    fold, ratio = facts.get("fold", 0), facts.get("label_ratio", 1.0)
    reasons = {
        f"the label set is {label_set!r}, theirs {wanted!r}": wanted != label_set,
        f"the scores are in {space} space, theirs in resampled space": space != "resampled",
        f"the fold is {fold}, theirs 0": fold != 0,
        f"the training used {ratio} of the labels, theirs all": float(ratio) != 1.0,
        "the cases are those of a list of your own": bool(facts.get("datalist")),
    }
    return [reason for reason, holds in reasons.items() if holds]


def markdown(report: Mapping[str, Any]) -> str:
    """The report as a page: what was evaluated, the scores, the paper's figures, pictures, and how to read them."""
    settings = [[name, _plain(value)] for name, value in report["settings"].items()]
    pictures = [f"![{name} case]({file})" for name, file in report["pictures"].items()]
    parts = [
        "# Evaluation of a segmentation",
        markdown_table(["setting", "value"], settings),
        "## Scores",
        target_table(report),
        "## The paper's figures (not ours)",
        published_text(report),
        *(["## Pictures", *pictures] if pictures else []),
        "## Notes",
        "\n".join(f"- {note}" for note in report["notes"]),
    ]
    return "\n\n".join(parts) + "\n"


def target_table(report: Mapping[str, Any]) -> str:
    """Scores of every target and their mean, in Markdown."""
    head = ["class or region", "Dice (%)", "NSD (%)", "NSD tolerance (mm)", "cases with it"]
    rows = [
        [row["name"], _percent(row["dice"]), _percent(row["nsd"]), f"{row['tolerance_mm']:g}", str(row["cases"])]
        for row in report["targets"]
    ]
    mean = report["mean"]
    return markdown_table(
        head, [*rows, ["mean", _percent(mean["dice"]), _percent(mean["nsd"]), "", str(mean["cases"])]]
    )


def published_text(report: Mapping[str, Any]) -> str:
    """Ours and the paper's figures side by side, or why they are not shown."""
    published, reasons = report["published"], report["not_comparable"]
    if reasons:
        return f"Not shown, since they cannot be compared: {'; '.join(reasons)}."
    if not published:
        return "None are known for this dataset."
    entries = list(dict.fromkeys([*published.get("dice", {}), *published.get("nsd", {})]))
    per_class = published.get("per_class", {})
    rows = [["mean Dice", _percent(report["mean"]["dice"]), *_cells(published.get("dice", {}), entries)]]
    if published.get("nsd"):
        rows.append(["mean NSD", _percent(report["mean"]["nsd"]), *_cells(published["nsd"], entries)])
    for target in report["targets"] if per_class else []:
        theirs = {entry: figures[target["name"]] for entry, figures in per_class.items() if target["name"] in figures}
        rows.append([f"Dice of {target['name']}", _percent(target["dice"]), *_cells(theirs, entries)])
    table = markdown_table(["in %", "this run", *(f"the paper's: {entry}" for entry in entries)], rows)
    source = f"Source: {published.get('source', 'unknown')}. {published.get('note', '')}".strip()
    return f"{table}\n\n{source} Their trainings, and perhaps their cases, are others than ours."


def _cells(figures: Mapping[str, float], entries: Sequence[str]) -> list[str]:
    return [f"{figures[entry]:.2f}" if entry in figures else "-" for entry in entries]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _plain(value: object) -> str:
    """A value in a cell of a table."""
    return str(value).replace("|", "\\|").replace("\n", " ")
