"""MLflow tracking of one run: MONAI's handler, plus unique runs, resume, failure and the whole configuration."""

from __future__ import annotations

import json
import logging
import math
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from time import monotonic, time
from typing import Any

import ignite.distributed as idist
import mlflow
from ignite.engine import Engine, Events
from mlflow.exceptions import MlflowException
from monai.handlers import MLFlowHandler

from mim_components.handlers.spool import Record, Spool, with_history
from mim_components.handlers.tracked_facts import (
    MODEL_FILES,
    NOTE,
    SystemMetrics,
    dataset_inputs,
    keep_quiet,
    purpose,
    register_model,
    run_page,
    run_tags,
    store_of,
    surroundings,
)
from mim_components.run.configuration import current_options
from mim_components.run.folder import RunFolder
from mim_components.run.stores import check_tracking_uri
from mim_components.utils.text import mask_secrets

logger = logging.getLogger(__name__)
QUIET = ("alembic", "mlflow.store.db", "mlflow.tracking")
NO_PARAMETERS = ("tracking_uri", "experiment_name", "log_model", "register_model")  # of tracking, not of the training
RETRY_SECONDS = 60.0  # between two attempts to reach a store that does not answer
MOST_METRICS = 1000  # in one request to MLflow
SQLITE_SECONDS = 5.0  # for a file that another process has locked


