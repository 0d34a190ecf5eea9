"""Tracking of evaluations in MLflow, each as a child of the run of its training."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from time import time
from typing import Any

import ignite.distributed as idist
import mlflow
from ignite.engine import Engine, Events
from mlflow.entities import Metric, Param

from mim_components.data.prepare.cases import PreparedCases
from mim_components.data.volumes import PreparedDataset
from mim_components.handlers.spool import tracked_name
from mim_components.handlers.tracked_facts import (
    NOTE,
    dataset_input,
    first_line,
    keep_quiet,
    read_state,
    run_of_weights,
    run_page,
    started_by,
    store_of,
)
from mim_components.utils.text import mask_secrets

logger = logging.getLogger(__name__)
KEPT_TAGS = ("bundle", "bundle_version", "task", "preset", "mlflow.source.git.commit")  # copied from the training
SETTINGS = ("settings", "facts", "data")  # parts of a `metrics.json` that say what was measured
ROWS = ("targets", "classes", "levels", "pairs")  # parts that hold one row of figures per item


class TrackEvaluation:
    """Log the results of an evaluation to MLflow, as a child of the run that wrote the weights; without it, do nothing.

    Args:
        output_dir: output folder of the training; its `run.json` names the run if the results do not name the weights.
        results: folder of the evaluation's results.
        tracking_uri: address of the store; None = the environment's MLFLOW_TRACKING_URI, or else that of all bundles.
        store_dir: folder of the bundle.
        prepared: evaluated data, validation cases or all volumes; None = not logged.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from unittest.mock import patch
        >>> with TemporaryDirectory() as folder, patch("mlflow.MlflowClient") as client:
        ...     _ = Path(folder, "run.json").write_text('{"name": "btcv-1", "mlflow_run_id": "0ab"}')
        ...     _ = Path(folder, "metrics.json").write_text('{"mean": {"dice": 0.75}}')
        ...     TrackEvaluation(folder, results=folder, tracking_uri="sqlite:///mlruns.db")(Engine(lambda *step: None))
        ...     client().create_run.call_args.kwargs["run_name"], client().log_batch.call_args.kwargs["metrics"][0].key
        ('btcv-1 evaluation', 'mean_dice')
    """

    def __init__(
        self,
        output_dir: str | Path,
        results: str | Path,
        tracking_uri: str | None = None,
        store_dir: str | Path = ".",
        prepared: PreparedCases | PreparedDataset | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.results = Path(results)
        self.tracking_uri = store_of(tracking_uri, store_dir, output_dir)
        self.prepared = prepared
        self._started = _milliseconds()

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator, after the handler that writes the results."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.COMPLETED, self)

    def start(self, engine: Engine) -> None:
        """Record the start time."""
        self._started = _milliseconds()

    def __call__(self, engine: Engine) -> None:
        """Send figures and files; if the store fails, log a warning and go on."""
        if idist.get_rank() != 0:
            return
        try:
            figures, settings = results_of(self.results / "metrics.json")
            origin = settings.get("weights")
            # such as "/runs/1/models/model.pt, step 9, val_mean_dice 0.7500"
            state = run_of_weights(origin.rpartition(", step ")[0] or origin) if origin else read_state(self.output_dir)
            if "mlflow_run_id" not in state:
                logger.info("The evaluation is not in MLflow: no run is known that wrote its weights.")
                return
            page = self._send(state["mlflow_run_id"], f"{state['name']} evaluation", figures, settings)
        except Exception as error:  # of MLflow, SQLAlchemy or the network; the results are in their folder anyway
            place = mask_secrets(self.tracking_uri)
            logger.warning("The evaluation was not logged to MLflow, %s: %s", place, first_line(error))
        else:
            logger.info("The evaluation in MLflow: %s", page)

    def _send(self, training: str, name: str, figures: dict[str, float], settings: dict[str, Any]) -> str:
        keep_quiet()
        client = mlflow.MlflowClient(self.tracking_uri)
        parent = client.get_run(training)
        tags = {
            **{key: parent.data.tags[key] for key in KEPT_TAGS if key in parent.data.tags},
            **started_by(),
            "mlflow.parentRunId": training,
            "stage": "evaluation",
            NOTE: f"Evaluation of {settings['weights']}." if "weights" in settings else "",
        }
        experiment = parent.info.experiment_id
        run_id = client.create_run(experiment, self._started, tags, run_name=name).info.run_id
        client.log_batch(
            run_id,
            metrics=[Metric(key, value, _milliseconds(), 0) for key, value in figures.items()],
            params=[Param(key, str(value)) for key, value in settings.items()],
        )
        if self.prepared is not None:
            count = len(getattr(self.prepared, "validation", self.prepared))
            data = settings.get("dataset") or tags.get("bundle", "scans")
            client.log_inputs(run_id, [dataset_input(data, self.prepared.digest, count, "evaluation")])
        client.log_artifacts(run_id, str(self.results), "evaluation")
        client.set_terminated(run_id)
        return run_page(mask_secrets(self.tracking_uri), experiment, run_id)


def _milliseconds() -> int:
    return int(time() * 1000)


def results_of(path: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures of an evaluation's `metrics.json` by name, without those of single scans, and its settings.

    Floats are figures; integers are counts, and belong to the settings.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> report = {"settings": {"fold": 0}, "mean": {"dice": 0.5}, "targets": [{"name": "spleen", "dice": 0.5}]}
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "metrics.json")
        ...     _ = path.write_text(json.dumps(report))
        ...     results_of(path)
        ({'mean_dice': 0.5, 'dice_spleen': 0.5}, {'fold': 0})
    """
    report: dict[str, Any] = {}
    with suppress(OSError):
        report = json.loads(path.read_text(encoding="utf-8"))
    figures = {**report, **{f"mean_{key}": value for key, value in report.get("mean", {}).items()}}
    for row, values in _rows(report):
        figures |= {f"{key}_{row}": value for key, value in values.items() if key != "tolerance_mm"}
    settings = {key: value for part in SETTINGS for key, value in report.get(part, {}).items()}
    settings |= {key: value for key, value in report.items() if isinstance(value, (int, str))}
    return (
        {tracked_name(key): value for key, value in figures.items() if isinstance(value, float)},
        {key: value for key, value in settings.items() if _is_setting(value)},
    )


def _is_setting(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(each, (int, float)) for each in value)
    return isinstance(value, (int, float, str))


def _rows(report: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the name of every class, level or pair of levels, and its values; those of `content` say so."""
    for part in ROWS:
        rows = report.get(part, [])
        if isinstance(rows, Mapping):
            yield from rows.items()
            continue
        for row in rows:
            row = {**row, **{f"content_{key}": value for key, value in (row.get("content") or {}).items()}}
            if "parent_level" in row:
                yield f"level{row['parent_level']}_{row['parent_level'] + 1}", row
            else:
                yield str(row["name"]) if "name" in row else f"level{row['level']}", row
