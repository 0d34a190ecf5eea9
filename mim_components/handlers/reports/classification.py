"""Files of a classification's evaluation or inference: from scored scans to figures, text and tables."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
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
from mim_components.handlers.saving.results import Results
from mim_components.metrics.classification import (
    CLASS_FIGURES,
    ClassScores,
    ScoredScan,
    as_tensors,
    auc_of_classes,
    class_figures,
    confusion_counts,
    decollated,
    summary_figures,
)
from mim_components.utils.files import write_text_safely
from mim_components.utils.text import counted, markdown_table
from mim_components.visualize.confusion import confusion_figure
from mim_components.visualize.sheet import save_figure
from mim_components.weights.trained import TrainedNetwork

logger = logging.getLogger(__name__)

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
    """Figures of the scans for `metrics.json`; undefined ones are None.

    Args:
        scans: at least one.
        class_names: names of the K classes.

    Returns:
        `cases`, `patients`, `accuracy`, `auc_macro`, `auc_micro`, `confusion` (rows are classes), `classes`: by name
        `cases`, `auc`, `sensitivity`, `precision`, `f1`; and `undefined`, the names of figures that are None.
    """
    probabilities, labels = as_tensors(scans)
    predicted = probabilities.argmax(1)
    counts = confusion_counts(predicted, labels, len(class_names))
    columns = {"auc": auc_of_classes(probabilities, labels), **class_figures(predicted, labels, len(class_names))}
    classes = {
        name: {"cases": int(counts[number].sum()), **{key: known(each[number]) for key, each in columns.items()}}
        for number, name in enumerate(class_names)
    }
    summary = {name: known(value) for name, value in summary_figures(probabilities, labels).items()}
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
    """A probability with six decimals."""
    return f"{value:.6f}"


def markdown(report: Mapping[str, Any]) -> str:
    """The report as a page: what was evaluated, the figures with the paper's beside them, and how to read them."""
    facts = ", ".join(f"{name} {value}" for name, value in report["facts"].items() if value is not None)
    intro = f"{counted(report['cases'], 'validation scan')} of {counted(report['patients'], 'patient')}. {facts}."
    sections = {
        "": [intro, summary_table(report), _published_note(report)],
        "Classes": [class_table(report)],
        "Confusion matrix": ["![confusion matrix](confusion.png)", confusion_table(report)],
    }
    return page(f"Evaluation: {report['facts'].get('dataset', 'classification')}", sections, _notes(report))


def summary_table(report: Mapping[str, Any]) -> str:
    """Accuracy and AUC in percent, and what the paper reports, in Markdown."""
    published = report["published"]
    columns = list(dict.fromkeys(name for key in ("accuracy", "auc") for name in published.get(key, {})))
    rows = []
    for key, text in SUMMARY.items():
        theirs = published.get(key.partition("_")[0], {})
        rows.append(
            [
                text,
                percent(report[key], absent="undefined"),
                *(f"{theirs[name]:.2f}" if name in theirs else "" for name in columns),
            ]
        )
    return markdown_table(["in %", "this run", *(f"paper: {name}" for name in columns)], rows)


def class_table(report: Mapping[str, Any]) -> str:
    """Figures of every class in percent, in Markdown."""
    rows = [
        [name, row["cases"], *(percent(row[key], absent="undefined") for key in ("auc", *CLASS_FIGURES))]
        for name, row in report["classes"].items()
    ]
    return markdown_table(["class", "scans", "AUC (%)", *(f"{name.capitalize()} (%)" for name in CLASS_FIGURES)], rows)


def confusion_table(report: Mapping[str, Any]) -> str:
    """Counts in Markdown; rows are classes, columns predictions."""
    names = list(report["classes"])
    rows = [[name, *counts] for name, counts in zip(names, report["confusion"], strict=True)]
    return markdown_table(["class \\ predicted", *names], rows)


def _published_note(report: Mapping[str, Any]) -> str:
    published = report["published"]
    if report.get("not_comparable"):
        return (
            f"The paper's figures are not shown, since they are not comparable: {'; '.join(report['not_comparable'])}."
        )
    if not published:
        return ""
    text = f"The columns headed paper are the paper's figures in percent ({published['source']}), not measured here."
    return f"{text} {published.get('note', '')}".strip()


def _notes(report: Mapping[str, Any]) -> list[str]:
    undefined = [f"Not defined: {', '.join(report['undefined'])}."] if report["undefined"] else []
    return [*report.get("notes", ()), *undefined, *READING]


