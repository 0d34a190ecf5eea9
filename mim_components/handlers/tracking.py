"""MLflow tracking of one run: MONAI's handler, plus unique runs, resume, failure and the whole configuration."""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ignite
import ignite.distributed as idist
import mlflow
import monai
import torch
from ignite.engine import Engine, Events
from mlflow.exceptions import MlflowException
from mlflow.telemetry import set_telemetry_client
from monai.handlers import MLFlowHandler
from sqlalchemy.exc import SQLAlchemyError

from mim_components import __version__
from mim_components.runs.folder import RunFolder

logger = logging.getLogger(__name__)
QUIET = ("alembic", "mlflow.store.db", "mlflow.tracking")


class RunTracker:
    """Track a run in MLflow: parameters, configuration, every collected number, pictures; FAILED when it crashes.

    A continued run goes on in its MLflow run. Only the first process tracks. A store that fails
    never stops the training: it is noted, and tracking ends.

    Args:
        folder: of the run; its name names the MLflow run.
        tracking_uri: of the server or store; None = a sqlite file `mlruns.db` in `store_dir`.
        store_dir: where that file and its artifacts lie.
        experiment_name: MLflow's experiment.
        parameters: further parameters to log; nested values are logged as text.
    """

    def __init__(
        self,
        folder: RunFolder,
        tracking_uri: str | None = None,
        store_dir: str | Path = ".",
        experiment_name: str = "mim_pretrain",
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.parameters = dict(parameters or {})
        self.experiment_name = experiment_name
        self.tracking_uri = tracking_uri or f"sqlite:///{Path(store_dir).absolute() / 'mlruns.db'}"
        self.handler: MLFlowHandler | None = None

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, after `StepMetrics`; whoever runs the trainer closes the run."""
        if idist.get_rank() != 0:
            return
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.log_step)

    def start(self, engine: Engine) -> None:
        """Open the MLflow run: the one of this folder, or a new one."""
        for name in QUIET:
            logging.getLogger(name).setLevel(logging.WARNING)
        _set_defaults()
        self._attempt(lambda: self._open(engine))

    def _open(self, engine: Engine) -> None:
        self.handler = MLFlowHandler(
            self.tracking_uri, iteration_log=False, epoch_log=False, experiment_name=self.experiment_name,
            run_name=self.folder.name,
        )  # fmt: skip
        earlier = self.folder.state.get("mlflow_run_id")
        if earlier and not self._reopen(earlier):
            logger.warning("MLflow run %s is not in %s: the run goes on in a new one.", earlier, self.tracking_uri)
            earlier = None
        self.handler.start(engine)
        if not earlier:
            parameters = {name: _text(value) for name, value in (self.parameters | _surroundings()).items()}
            self.handler._log_params(parameters)
            self.client.log_dict(self.run_id, self.folder.state["config"], "configuration.json")
            self.folder.update(mlflow_run_id=self.run_id)
        logger.info("MLflow run %s in %s", self.folder.name, self.tracking_uri)

    def _attempt(self, action: Callable[[], object]) -> None:
        """Do it; when the store fails, say so and train on without: `metrics.jsonl` has every number."""
        try:
            action()
        except (MlflowException, OSError, SQLAlchemyError) as error:
            self.handler = None
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            self.folder.note(
                f"Tracking stopped, the training goes on: {self.tracking_uri}: {first} "
                f"All numbers are in {self.folder.path / 'metrics.jsonl'}."
            )

    def _reopen(self, run_id: str) -> bool:
        """Go on in an earlier MLflow run; False where the store does not have it."""
        assert self.handler is not None
        try:
            self.client.update_run(run_id, status="RUNNING")
            handler: Any = self.handler
            handler.cur_run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
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
        """Send numbers of a step; does nothing in other processes than the first."""
        handler = self.handler
        if handler is not None:
            self._attempt(lambda: handler._log_metrics(dict(numbers), step=step))

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Keep a file with the run; does nothing in other processes than the first."""
        if self.handler is not None:
            self._attempt(lambda: self.client.log_artifact(self.run_id, str(path), folder))

    def close(self, status: str = "FINISHED") -> None:
        """Close the run with an MLflow status."""
        if self.handler is not None:
            self.handler.run_finish_status = status
            self._attempt(self.handler.close)
            self.handler = None


def _set_defaults() -> None:
    """Ask a dead server briefly, and report nothing to MLflow's makers, unless the environment says otherwise."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    set_telemetry_client()  # reads the variable again: importing MONAI has imported MLflow before us


def _surroundings() -> dict[str, Any]:
    """Versions, commit and machine, as parameters."""
    versions = {"torch": torch.__version__, "monai": monai.__version__, "ignite": ignite.__version__}
    return {
        **{f"version_{name}": version for name, version in versions.items()},
        "version_mim_components": __version__,
        "version_python": platform.python_version(),
        "git_commit": git_commit(),
        "devices": idist.get_world_size(),
    }


def git_commit() -> str:
    """Commit of the working tree the package lies in, with `-dirty` when changed; "unknown" outside of one."""
    command = [
        "git",
        "-C",
        os.path.dirname(os.path.abspath(__file__)),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
    ]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
