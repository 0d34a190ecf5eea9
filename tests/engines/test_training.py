"""The end of a training: what MLflow knows of it, however it is stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from monai.engines import SupervisedTrainer

from mim_components.data import KeyedDataset, StepLoader
from mim_components.engines import train
from mim_components.handlers import CheckpointHandler, RunTracker, StepMetrics
from mim_components.run.folder import RunFolder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of a store that all tests share, since creating one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlruns.db'}"


def train_two_steps(place: Path, store: str, **options: Any) -> RunFolder:
    """Train one weight for two steps with a tracker, or continue that."""
    network = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters())
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    loader = StepLoader(KeyedDataset([1.0, 2.0], float), num_steps=2, global_batch_size=2)

    def step(engine: Any, batches: Any) -> dict[str, torch.Tensor]:
        list(batches)
        return {"loss": torch.tensor(1.0)}

    trainer = SupervisedTrainer("cpu", 1, loader, network, optimizer, torch.nn.MSELoss(), iteration_update=step)
    folder = RunFolder(place).begin("digest")
    (place / "models").mkdir(exist_ok=True)
    torch.save(network.state_dict(), place / "models" / "model.pt")
    StepMetrics(folder, loader, 1).attach(trainer)
    RunTracker(folder, store, experiment_name="tests", **options).attach(trainer)
    CheckpointHandler(folder, network, optimizer, schedule, loader).attach(trainer)
    train(trainer, folder)
    return folder


def ends(place: Path, store: str) -> tuple[str, str]:
    """Status of the run in its folder and in MLflow."""
    state = json.loads((place / "run.json").read_text())
    return state["status"], mlflow.MlflowClient(store).get_run(state["mlflow_run_id"]).info.status


@pytest.mark.parametrize("method", ["log_artifact", "close"])
def test_a_run_that_is_stopped_at_its_end_is_ended_by_the_same_command(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    stops = []

    def stop(self: RunTracker, what: Any) -> None:
        if what != "KILLED":
            stops.append(what)
            raise KeyboardInterrupt
        close(self, what)

    close = RunTracker.close
    with monkeypatch.context() as stopped:
        stopped.setattr(RunTracker, method, stop)
        with pytest.raises(KeyboardInterrupt):
            train_two_steps(tmp_path / "run", store)
    assert len(stops) == 1 and ends(tmp_path / "run", store) == ("interrupted", "KILLED")
    train_two_steps(tmp_path / "run", store)
    assert ends(tmp_path / "run", store) == ("finished", "FINISHED")
    run_id = json.loads((tmp_path / "run" / "run.json").read_text())["mlflow_run_id"]
    client = mlflow.MlflowClient(store)
    assert "metrics.jsonl" in {each.path for each in client.list_artifacts(run_id)}
    assert [point.step for point in client.get_metric_history(run_id, "loss")] == [1, 2]


def test_the_folder_is_in_use_until_its_run_is_closed(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    close, seen = RunTracker.close, []

    def look(self: RunTracker, status: str) -> None:
        seen.append((self.folder._lock.is_locked, self.folder.state["status"], status))
        close(self, status)

    monkeypatch.setattr(RunTracker, "close", look)
    train_two_steps(tmp_path / "run", store)
    assert seen == [(True, "running", "FINISHED")]


def test_a_finished_training_registers_its_model_when_asked_to(tmp_path: Path, store: str) -> None:
    train_two_steps(tmp_path / "run", store)
    train_two_steps(tmp_path / "run", store, register_model="late")
    assert ends(tmp_path / "run", store) == ("finished", "FINISHED")
    (version,) = mlflow.MlflowClient(store).search_model_versions("name = 'late'")
    assert version.run_id == json.loads((tmp_path / "run" / "run.json").read_text())["mlflow_run_id"]
