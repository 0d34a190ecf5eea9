"""From scored scans to the figures of a report, and from those to text."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mim_components.classification.scores import ScoredScan, as_tensors
from mim_components.metrics.classification import (
    CLASS_FIGURES,
    auc_of_classes,
    class_figures,
    confusion_counts,
    summary_figures,
)

SUMMARY = {
    "accuracy": "accuracy",
    "auc_macro": "AUC, one class against the rest, mean of the classes (macro)",
    "auc_micro": "AUC, all decisions together (micro)",
}
READING = (
    "AUC is the area under the ROC curve of a class's probability, for this class against the rest. A class without a "
    "scan, or to which all scans belong, has none; the macro average is then that of the other classes.",
    "No test labels are public: the best model is chosen on these same validation scans, here as in the authors' code.",
)


def evaluation_figures(scans: Sequence[ScoredScan], class_names: Sequence[str]) -> dict[str, Any]:
    """What `metrics.json` holds of the scans; a figure that is not defined is None.

    Args:
        scans: at least one.
        class_names: of the K classes.

    Returns:
        `cases`, `patients`, `accuracy`, `auc_macro`, `auc_micro`, `confusion` (rows are classes), `classes`: by name
        `cases`, `auc`, `sensitivity`, `precision`, `f1`; and `undefined`, the names of figures that are None.
    """
    probabilities, labels = as_tensors(scans)
    predicted = probabilities.argmax(1)
    counts = confusion_counts(predicted, labels, len(class_names))
    columns = {"auc": auc_of_classes(probabilities, labels), **class_figures(predicted, labels, len(class_names))}
    classes = {
        name: {"cases": int(counts[number].sum()), **{key: _or_none(each[number]) for key, each in columns.items()}}
        for number, name in enumerate(class_names)
    }
    summary = {name: _or_none(value) for name, value in summary_figures(probabilities, labels).items()}
    undefined = [name for name, value in summary.items() if value is None]
    undefined += [f"{key} of {name}" for name, row in classes.items() for key, value in row.items() if value is None]
    return {
        "cases": len(scans),
        "patients": len({scan.group for scan in scans}),
        **summary,
        "confusion": counts.tolist(),
        "classes": classes,
        "undefined": undefined,
    }


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def case_table(scans: Sequence[ScoredScan], class_names: Sequence[str]) -> str:
    """CSV with one line per scan: names of its class and of the prediction, and the probability of every class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "patient", "label", "prediction", *(f"p_{name}" for name in class_names), "source"])
    for scan in scans:
        names = class_names[scan.label], class_names[scan.predicted]
        writer.writerow([scan.name, scan.group, *names, *map(probability_text, scan.probabilities), scan.source])
    return text.getvalue()


def probability_text(value: float) -> str:
    """A probability with six digits after the point."""
    return f"{value:.6f}"


def markdown(report: Mapping[str, Any]) -> str:
    """The report as a page: what was evaluated, the figures with the paper's beside them, and how to read them."""
    facts = ", ".join(f"{name} {value}" for name, value in report["facts"].items())
    parts = [
        f"# Evaluation: {report['facts'].get('dataset', 'classification')}",
        f"{report['cases']} validation scans of {report['patients']} patients. {facts}.",
        summary_table(report),
        _published_note(report["published"]),
        "## Classes",
        class_table(report),
        "## Confusion matrix",
        "![confusion matrix](confusion.png)",
        confusion_table(report),
        "## Notes",
        "\n".join(f"- {note}" for note in _notes(report)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary_table(report: Mapping[str, Any]) -> str:
    """Accuracy and AUC in percent, and what the paper reports, in Markdown."""
    published = report["published"]
    columns = list(dict.fromkeys(name for key in ("accuracy", "auc") for name in published.get(key, {})))
    lines = [["", "this run", *(f"paper: {name}" for name in columns)]]
    for key, text in SUMMARY.items():
        theirs = published.get(key.partition("_")[0], {})
        lines.append(
            [text, _percent(report[key]), *(f"{theirs[name]:.2f}" if name in theirs else "" for name in columns)]
        )
    return _table(lines)


def class_table(report: Mapping[str, Any]) -> str:
    """Figures of every class in percent, in Markdown."""
    lines = [["class", "scans", "AUC", *(name.capitalize() for name in CLASS_FIGURES)]]
    for name, row in report["classes"].items():
        lines.append([name, str(row["cases"]), *(_percent(row[key]) for key in ("auc", *CLASS_FIGURES))])
    return _table(lines)


def confusion_table(report: Mapping[str, Any]) -> str:
    """Counts in Markdown; rows are classes, columns predictions."""
    names = list(report["classes"])
    rows = [[name, *map(str, counts)] for name, counts in zip(names, report["confusion"], strict=True)]
    return _table([["class \\ predicted", *names], *rows])


def _published_note(published: Mapping[str, Any]) -> str:
    if not published:
        return ""
    text = f"The columns headed paper are the paper's figures in percent ({published['source']}), not measured here."
    return f"{text} {published.get('note', '')}".strip()


def _notes(report: Mapping[str, Any]) -> list[str]:
    undefined = [f"Not defined: {', '.join(report['undefined'])}."] if report["undefined"] else []
    return [*undefined, *READING]


def _percent(value: float | None) -> str:
    return "undefined" if value is None else f"{100 * value:.2f}"


def _table(lines: Sequence[Sequence[str]]) -> str:
    head, *rows = lines
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(each) + " |" for each in (head, rule, *rows))
