"""What MLflow knows of a run beside its numbers: tags, data, machine, evaluation, model, and MONAI's own option."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
import torch
from monai.bundle import ConfigWorkflow

from mim_components.handlers import RunTracker, TrackEvaluation, tracked_facts
from mim_components.handlers.tracked_facts import default_store, figures_of, run_page, run_tags
from mim_components.run.folder import RunFolder
from mim_components.weights import ModelSettings
from tests.small import SMALL_PRETRAIN

META = {"bundle": "mim_btcv_segmentation", "version": "0.3.0", "workflow": "segmentation", "description": "Abdomen.",
        "dataset": {"name": "BTCV"}}  # fmt: skip
BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "mim_pretrain"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of a store that all tests share: making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlruns.db'}"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    """A run that is begun, from the weights of a pre-training."""
    before = tmp_path / "pretraining"
    (before / "models").mkdir(parents=True)
    (before / "run.json").write_text(json.dumps({"name": "mim_pretrain_1", "mlflow_run_id": "0ab"}))
    run = RunFolder(tmp_path / "run").begin("0123456789" * 6)
    pretrained = str(before / "models" / "encoder.safetensors")
    run.state["config"] = {"_meta_": META, "preset": "nano", "pretrained": pretrained}
    run.facts |= {"data_digest": "0123456789" * 6, "training_cases": 24, "validation_cases": 6}
    models = run.path / "models"
    models.mkdir()
    torch.save({"weight": torch.ones(1)}, models / "model.pt")
    facts = ModelSettings("mim_btcv_segmentation", {"preset": "nano", "spacing": [1.5, 1.5, 2.0]}, ["spleen"]).as_dict()
    (models / "model.json").write_text(json.dumps(facts))
    yield run
    run.release()


def engine() -> Any:
    return SimpleNamespace(state=SimpleNamespace(iteration=0, epoch_length=4, metrics={}))


def test_a_run_says_what_it_is_and_of_what(folder: RunFolder, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracked_facts.getpass, "getuser", lambda: "ann")
    tracker = RunTracker(folder, store, experiment_name="tests", register_model="spleen model")
    tracker.start(engine())
    page = tracker.page
    tracker.close()
    client = mlflow.MlflowClient(store)
    run = client.get_run(folder.state["mlflow_run_id"])
    expected = {"bundle": META["bundle"], "task": "segmentation", "stage": "fine-tuning", "preset": "nano",
                "bundle_version": "0.3.0", "mlflow.note.content": "Abdomen.", "mlflow.user": "ann",
                "pretrained_run": "mim_pretrain_1", "pretrained_run_id": "0ab"}  # fmt: skip
    assert {name: run.data.tags.get(name) for name in expected} == expected
    assert page.endswith(f"http://127.0.0.1:5000/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}")
    found = [(each.dataset.name, each.dataset.profile, each.tags[0].value) for each in run.inputs.dataset_inputs]
    assert found == [("BTCV", '{"scans": 24}', "training"), ("BTCV validation", '{"scans": 6}', "validation")]
    assert run.inputs.dataset_inputs[0].dataset.digest == ("0123456789" * 6)[:36]
    # the weights, as a version of a registered model with its contract
    assert {Path(each.path).name for each in client.list_artifacts(run.info.run_id, "models")} == {
        "model.pt",
        "model.json",
    }
    version = client.get_model_version("spleen model", "1")
    assert version.run_id == run.info.run_id and version.tags == {"preset": "nano", "spacing": "[1.5, 1.5, 2.0]"}


def test_weights_are_kept_when_asked_for(folder: RunFolder, store: str) -> None:
    tracker = RunTracker(folder, store, experiment_name="tests")
    tracker.start(engine())
    tracker.close()
    assert mlflow.MlflowClient(store).list_artifacts(folder.state["mlflow_run_id"], "models") == []


def test_the_machine_is_measured(folder: RunFolder, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psutil")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    tracker = RunTracker(folder, store, experiment_name="tests")
    tracker.start(engine())
    end = time.monotonic() + 20
    client, run_id = mlflow.MlflowClient(store), tracker.run_id
    while not (names := {each for each in client.get_run(run_id).data.metrics if each.startswith("system/")}):
        assert time.monotonic() < end
        time.sleep(0.05)
    tracker.close()
    assert "system/cpu_utilization_percentage" in names


def test_an_evaluation_is_a_child_of_its_training(
    folder: RunFolder, store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = RunTracker(folder, store, experiment_name="tests")
    tracker.start(engine())
    tracker.close()
    results = tmp_path / "run" / "evaluation"
    results.mkdir()
    report = {
        "settings": {"seed": 0},
        "mean": {"dice": 0.5, "nsd": None},
        "per_case": [],
        "cases": 6,
        "published": {"x": 1},
    }
    (results / "metrics.json").write_text(json.dumps(report))
    TrackEvaluation(folder.path, results, store)(engine())
    client = mlflow.MlflowClient(store)
    training = client.get_run(folder.state["mlflow_run_id"])
    children = client.search_runs([training.info.experiment_id], f"tags.mlflow.parentRunId = '{training.info.run_id}'")
    assert len(children) == 1 and children[0].data.metrics == {"mean_dice": 0.5, "cases": 6.0}
    assert children[0].data.tags["stage"] == "evaluation" and children[0].data.tags["preset"] == "nano"
    assert [each.path for each in client.list_artifacts(children[0].info.run_id, "evaluation")] == [
        "evaluation/metrics.json"
    ]
    assert figures_of(tmp_path / "absent.json") == {}
    TrackEvaluation(tmp_path, results, store)(engine())  # of no training
    (tmp_path / "run.json").write_text(json.dumps({"name": "gone", "mlflow_run_id": "0" * 32}))
    TrackEvaluation(tmp_path, results, store)(engine())
    assert "The evaluation is not in MLflow" in caplog.text


def test_one_store_for_all_bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = {default_store(tmp_path / "bundles" / name, tmp_path / "run") for name in ("one", "two")}
    assert stores == {f"sqlite:///{tmp_path / 'mlruns.db'}"}
    assert default_store(tmp_path, tmp_path / "run") == f"sqlite:///{tmp_path / 'mlruns.db'}"
    assert run_page("https://***@host", "3", "0ab") == "https://***@host/#/experiments/3/runs/0ab"
    monkeypatch.setattr(tracked_facts.sys, "argv", ["/x/monai/bundle/__main__.py", "run", "--dataset_dir", "/data/ann"])
    assert run_tags({}, "0ab-dirty")["mlflow.source.name"] == "monai.bundle run"
    assert run_tags({"pretrained": "none"}, "0ab")["mlflow.source.git.commit"] == "0ab"


@pytest.mark.filterwarnings("ignore")
def test_monais_own_option_is_taken(tmp_path: Path) -> None:
    """Its handlers took the losses of a step for a tensor, and crashed."""
    workflow = ConfigWorkflow(
        config_file=str(BUNDLE / "configs" / "train.json"), logging_file=False, tracking="mlflow",
        output_dir=str(tmp_path / "out"), tracking_uri=f"sqlite:///{tmp_path / 'mlruns.db'}", **SMALL_PRETRAIN,
    )  # fmt: skip
    workflow.initialize()
    last = len(workflow.parser["train::handlers"]) - 1
    assert workflow.parser[f"train::handlers::{last}"]["_target_"] == "MLFlowHandler"
    assert workflow.parser.get_parsed_content(f"train::handlers::{last}") is None
