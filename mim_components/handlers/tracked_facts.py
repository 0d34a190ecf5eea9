"""Facts about a run sent to MLflow beside its numbers: description, data, machine and model."""

from __future__ import annotations

import getpass
import json
import logging
import os
import platform
import re
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import ignite
import ignite.distributed as idist
import mlflow
import monai
import torch
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.exceptions import MlflowException
from mlflow.telemetry import set_telemetry_client
from monai.utils import optional_import

from mim_components import __version__
from mim_components.utils.text import mask_secrets
from mim_components.weights.contract import InputContract, find_contract, read_facts

logger = logging.getLogger(__name__)
STAGES = {"pretraining": "pre-training"}  # by workflow; others fine-tune
PRODUCTS = ("models/encoder.safetensors", "models/encoder_best.safetensors", "models/model.pt", "checkpoints/step_*.pt")
MODEL_FILES = ("model.pt", "model.json", "encoder.safetensors")
NOTE = "mlflow.note.content"  # the tag that MLflow shows as description
MOST_DIGEST = 36  # characters, a limit of MLflow
SQLITE_SECONDS = 5.0  # for a file that another process has locked

has_psutil = optional_import("psutil")[1]


def keep_quiet() -> None:
    """Keep MLflow from printing addresses and sending telemetry, unless the environment says otherwise."""
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # the URL contains the password
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    set_telemetry_client()  # reads the variable again: importing MONAI has imported MLflow before us


def store_of(tracking_uri: str | None, bundle_root: str | Path, run_folder: str | Path) -> str:
    """Address of the store of a run: that of the option, that of MLFLOW_TRACKING_URI, or the default."""
    return tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or default_store(bundle_root, run_folder)


def default_store(bundle_root: str | Path, run_folder: str | Path) -> str:
    """Address of the store of all bundles: beside the folder `bundles`, or in a bundle that lies elsewhere.

    It is in the run folder if that place is not writable.

    Example:
        >>> default_store("/read_only/bundles/mim_pretrain", "/runs/1")
        'sqlite:////runs/1/mlruns.db'
    """
    root = Path(bundle_root).absolute()
    place = root.parents[1] if root.parent.name == "bundles" else root
    return f"sqlite:///{(place if os.access(place, os.W_OK) else Path(run_folder).absolute()) / 'mlruns.db'}"


def check_sqlite(uri: str) -> None:
    """Create the folder of the file, and fail at once if it cannot be opened: MLflow would try for minutes."""
    if uri.startswith("sqlite:///"):
        file = uri.removeprefix("sqlite:///")
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(file, timeout=SQLITE_SECONDS)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()


def usable_experiment(uri: str, wanted: str) -> str:
    """The name of an experiment, with a number appended if the experiment of that name was deleted."""
    client = mlflow.MlflowClient(uri)
    for name in (wanted, *(f"{wanted}_{number}" for number in range(2, 1000))):
        there = client.get_experiment_by_name(name)
        if there is None or there.lifecycle_stage == mlflow.entities.LifecycleStage.ACTIVE:
            break
    if name != wanted:
        logger.warning("MLflow's experiment %s was deleted: the run goes to %s.", wanted, name)
    return name


def first_line(error: Exception) -> str:
    """What an error of the store says, in one line and without a password."""
    return mask_secrets(str(error).splitlines()[0]) if str(error) else type(error).__name__


def run_page(place: str, experiment_id: str = "", run_id: str = "") -> str:
    """How to view a run: a link, preceded by the command that serves it if the store is not a server.

    Args:
        place: address of the store without user and password, which a browser asks for itself.
        experiment_id: MLflow's id of the experiment.
        run_id: MLflow's id of the run; without it, the page of all runs.

    Example:
        >>> run_page("https://***@host:5000/", "3", "0ab")
        'https://host:5000/#/experiments/3/runs/0ab?workflowType=machine_learning'
        >>> print(run_page("sqlite:////my data/mlruns.db", "3", "0ab"))
        mlflow ui --backend-store-uri 'sqlite:////my data/mlruns.db'
        http://127.0.0.1:5000/#/experiments/3/runs/0ab?workflowType=machine_learning
    """
    # without the last part MLflow 3 shows its pages for language models, where a run is an "evaluation"
    page = f"/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning" if run_id else ""
    if place.startswith("http"):
        return re.sub(r"(?<=://)[^/]*@", "", place).rstrip("/") + page
    command = f"mlflow ui --backend-store-uri {shlex.quote(place)}"
    return f"{command}\nhttp://127.0.0.1:5000{page}" if page else command


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
    pretraining = _pretraining(config.get("pretrained"))
    tags = {
        NOTE: _description(meta, pretraining),
        **started_by(),
        "mlflow.source.git.commit": commit.removesuffix("-dirty"),
        "bundle": str(meta.get("bundle", "")),
        "bundle_version": str(meta.get("version", "")),
        "task": workflow,
        "stage": STAGES.get(workflow, "fine-tuning") if workflow else "",
        "preset": str(config.get("preset", "")),
        **pretraining,
    }
    return {name: value for name, value in tags.items() if value}


def purpose(meta: Mapping[str, Any]) -> str:
    """Purpose of a bundle: the first sentence of its description; the others are about its files."""
    first = str(meta.get("description", "")).partition(". ")[0].rstrip(".")
    return f"{first}." if first else ""


def _description(meta: Mapping[str, Any], pretraining: Mapping[str, str]) -> str:
    """Description of a run in Markdown, as MLflow renders it."""
    parts = [purpose(meta)]
    if name := pretraining.get("pretrained_run"):
        run_id = pretraining.get("pretrained_run_id")
        parts.append(f"Begins with the encoder of {f'[{name}](#/runs/{run_id})' if run_id else name}.")
    return "\n\n".join(part for part in parts if part)


