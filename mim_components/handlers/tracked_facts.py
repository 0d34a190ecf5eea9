"""What MLflow is told of a run beside its numbers: what it is, its data, the machine, its evaluation, its model."""

from __future__ import annotations

import getpass
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ignite
import ignite.distributed as idist
import mlflow
import monai
import torch
from ignite.engine import Engine, Events
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.exceptions import MlflowException
from monai.utils import optional_import

from mim_components import __version__
from mim_components.utils.text import mask_secrets
from mim_components.weights.contract import find_contract, read_facts

logger = logging.getLogger(__name__)
STAGES = {"pretraining": "pre-training"}  # of a workflow; others fine-tune
MODEL_FILES = ("model.pt", "model.json", "encoder.safetensors")
KEPT_TAGS = (
    "bundle",
    "bundle_version",
    "task",
    "preset",
    "mlflow.source.git.commit",
)  # by an evaluation, of its training
MOST_DIGEST = 36  # characters, of MLflow

has_psutil = optional_import("psutil")[1]


def store_of(tracking_uri: str | None, bundle_root: str | Path, run_folder: str | Path) -> str:
    """Address of the store of a run: that of the option, that of MLFLOW_TRACKING_URI, or the default."""
    return tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or default_store(bundle_root, run_folder)


def default_store(bundle_root: str | Path, run_folder: str | Path) -> str:
    """Address of the store of all bundles: beside the folder `bundles`, or in a bundle that lies elsewhere.

    It is in the folder of the run where nothing can be written at that place.

    Example:
        >>> default_store("/read_only/bundles/mim_pretrain", "/runs/1")
        'sqlite:////runs/1/mlruns.db'
    """
    root = Path(bundle_root).absolute()
    place = root.parents[1] if root.parent.name == "bundles" else root
    return f"sqlite:///{(place if os.access(place, os.W_OK) else Path(run_folder).absolute()) / 'mlruns.db'}"


def run_page(place: str, experiment_id: str, run_id: str) -> str:
    """How to view a run: a link, preceded by the command that serves it if the store is not a server.

    Example:
        >>> run_page("https://host:5000/", "3", "0ab")
        'https://host:5000/#/experiments/3/runs/0ab'
        >>> run_page("sqlite:////a/mlruns.db", "3", "0ab").splitlines()[1]
        'http://127.0.0.1:5000/#/experiments/3/runs/0ab'
    """
    page = f"#/experiments/{experiment_id}/runs/{run_id}"
    if place.startswith("http"):
        return f"{place.rstrip('/')}/{page}"
    return f"mlflow ui --backend-store-uri {place}\nhttp://127.0.0.1:5000/{page}"


def run_tags(config: Mapping[str, Any], commit: str) -> dict[str, str]:
    """Tags of a run: what it is, who started it and with what, and the pre-training that a fine-tuning begins with.

    Args:
        config: configuration of the run, with its metadata as `_meta_`.
        commit: commit of the code.

    Example:
        >>> meta = {"bundle": "mim_btcv_segmentation", "workflow": "segmentation", "description": "Abdomen."}
        >>> tags = run_tags({"_meta_": meta, "preset": "tiny"}, "0ab")
        >>> tags["stage"], tags["mlflow.note.content"], tags["preset"]
        ('fine-tuning', 'Abdomen.', 'tiny')
    """
    meta = config.get("_meta_") or {}
    workflow = str(meta.get("workflow", ""))
    tags = {
        "mlflow.note.content": str(meta.get("description", "")),
        "mlflow.user": _user(),
        "mlflow.source.name": _source(),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": commit.removesuffix("-dirty"),
        "bundle": str(meta.get("bundle", "")),
        "bundle_version": str(meta.get("version", "")),
        "task": workflow,
        "stage": STAGES.get(workflow, "fine-tuning") if workflow else "",
        "preset": str(config.get("preset", "")),
        **_pretraining(config.get("pretrained")),
    }
    return {name: value for name, value in tags.items() if value}


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # the user id has no name, for example in a container
        return ""


def _source() -> str:
    """The program, without its options: these are parameters, and may be paths."""
    program = Path(sys.argv[0])
    return "monai.bundle run" if program.parts[-3:-1] == ("monai", "bundle") else program.name


def _pretraining(weights: Any) -> dict[str, str]:
    """Name and MLflow run of the pre-training that wrote the weights, if its folder exists."""
    if not isinstance(weights, str):
        return {}
    with suppress(OSError, ValueError, TypeError):
        state = json.loads((Path(weights).absolute().parents[1] / "run.json").read_text(encoding="utf-8"))
        found = {"pretrained_run": state.get("name"), "pretrained_run_id": state.get("mlflow_run_id")}
        return {name: str(value) for name, value in found.items() if value}
    return {}


def surroundings() -> dict[str, Any]:
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
    """Commit of the package's working tree, with `-dirty` if changed; "unknown" outside a working tree."""
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