class ClassReport:
    """At the end, write `metrics.json`, `cases.csv`, `report.md` and `confusion.png`, and log the tables.

    Args:
        scores: metric attached to the same evaluator earlier.
        class_names: names of the classes.
        output_dir: folder for the files; created if missing.
        published: section `dataset.published` of a bundle's metadata, in percent.
        facts: further facts for the report, such as `dataset`, `fold`, `weights`.
        trained: network that was evaluated; None = nothing is known about its training.
        prepared: cases of the evaluation, among which those of the training are looked for.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> scan = {"name": "1", "group": "1", "source": "1", "label": 0, "pred": [0.75, 0.25]}
        >>> scores = ClassScores()
        >>> scores.update([scan, {**scan, "name": "2", "label": 1}])
        >>> _ = scores.compute()
        >>> with TemporaryDirectory() as folder:
        ...     ClassReport(scores, ["healthy", "ill"], folder)(Engine(lambda engine, batch: None))
        ...     sorted(path.name for path in Path(folder).iterdir())
        ...     print(Path(folder, "cases.csv").read_text(), end="")
        ['cases.csv', 'confusion.png', 'metrics.json', 'report.md']
        case,patient,label,prediction,p_healthy,p_ill,source
        1,1,healthy,healthy,0.750000,0.250000,1
        2,1,ill,healthy,0.750000,0.250000,1
    """

    def __init__(
        self,
        scores: ClassScores,
        class_names: Sequence[str],
        output_dir: str | Path,
        published: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
        trained: TrainedNetwork | None = None,
        prepared: PreparedCases | None = None,
    ) -> None:
        self.scores = scores
        self.class_names = tuple(class_names)
        self.output_dir = Path(output_dir)
        self.published = dict(published or {})
        self.facts = {**(facts or {}), **training_facts(trained)}
        self.seen = scans_of_training(trained, prepared)

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the files, in the first process."""
        if idist.get_rank() != 0:
            return
        reasons = why_not_comparable(self.published, self.facts, self.seen) if self.published else []
        notes = training_notes(self.seen, len(self.scores.scans))
        report: dict[str, Any] = {
            "facts": self.facts,
            **evaluation_figures(self.scores.scans, self.class_names),
            "published": {} if reasons else self.published,
            "not_comparable": reasons,
            "in_training": list(self.seen),
            "notes": notes,
            "version": __version__,
        }
        for note in notes:
            logger.warning("%s", note)
        title = f"{self.facts.get('dataset', 'Classification')}: accuracy {100 * report['accuracy']:.2f} %"
        save_figure(
            confusion_figure(np.array(report["confusion"]), self.class_names, title), self.output_dir / "confusion.png"
        )
        tables = {"cases.csv": case_table(self.scores.scans, self.class_names)}
        log = f"{summary_table(report)}\n{class_table(report)}"
        write_report(self.output_dir, report, markdown(report), tables, log)


class SavePredictions:
    """Write `predictions.csv`: every scan with the most probable class and the probability of every class.

    The table is rewritten after every scan, so that an interrupted run leaves the finished ones.

    Reads batch and output of an evaluator, decollated and after softmax: `pred` `(K,)` and `source`.

    Args:
        class_names: names of the classes.
        output_dir: folder for the file, and for `results.csv`, which also names bad scans; created if missing.
        on_bad: what to do with a bad scan, also one with a probability that is not finite: "stop" ends, "exclude" goes
            on, "report" goes on and raises at the end.

    Raises:
        ValueError: when called, with `on_bad="stop"`, a probability that is not finite; names the scan.
        BadVolumesError: at the end, with `on_bad="report"`: lists all bad scans.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> evaluator = Engine(lambda engine, scans: [{"pred": torch.tensor([0.25, 0.75])} for scan in scans])
        >>> with TemporaryDirectory() as folder:
        ...     SavePredictions(["healthy", "ill"], folder).attach(evaluator)
        ...     _ = evaluator.run([[{"source": "ct.nii.gz"}]])
        ...     print(Path(folder, "predictions.csv").read_text(), end="")
        source,prediction,p_healthy,p_ill
        ct.nii.gz,ill,0.250000,0.750000
    """

    def __init__(self, class_names: Sequence[str], output_dir: str | Path, on_bad: str = "exclude") -> None:
        self.class_names = tuple(class_names)
        self.results = Results(Path(output_dir), on_bad)
        self.path = Path(output_dir) / "predictions.csv"
        self._rows: list[list[str]] = []

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.summarize)

    def __call__(self, engine: Engine) -> None:
        """Add the scans of a batch."""
        for item in decollated(engine):
            if item.get("cause"):
                self.results.add(str(item["name"]), str(item["source"]), cause=str(item["cause"]))
                continue
            probabilities = torch.as_tensor(item["pred"]).double().flatten()
            if not bool(torch.isfinite(probabilities).all()):
                cause = f"the network's output is not finite: {probabilities.tolist()}."
                if self.results.on_bad == "stop":
                    raise ValueError(f"{item['source']}: {cause}")
                self.results.add(str(item.get("name", item["source"])), str(item["source"]), cause=cause)
                continue
            predicted = self.class_names[int(probabilities.argmax())]
            texts = [probability_text(value) for value in probabilities.tolist()]
            self._rows.append([str(item["source"]), predicted, *texts])
            self.results.add(str(item.get("name", item["source"])), str(item["source"]), [self.path])
            logger.info("%s: %s (%s)", item["source"], predicted, ", ".join(self._named(texts)))
        self._write()

    def _named(self, texts: Sequence[str]) -> list[str]:
        return [f"{name} {text}" for name, text in zip(self.class_names, texts, strict=True)]

    def _write(self) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["source", "prediction", *(f"p_{name}" for name in self.class_names)])
        writer.writerows(self._rows)
        write_text_safely(self.path, text.getvalue())

    def summarize(self, engine: Engine) -> None:
        """Log where the table is."""
        self.results.finish(f"scans are in {self.path.name}")
