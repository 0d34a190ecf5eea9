"""MLflow tracking of one run: MONAI's handler, plus unique runs, resume, failure and the whole configuration."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic, time
from typing import Any

import ignite.distributed as idist
import mlflow
from ignite.engine import Engine, Events
from mlflow.exceptions import MlflowException
from monai.handlers import MLFlowHandler

from mim_components.handlers.spool import Record, Spool, deliver, with_history
from mim_components.handlers.tracked_facts import (
    NOTE,
    SystemMetrics,
    check_sqlite,
    dataset_inputs,
    first_line,
    keep_model,
    keep_quiet,
    purpose,
    run_page,
    run_tags,
    store_of,
    surroundings,
    usable_experiment,
)
from mim_components.run.configuration import current_options
from mim_components.run.folder import RunFolder
from mim_components.run.stores import check_tracking_uri
from mim_components.utils.text import mask_secrets

logger = logging.getLogger(__name__)
QUIET = ("alembic", "mlflow.store.db", "mlflow.tracking")
NO_PARAMETERS = ("tracking_uri", "experiment_name", "log_model", "register_model")  # of tracking, not of the training
RETRY_SECONDS = 60.0  # between two attempts to reach a store that does not answer


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
        tags: tags of the MLflow run that replace those of `run_tags`.

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
        self.tags: dict[str, str] = {}
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
        """Do what is left of a finished run: send records, keep a model asked for since, close the MLflow run."""
        if idist.get_rank() != 0:
            return
        if self.spool.records() or self._model_is_left or not self.folder.state.get("mlflow_closed", True):
            self.folder.update(mlflow_closed=False)
            self._begin(engine)
            self.close("FINISHED")
            self.folder.update()

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
        check_sqlite(self.tracking_uri)
        experiment = usable_experiment(self.tracking_uri, self.experiment_name)
        handler = self.handler = self._make_handler(experiment)
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
            for name, value in (run_tags(config, known["git_commit"]) | self.tags).items():
                self.client.set_tag(self.run_id, name, value)
            if inputs := dataset_inputs(config, self.folder.facts):
                self.client.log_inputs(self.run_id, inputs)
            self.folder.update(mlflow_run_id=self.run_id, mlflow_models=[])
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
            level = logging.DEBUG if self._waiting else logging.WARNING  # once per failure
            logger.log(
                level,
                "Tracking stopped, the training continues: %s: %s Numbers wait in %s until it answers.",
                self.place,
                first_line(error),
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
        """Try once more to send waiting records, close the run with an MLflow status, and report what was not sent.

        What is done stands in `folder.state`, which the caller writes.
        """
        if self._engine is None:
            return
        if self.handler is None or self._waiting:
            self._connect(seconds=60.0)
        self._system.close()
        if self.handler is not None and status == "FINISHED" and self._model_is_left:
            self._keep_model()
        closed = self.handler is not None and self._attempt(lambda: self._end(status))
        closed = self.folder.state["mlflow_closed"] = closed or "mlflow_run_id" not in self.folder.state
        count = len(self.spool.records())
        if count:
            self.folder.note(
                f"{self.place} did not answer: {count} records wait in {self.spool.path}, the same command "
                f"sends them. All numbers are in {self.folder.path / 'metrics.jsonl'}."
            )
        elif status == "FINISHED" and not closed:
            self.folder.note(f"{self.place} did not answer: the run is still open there, the same command closes it.")
        if self._lost:
            self.folder.note(f"{self._lost} records for MLflow are lost: {self.spool.path} could not be written.")
        self.handler = self._engine = None

    def _end(self, status: str) -> None:
        handler: Any = self.handler
        run = handler.cur_run.info  # as it was when it was opened: a finished one keeps its time
        self.client.set_terminated(run.run_id, status, run.end_time if run.status == "FINISHED" else None)
        handler.cur_run = None
        handler.close()

    @property
    def _model_is_left(self) -> bool:
        """Whether the model is to be kept, and is not yet."""
        return self.log_model and self.register_model not in self.folder.state.get("mlflow_models", [])

    def _keep_model(self) -> None:
        """Keep the model with the run; if that fails, note it, since the run is closed nevertheless."""
        try:
            version = keep_model(self.client, self.run_id, self.folder.path / "models", self.register_model)
        except Exception as error:  # as in `_attempt`
            cause = first_line(error)
            self.folder.note(
                f"{self.place}: the weights are not kept with the run: {cause} The same command tries again."
            )
            return
        self.folder.state["mlflow_models"] = [*self.folder.state.get("mlflow_models", []), self.register_model]
        logger.info("%s in MLflow", f"Registered as {version}" if version else "The weights are")

    def _send(self, record: Record) -> None:
        if self._engine is None:
            return
        if (self.handler is None or self._waiting) and monotonic() >= self._next:
            self._connect()
        if self.handler is None or not self._attempt(lambda: deliver(self.client, self.run_id, [record])):
            self._keep(record)

    def _keep(self, record: Record) -> None:
        self._waiting = True
        try:
            self.spool.append(record)
        except OSError as error:
            self._lost += 1
            if self._lost == 1:  # it recurs at every step
                logger.error("%s: a record for MLflow is lost: %s", self.spool.path, error.strerror)

    def _empty_spool(self, until: float) -> None:
        """Send waiting records, numbers first, until the time `until`; the rest stays."""
        waiting = sorted(self.spool.records(), key=lambda record: "file" in record)
        count = len(waiting)
        try:
            while waiting and monotonic() < until:
                few = 1 if "file" in waiting[0] else 50
                deliver(self.client, self.run_id, waiting[:few])
                del waiting[:few]
        finally:
            self._waiting = bool(waiting)
            self._next = monotonic() + RETRY_SECONDS
            if len(waiting) < count:
                self.spool.replace(waiting)
                logger.info("Tracking: %d of %d records that waited are sent.", count - len(waiting), count)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