def dataset_inputs(config: Mapping[str, Any], facts: Mapping[str, Any]) -> list[DatasetInput]:
    """The data of a run: name, digest, and number of scans for each use.

    Args:
        config: configuration of the run, with its metadata as `_meta_`.
        facts: facts of the run folder.

    Example:
        >>> config = {"_meta_": {"dataset": {"name": "BTCV"}}}
        >>> inputs = dataset_inputs(config, {"data_digest": "0ab", "num_volumes": 30})
        >>> inputs[0].dataset.name, inputs[0].dataset.digest, inputs[0].dataset.profile, inputs[0].tags[0].value
        ('BTCV', '0ab', '{"scans": 30}', 'training')
    """
    meta = config.get("_meta_") or {}
    name = (meta.get("dataset") or {}).get("name") or meta.get("bundle") or "scans"
    training = facts.get("training_cases", facts.get("num_volumes"))
    uses = {"training": (name, training), "validation": (f"{name} validation", facts.get("validation_cases"))}
    digest = str(facts.get("data_digest", ""))[:MOST_DIGEST]
    return [
        DatasetInput(
            Dataset(name, digest, "local", "{}", profile=json.dumps({"scans": count})),
            [InputTag("mlflow.data.context", use)],
        )
        for use, (name, count) in uses.items()
        if count and digest
    ]


class SystemMetrics:
    """MLflow's monitor of processor, memory and disk, and of GPUs where pynvml is installed; without psutil nothing."""

    def __init__(self) -> None:
        self._monitor: Any = None

    def start(self, run_id: str, tracking_uri: str) -> None:
        """Measure every 10 s until `close`, unless MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING is false."""
        wanted = os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower()
        if self._monitor is not None or not has_psutil or wanted == "false":
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)  # it says that a machine has no GPU
        self._monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=tracking_uri)
        self._monitor.start()

    def close(self) -> None:
        """Stop the monitor."""
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            monitor.finish()


def register_model(client: mlflow.MlflowClient, run_id: str, name: str, models: Path) -> str:
    """Make a version of a registered model of the files that the run has in `models`; its contract becomes tags.

    Returns:
        Name and number of the version.
    """
    with suppress(MlflowException):  # it exists
        client.create_registered_model(name)
    facts = read_facts(models / "model.json").get("settings", {})
    contract = find_contract(models / "model.pt")
    values = facts if contract is None else contract[0].to_metadata()
    tags = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    source = f"{client.get_run(run_id).info.artifact_uri}/models"
    version = client.create_model_version(name, source, run_id, tags=tags)
    return f"{name}, version {version.version}"


class TrackEvaluation:
    """Keep the results of an evaluation in MLflow, as a child of the training's run; nothing where that is not there.

    Args:
        output_dir: folder of the training; its `run.json` names the run.
        results: folder with what the evaluation writes.
        tracking_uri: of the store; None = the environment's MLFLOW_TRACKING_URI, or else that of all bundles.
        store_dir: the bundle.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from unittest.mock import patch
        >>> with TemporaryDirectory() as folder, patch("mlflow.MlflowClient") as client:
        ...     _ = Path(folder, "run.json").write_text('{"name": "btcv-1", "mlflow_run_id": "0ab"}')
        ...     _ = Path(folder, "metrics.json").write_text('{"mean": {"dice": 0.75}}')
        ...     TrackEvaluation(folder, results=folder, tracking_uri="sqlite:///mlruns.db")(Engine(lambda *step: None))
        ...     client().create_run.call_args.kwargs["run_name"], client().log_metric.call_args.args[1:]
        ('btcv-1 evaluation', ('mean_dice', 0.75))
    """

    def __init__(
        self, output_dir: str | Path, results: str | Path, tracking_uri: str | None = None, store_dir: str | Path = "."
    ) -> None:
        self.output_dir = Path(output_dir)
        self.results = Path(results)
        self.tracking_uri = store_of(tracking_uri, store_dir, output_dir)

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator, after the handler that writes the results."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Send numbers and files; a store that fails is said, and ends nothing."""
        state: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            state = json.loads((self.output_dir / "run.json").read_text(encoding="utf-8"))
        if idist.get_rank() != 0 or "mlflow_run_id" not in state:
            return
        try:
            page = self._send(state["mlflow_run_id"], f"{state['name']} evaluation")
        except Exception as error:  # MLflow's, SQLAlchemy's, of the network: the results are in their folder
            first = mask_secrets(str(error).splitlines()[0]) if str(error) else type(error).__name__
            logger.warning("The evaluation is not in MLflow, %s: %s", mask_secrets(self.tracking_uri), first)
        else:
            logger.info("The evaluation in MLflow: %s", page)

    def _send(self, training: str, name: str) -> str:
        client = mlflow.MlflowClient(self.tracking_uri)
        parent = client.get_run(training)
        own = {key: parent.data.tags[key] for key in KEPT_TAGS if key in parent.data.tags}
        tags = {**own, "mlflow.parentRunId": training, "stage": "evaluation", "mlflow.user": _user()}
        experiment = parent.info.experiment_id
        run_id = client.create_run(experiment, tags=tags, run_name=name).info.run_id
        for key, value in figures_of(self.results / "metrics.json").items():
            client.log_metric(run_id, key, value)
        client.log_artifacts(run_id, str(self.results), "evaluation")
        client.set_terminated(run_id)
        return run_page(mask_secrets(self.tracking_uri), experiment, run_id)


def figures_of(path: Path) -> dict[str, float]:
    """Numbers of an evaluation's `metrics.json`, those of a part with its name before; none of single scans."""
    figures: dict[str, Any] = {}
    with suppress(OSError):
        figures = json.loads(path.read_text(encoding="utf-8"))
    parts = {"": figures, **{f"{name}_": each for name, each in figures.items() if isinstance(each, dict)}}
    return {
        prefix + name: float(value)
        for prefix, part in parts.items()
        if prefix not in ("settings_", "published_")
        for name, value in part.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