def started_by() -> dict[str, str]:
    """Tags of a run that say who started it, and with which program."""
    return {"mlflow.user": _user(), "mlflow.source.name": _source(), "mlflow.source.type": "LOCAL"}


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # the user id has no name, for example in a container
        return ""


def _source() -> str:
    """The program, without its options: they are logged as parameters, and may contain paths."""
    program = Path(sys.argv[0])
    return "monai.bundle run" if program.parts[-3:-1] == ("monai", "bundle") else program.name


def _pretraining(weights: Any) -> dict[str, str]:
    """Name and MLflow run of the pre-training that wrote the weights, if its folder exists."""
    if not isinstance(weights, str):
        return {}
    state = run_of_weights(weights)
    found = {"pretrained_run": state.get("name"), "pretrained_run_id": state.get("mlflow_run_id")}
    return {name: str(value) for name, value in found.items() if value}


def run_of_weights(weights: str | Path) -> dict[str, Any]:
    """State of the run that wrote weights; empty if its folder is gone, or if no run names its weights like this.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as place:
        ...     _ = Path(place, "run.json").write_text('{"name": "btcv-1"}')
        ...     [run_of_weights(f"{place}/models/{name}") for name in ("model.pt", "encoder_tiny.safetensors")]
        [{'name': 'btcv-1'}, {}]
    """
    path = Path(weights).absolute()
    return read_state(path.parents[1]) if any(path.match(product) for product in PRODUCTS) else {}


def read_state(folder: Path) -> dict[str, Any]:
    """State of the run in a folder; empty if there is none, or if its `run.json` is damaged."""
    with suppress(OSError, ValueError):
        state = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return state if isinstance(state, dict) else {}
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
    """Commit of the package's working tree, with `-dirty` if changed; "unknown" where git does not have the package.

    It does not in an environment inside the repository of another project, which ignores it.
    """
    folder, name = os.path.split(os.path.abspath(__file__))
    try:
        _git(folder, "ls-files", "--error-unmatch", name)
        return _git(folder, "describe", "--always", "--dirty", "--abbrev=40")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(folder: str, *command: str) -> str:
    found = subprocess.run(["git", "-C", folder, *command], capture_output=True, text=True, check=True, timeout=10)
    return found.stdout.strip()


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
    name = facts.get("dataset") or (meta.get("dataset") or {}).get("name") or meta.get("bundle") or "scans"
    training = facts.get("training_cases", facts.get("num_volumes"))
    uses = {"training": (name, training), "validation": (f"{name} validation", facts.get("validation_cases"))}
    digest = str(facts.get("data_digest", ""))
    return [dataset_input(name, digest, count, use) for use, (name, count) in uses.items() if count and digest]


def dataset_input(name: str, digest: str, count: int, use: str) -> DatasetInput:
    """Scans of a run, with their number, for a use such as "training"."""
    dataset = Dataset(name, digest[:MOST_DIGEST], "local", "{}", profile=json.dumps({"scans": count}))
    return DatasetInput(dataset, [InputTag("mlflow.data.context", use)])


class SystemMetrics:
    """MLflow's monitor of CPU, memory, disk and, if pynvml is installed, GPUs; does nothing without psutil."""

    def __init__(self) -> None:
        self._monitor: Any = None

    def start(self, run_id: str, tracking_uri: str) -> None:
        """Measure every 10 s until `close`, unless MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING is false."""
        wanted = os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower()
        if self._monitor is not None or not has_psutil or wanted == "false":
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)  # it would warn that the machine has no GPU
        self._monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=tracking_uri)
        self._monitor.start()

    def close(self) -> None:
        """Stop the monitor."""
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            monitor.finish()


def keep_model(client: mlflow.MlflowClient, run_id: str, models: Path, name: str | None) -> str:
    """Keep the run's files in `models` with it and, if there is a name, register them under it.

    Returns:
        Name and number of the version, or "".

    Raises:
        FileNotFoundError: there are no such files.
    """
    paths = [models / each for each in MODEL_FILES if (models / each).is_file()]
    if not paths:
        raise FileNotFoundError(f"{models} has none of {', '.join(MODEL_FILES)}.")
    for path in paths:
        client.log_artifact(run_id, str(path), "models")
    return "" if name is None else register_model(client, run_id, name, models)


def register_model(client: mlflow.MlflowClient, run_id: str, name: str, models: Path) -> str:
    """Create a version of a registered model from the run's files in `models`, unless it has one of this run.

    The contract of the weights becomes its tags.

    Returns:
        Name and number of the version.
    """
    for there in client.search_model_versions(f"run_id = '{run_id}'"):
        if there.name == name:
            return f"{name}, version {there.version}"
    facts = read_facts(models / "model.json")
    contract = find_contract(models / "model.pt")
    values = facts.get("settings", {}) if contract is None else contract[0].to_metadata()
    tags = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    run = client.get_run(run_id)
    with suppress(MlflowException):  # it exists
        own: dict[str, Any] = {key: run.data.tags[key] for key in ("bundle", "task") if key in run.data.tags}
        client.create_registered_model(name, own, run.data.tags.get(NOTE, "").partition("\n")[0])
    version = client.create_model_version(
        name, f"{run.info.artifact_uri}/models", run_id, tags=tags, description=_of_training(facts, contract)
    )
    return f"{name}, version {version.version}"


def _of_training(facts: Mapping[str, Any], contract: tuple[InputContract, Path] | None) -> str:
    """Description of a version: step and validation metric."""
    if contract is not None:
        return f"Step {contract[0].step}"
    value = facts.get("metric_value")
    return f"Step {facts.get('step')}" + (f", {facts.get('metric')} {value:.4f}" if value is not None else "")