class RunTracker:
    """Track a run in MLflow: parameters, configuration, all collected numbers, pictures; FAILED if it crashes.

    Parameters are the options of the bundle and the facts of the folder; nested values are logged as text.
    A resumed run continues its MLflow run. Only the first process tracks. A store that refuses, hangs or fails never
    stops the training: numbers wait in `tracking_spool.jsonl` of the run's folder and are sent when it answers again.
    It is retried at intervals such that retrying takes at most a twentieth of the time.

    Args:
        folder: run folder; its name names the MLflow run.
        tracking_uri: server or store; None = the environment's MLFLOW_TRACKING_URI, or else a sqlite file
            `mlruns.db` beside the folder `bundles`, or in `store_dir` if that lies elsewhere; in the run folder
            if that place is not writable.
        store_dir: the bundle.
        experiment_name: MLflow's experiment.
        log_model: keep the weights with the run when it is finished.
        register_model: name of a registered model that gets a version of them; their contract becomes its tags.

    Attributes:
        place: the address without user and password, for what people read.
        page: how to view the run in MLflow.

    Raises:
        ValueError: `tracking_uri` can never work; names the forms that do.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as place:
        ...     RunTracker(RunFolder(place), "https://me:secret@mlflow.example.org").place
        'https://***@mlflow.example.org'
    """

    def __init__(
        self,
        folder: RunFolder,
        tracking_uri: str | None = None,
        store_dir: str | Path = ".",
        experiment_name: str = "mim_pretrain",
        log_model: bool = False,
        register_model: str | None = None,
    ) -> None:
        self.folder = folder
        self.experiment_name = experiment_name
        self.log_model = log_model or register_model is not None
        self.register_model = register_model
        self.tracking_uri = store_of(tracking_uri, store_dir, folder.path)
        check_tracking_uri(self.tracking_uri)
        self.place = mask_secrets(self.tracking_uri)
        self.handler: MLFlowHandler | None = None
        self.spool = Spool(folder.path / "tracking_spool.jsonl")
        self.page = run_page(self.place)
        self._system = SystemMetrics()
        self._engine: Any = None  # while the run is tracked
        self._waiting = False  # records in the spool
        self._lost = 0  # records that could not be written there
        self._next = 0.0  # time of the next attempt

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, after `StepMetrics`; whoever runs the trainer closes the run."""
        self.folder.tracker = self
        if idist.get_rank() != 0:
            return
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.log_step)

    def start(self, engine: Engine) -> None:
        """Open the MLflow run, that of this folder or a new one, and send what an interrupted run left."""
        try:
            self.spool.rewind(engine.state.iteration)
        except OSError as error:  # such as a full disk: repeated steps are sent twice
            logger.warning("%s", error.strerror)
        self._begin(engine)
        self._connect()

    def send_rest(self, engine: Engine) -> None:
        """Send what a finished run could not send."""
        if idist.get_rank() == 0 and self.spool.records():
            self._begin(engine)
            self.close("FINISHED")

    def _begin(self, engine: Engine) -> None:
        for name in QUIET:
            logging.getLogger(name).setLevel(logging.WARNING)
        keep_quiet()
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # we retry ourselves
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
        self._engine, self._next, self._waiting = engine, 0.0, self.spool.path.exists()

    def _connect(self, seconds: float = 10.0) -> None:
        """Open the run if it is not open, then send waiting records for at most `seconds`."""
        if self.handler is None and not self._attempt(self._open):
            return
        if self._waiting:
            self._attempt(lambda: self._empty_spool(monotonic() + seconds))

    def _open(self) -> None:
        _check_sqlite(self.tracking_uri)
        handler = self.handler = self._make_handler(self._usable_experiment())
        earlier = self.folder.state.get("mlflow_run_id")
        if earlier and not self._reopen(earlier):
            logger.warning(
                "MLflow run %s is no longer in %s: the run continues in a new one, with all its numbers.",
                earlier,
                self.place,
            )
            earlier = None
            self.spool.replace(with_history(self.spool.records(), self.folder.path))
            self._waiting = self.spool.path.exists()
        handler.start(self._engine)
        if not earlier:
            known = current_options() | self.folder.facts | surroundings()
            parameters = {name: _text(value) for name, value in known.items() if name not in NO_PARAMETERS}
            handler._delete_exist_param_in_dict(parameters)  # an attempt before this one may have sent them
            handler._log_params(parameters)
            config = self.folder.state["config"]
            self._describe_experiment(config.get("_meta_") or {})
            self.client.log_dict(self.run_id, config, "configuration.json")
            for name, value in run_tags(config, known["git_commit"]).items():
                self.client.set_tag(self.run_id, name, value)
            if inputs := dataset_inputs(config, self.folder.facts):
                self.client.log_inputs(self.run_id, inputs)
            self.folder.update(mlflow_run_id=self.run_id)
        self._system.start(self.run_id, self.tracking_uri)
        self.page = run_page(self.place, handler.cur_run.info.experiment_id, self.run_id)  # type: ignore[attr-defined]
        logger.info("MLflow run %s in %s", self.folder.name, self.place)

    def _make_handler(self, experiment: str) -> MLFlowHandler:
        """MONAI's handler for our address, which it would override with that of the environment."""
        variable = os.environ.pop("MLFLOW_TRACKING_URI", None)
        try:
            handler = MLFlowHandler(
                self.tracking_uri, iteration_log=False, epoch_log=False, experiment_name=experiment,
                run_name=self.folder.name,
            )  # fmt: skip
        finally:
            if variable is not None:
                os.environ["MLFLOW_TRACKING_URI"] = variable
        handler.default_tracking_params = []  # our one epoch of all steps, which `max_steps` and `epochs` say better
        return handler

    def _describe_experiment(self, meta: Mapping[str, Any]) -> None:
        """Describe the experiment named after the bundle, unless it has a description."""
        experiment: Any = self.handler and self.handler.experiment
        if experiment.name == meta.get("bundle") and NOTE not in experiment.tags:
            self.client.set_experiment_tag(experiment.experiment_id, NOTE, purpose(meta))

    def _attempt(self, action: Callable[[], object]) -> bool:
        """Run an action; if it fails, for whatever reason, say so and do without the store for a while."""
        start = monotonic()
        try:
            action()
        except Exception as error:  # of MLflow, SQLAlchemy, alembic, sqlite or the network: none stops a training
            self.handler = None
            self._next = monotonic() + max(RETRY_SECONDS, 19 * (monotonic() - start))
            first = mask_secrets(str(error).splitlines()[0]) if str(error) else type(error).__name__
            level = logging.DEBUG if self._waiting else logging.WARNING  # once per failure
            logger.log(
                level,
                "Tracking stopped, the training continues: %s: %s Numbers wait in %s until it answers.",
                self.place,
                first,
                self.spool.path,
            )
            return False
        return True

    def _reopen(self, run_id: str) -> bool:
        """Continue an earlier MLflow run; False if the store does not have it."""
        assert self.handler is not None
        try:
            run = self.client.get_run(run_id)
            active = mlflow.entities.LifecycleStage.ACTIVE
            experiment = self.client.get_experiment(run.info.experiment_id)
            if run.info.lifecycle_stage != active or experiment.lifecycle_stage != active:
                return False
            self.client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        handler: Any = self.handler
        handler.cur_run = run
        return True

    def _usable_experiment(self) -> str:
        """The name of the experiment, with a number appended if the experiment of that name was deleted."""
        client = mlflow.MlflowClient(self.tracking_uri)
        names = (self.experiment_name, *(f"{self.experiment_name}_{number}" for number in range(2, 1000)))
        for name in names:
            there = client.get_experiment_by_name(name)
            if there is None or there.lifecycle_stage == mlflow.entities.LifecycleStage.ACTIVE:
                break
        if name != self.experiment_name:
            logger.warning("MLflow's experiment %s was deleted: the run goes to %s.", self.experiment_name, name)
        return name

    @property
    def client(self) -> mlflow.MlflowClient:
        """MLflow's client; only while a run is open."""
        assert self.handler is not None
        return self.handler.client

    @property
    def run_id(self) -> str:
        """MLflow's id of the run; only while a run is open."""
        assert self.handler is not None and self.handler.cur_run is not None
        return str(self.handler.cur_run.info.run_id)

    def log_step(self, engine: Any) -> None:
        """Send the numbers that `StepMetrics` collected for this step."""
        if engine.state.step_metrics is not None:
            self.log_numbers(engine.state.step_metrics, engine.state.iteration)

    def log_numbers(self, numbers: Mapping[str, float], step: int) -> None:
        """Send the finite numbers of a step; does nothing except in the first process."""
        finite = {name: float(value) for name, value in numbers.items() if math.isfinite(value)}
        self._send({"step": step, "time": int(time() * 1000), "numbers": finite})

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Keep a file with the run; does nothing except in the first process."""
        step = 0 if self._engine is None else self._engine.state.iteration
        self._send({"step": step, "file": str(path), "folder": folder})

    def close(self, status: str = "FINISHED") -> None:
        """Try once more to send waiting records, close the run with an MLflow status, and report what was not sent."""
        if self._engine is None:
            return
        if self.handler is None or self._waiting:
            self._connect(seconds=60.0)
        self._system.close()
        if self.handler is not None and status == "FINISHED" and self.log_model:
            self._attempt(self._keep_model)
        if self.handler is not None:
            self.handler.run_finish_status = status
            self._attempt(self.handler.close)
        count = len(self.spool.records())
        if count:
            self.folder.note(
                f"{self.place} did not answer: {count} records wait in {self.spool.path}, the same command "
                f"sends them. All numbers are in {self.folder.path / 'metrics.jsonl'}."
            )
        if self._lost:
            self.folder.note(f"{self._lost} records for MLflow are lost: {self.spool.path} could not be written.")
        self.handler = self._engine = None

    def _keep_model(self) -> None:
        models = self.folder.path / "models"
        for path in (models / name for name in MODEL_FILES):
            if path.is_file():
                self.client.log_artifact(self.run_id, str(path), "models")
        if self.register_model is not None:
            version = register_model(self.client, self.run_id, self.register_model, models)
            logger.info("Registered in MLflow: %s", version)

    def _send(self, record: Record) -> None:
        if self._engine is None:
            return
        if (self.handler is None or self._waiting) and monotonic() >= self._next:
            self._connect()
        if self.handler is None or not self._attempt(lambda: self._deliver([record])):
            self._keep(record)

    def _keep(self, record: Record) -> None:
        self._waiting = True
        try:
            self.spool.append(record)
        except OSError as error:
            self._lost += 1
            if self._lost == 1:  # it recurs at every step
                logger.error("%s: a record for MLflow is lost: %s", self.spool.path, error.strerror)

    def _deliver(self, records: Sequence[Record]) -> None:
        """Send records; one that was sent before is not duplicated, since it keeps its time."""
        metrics = [
            mlflow.entities.Metric(name, value, record["time"], record["step"])
            for record in records
            for name, value in record.get("numbers", {}).items()
        ]
        for first in range(0, len(metrics), MOST_METRICS):
            self.client.log_batch(self.run_id, metrics=metrics[first : first + MOST_METRICS])
        for record in records:
            if Path(record.get("file", "")).is_file():
                self.client.log_artifact(self.run_id, record["file"], record["folder"])

    def _empty_spool(self, until: float) -> None:
        """Send waiting records, numbers first, until the time `until`; the rest stays."""
        waiting = sorted(self.spool.records(), key=lambda record: "file" in record)
        count = len(waiting)
        try:
            while waiting and monotonic() < until:
                few = 1 if "file" in waiting[0] else 50
                self._deliver(waiting[:few])
                del waiting[:few]
        finally:
            self._waiting = bool(waiting)
            self._next = monotonic() + RETRY_SECONDS
            if len(waiting) < count:
                self.spool.replace(waiting)
                logger.info("Tracking: %d of %d records that waited are sent.", count - len(waiting), count)


def _check_sqlite(uri: str) -> None:
    """Create the folder of the file, and fail at once if it cannot be opened: MLflow would try for minutes."""
    if uri.startswith("sqlite:///"):
        file = uri.removeprefix("sqlite:///")
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(file, timeout=SQLITE_SECONDS)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
