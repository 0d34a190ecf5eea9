"""Write what an evaluation or an inference found when it is complete."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events

from mim_components import __version__
from mim_components.classification.scores import ClassScores, decollated
from mim_components.handlers.reports.classification import (
    case_table,
    class_table,
    evaluation_figures,
    markdown,
    probability_text,
    summary_table,
)
from mim_components.inference.results import Results
from mim_components.utils.files import write_text_safely
from mim_components.visualize.confusion import confusion_figure
from mim_components.visualize.sheet import save_figure

logger = logging.getLogger(__name__)


class ClassReport:
    """At the end, write `metrics.json`, `cases.csv`, `report.md` and `confusion.png`, and log the tables.

    Args:
        scores: attached to the same evaluator before.
        class_names: of the classes.
        output_dir: folder for the files; made when missing.
        published: section `dataset.published` of a bundle's metadata, in percent.
        facts: what else the report says, such as `dataset`, `fold`, `weights`.
    """

    def __init__(
        self,
        scores: ClassScores,
        class_names: Sequence[str],
        output_dir: str | Path,
        published: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.scores = scores
        self.class_names = tuple(class_names)
        self.output_dir = Path(output_dir)
        self.published = dict(published or {})
        self.facts = dict(facts or {})

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the files; the first process does."""
        if idist.get_rank() != 0:
            return
        report = {
            "facts": self.facts,
            **evaluation_figures(self.scores.scans, self.class_names),
            "published": self.published,
            "version": __version__,
        }
        files = {
            "metrics.json": json.dumps(report, indent=1, allow_nan=False, default=str) + "\n",
            "cases.csv": case_table(self.scores.scans, self.class_names),
            "report.md": markdown(report),
        }
        for name, text in files.items():
            write_text_safely(self.output_dir / name, text)
        title = f"{self.facts.get('dataset', 'Classification')}: accuracy {100 * report['accuracy']:.2f} %"
        save_figure(
            confusion_figure(np.array(report["confusion"]), self.class_names, title), self.output_dir / "confusion.png"
        )
        logger.info("%s\n%s", summary_table(report), class_table(report))
        logger.info("Report: %s", self.output_dir / "report.md")


class SavePredictions:
    """Write `predictions.csv`: every scan with the most probable class and the probability of every class.

    The table is written anew after every scan, so that an interrupted run leaves those that are done.

    Reads batch and output of an evaluator, decollated and after softmax: `pred` `(K,)` and `source`.

    Args:
        class_names: of the classes.
        output_dir: folder for the file, and for `results.csv`, which also names bad scans; made when missing.
        on_bad: "report" raises for bad scans, when all are done.

    Raises:
        ValueError: when called, a probability that is not finite; names the scan.
        BadVolumesError: at the end, with `on_bad="report"`: lists all bad scans.
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
                raise ValueError(f"{item['source']}: the network's output is not finite: {probabilities.tolist()}.")
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
        """Say where the table is."""
        self.results.finish(f"scans are in {self.path.name}")
