"""Facts about a run in MLflow beside its numbers: tags, data, machine, model, and MONAI's own option."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
import torch
from monai.bundle import ConfigWorkflow

from mim_components.handlers import RunTracker, tracked_facts
from mim_components.handlers.tracked_facts import default_store, run_page, run_tags
from mim_components.run.folder import RunFolder
from mim_components.weights import ModelSettings
from tests.small import SMALL_PRETRAIN

META = {"bundle": "mim_btcv_segmentation", "version": "0.3.0", "workflow": "segmentation",
        "description": "Abdomen. The weights are not here.",
        "dataset": {"name": "BTCV"}}  # fmt: skip
BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "mim_pretrain"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of a store that all tests share, since creating one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlruns.db'}"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    """A run that has begun, from the weights of a pre-training."""
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
    facts |= {"metric": "val_mean_dice", "metric_value": 0.75, "step": 40}
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
                "bundle_version": "0.3.0", "mlflow.user": "ann",
                "mlflow.note.content": "Abdomen.\n\nBegins with the encoder of [mim_pretrain_1](#/runs/0ab).",
                "pretrained_run": "mim_pretrain_1", "pretrained_run_id": "0ab"}  # fmt: skip
    assert {name: run.data.tags.get(name) for name in expected} == expected
    link = f"/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}?workflowType=machine_learning"
    assert page == f"mlflow ui --backend-store-uri {store}\nhttp://127.0.0.1:5000{link}"
    assert not run.data.params.keys() & {"max_epochs", "epoch_length", "tracking_uri", "register_model"}
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
    assert version.description == "Step 40, val_mean_dice 0.7500"
    model = client.get_registered_model("spleen model")
    assert model.description == "Abdomen." and model.tags == {"bundle": META["bundle"], "task": "segmentation"}


def test_the_experiment_of_a_bundle_is_described(folder: RunFolder, store: str) -> None:
    client = mlflow.MlflowClient(store)
    for name, described in ((META["bundle"], "Abdomen."), ("of my own", None)):
        tracker = RunTracker(folder, store, experiment_name=str(name))
        tracker.start(engine())
        tracker.close()
        experiment = client.get_experiment_by_name(str(name))
        assert experiment is not None and experiment.tags.get("mlflow.note.content") == described
        folder.state.pop("mlflow_run_id")


def test_weights_are_kept_when_asked_for(folder: RunFolder, store: str) -> None:
    tracker = RunTracker(folder, store, experiment_name="tests")
    tracker.start(engine())
    tracker.close()
    assert mlflow.MlflowClient(store).list_artifacts(folder.state["mlflow_run_id"], "models") == []


def models_of(folder: RunFolder, store: str) -> list[str]:
    """Registered models that have a version of the run, one name per version."""
    versions = mlflow.MlflowClient(store).search_model_versions(f"run_id = '{folder.state['mlflow_run_id']}'")
    return sorted(version.name for version in versions)


def test_a_model_that_cannot_be_kept_is_noted_and_kept_by_the_same_command(
    folder: RunFolder, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError("no space left for artifacts")

    tracker = RunTracker(folder, store, experiment_name="tests", register_model="second try")
    tracker.start(engine())
    with monkeypatch.context() as broken:
        broken.setattr(mlflow.MlflowClient, "log_artifact", full)
        tracker.close()
    client, run_id = mlflow.MlflowClient(store), folder.state["mlflow_run_id"]
    before = client.get_run(run_id).info
    assert before.status == "FINISHED" and models_of(folder, store) == []
    (note,) = folder.notes
    assert "the weights are not kept with the run: no space left for artifacts" in note and "same command" in note
    for _ in range(2):  # the second has nothing left to do
        RunTracker(folder, store, experiment_name="tests", register_model="second try").send_rest(engine())
    assert models_of(folder, store) == ["second try"]
    assert client.list_artifacts(run_id, "models") and len(folder.notes) == 1
    after = client.get_run(run_id).info
    assert (after.status, after.end_time) == ("FINISHED", before.end_time)
    # it is not registered twice, even if the answer to the first attempt got lost
    folder.update(mlflow_models=[])
    RunTracker(folder, store, experiment_name="tests", register_model="second try").send_rest(engine())
    assert models_of(folder, store) == ["second try"]


def test_a_model_asked_for_when_the_run_is_finished_is_kept(folder: RunFolder, store: str) -> None:
    tracker = RunTracker(folder, store, experiment_name="tests")
    tracker.start(engine())
    tracker.close()
    folder.update(status="finished")
    client, run_id = mlflow.MlflowClient(store), folder.state["mlflow_run_id"]
    RunTracker(folder, store, experiment_name="tests", log_model=True).send_rest(engine())
    assert len(client.list_artifacts(run_id, "models")) == 2 and models_of(folder, store) == []
    for name in ("a late one", "another", "a late one"):
        RunTracker(folder, store, experiment_name="tests", register_model=name).send_rest(engine())
    assert models_of(folder, store) == ["a late one", "another"]
    assert json.loads((folder.path / "run.json").read_text())["mlflow_closed"]
    assert client.get_run(run_id).info.status == "FINISHED" and folder.notes == []


def test_a_run_that_cannot_be_closed_is_closed_by_the_same_command(
    folder: RunFolder, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*args: Any) -> None:
        raise OSError("no answer")

    tracker = RunTracker(folder, store, experiment_name="tests")
    tracker.start(engine())
    with monkeypatch.context() as broken:
        broken.setattr(mlflow.MlflowClient, "set_terminated", silent)
        tracker.close()
    client, run_id = mlflow.MlflowClient(store), folder.state["mlflow_run_id"]
    assert client.get_run(run_id).info.status == "RUNNING" and "the same command closes it" in folder.notes[0]
    RunTracker(folder, store, experiment_name="tests").send_rest(engine())
    assert client.get_run(run_id).info.status == "FINISHED"


def test_there_is_no_version_without_weights(folder: RunFolder, store: str) -> None:
    shutil.rmtree(folder.path / "models")
    tracker = RunTracker(folder, store, experiment_name="tests", register_model="nothing")
    tracker.start(engine())
    tracker.close()
    assert "has none of model.pt" in folder.notes[0] and models_of(folder, store) == []


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


def test_one_store_for_all_bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = {default_store(tmp_path / "bundles" / name, tmp_path / "run") for name in ("one", "two")}
    assert stores == {f"sqlite:///{tmp_path / 'mlruns.db'}"}
    assert default_store(tmp_path, tmp_path / "run") == f"sqlite:///{tmp_path / 'mlruns.db'}"
    assert run_page("https://***@host") == "https://host"
    assert run_page("sqlite:////a/mlruns.db") == "mlflow ui --backend-store-uri sqlite:////a/mlruns.db"
    monkeypatch.setattr(tracked_facts.sys, "argv", ["/x/monai/bundle/__main__.py", "run", "--dataset_dir", "/data/ann"])
    assert run_tags({}, "0ab-dirty")["mlflow.source.name"] == "monai.bundle run"
    assert run_tags({"pretrained": "none"}, "0ab")["mlflow.source.git.commit"] == "0ab"


@pytest.mark.parametrize(
    ("file", "own"),
    [
        ("models/encoder.safetensors", True),
        ("models/encoder_best.safetensors", True),
        ("models/model.pt", True),
        ("checkpoints/step_00000500.pt", True),
        ("models/encoder_tiny.safetensors", False),
        ("downloads/encoder.safetensors", False),
    ],
)
def test_only_the_weights_that_a_run_writes_are_credited_to_it(tmp_path: Path, file: str, own: bool) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"name": "mine", "mlflow_run_id": "0ab"}))
    tags = run_tags({"_meta_": META, "pretrained": str(tmp_path / file)}, "0ab")
    assert tags.get("pretrained_run") == ("mine" if own else None)
    assert ("Begins with" in tags["mlflow.note.content"]) == own


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("file", "handlers"), [("train", "train::handlers"), ("inference", "handlers")])
def test_monais_own_option_is_taken(tmp_path: Path, file: str, handlers: str) -> None:
    """MONAI's handlers expect one tensor as the loss of a step, and would log an empty run for an inference."""
    options: dict[str, Any] = {"output_dir": str(tmp_path / "out")}
    if file == "train":
        options |= {"tracking_uri": f"sqlite:///{tmp_path / 'mlruns.db'}", **SMALL_PRETRAIN}
    workflow = ConfigWorkflow(
        str(BUNDLE / "configs" / f"{file}.json"), logging_file=False, tracking="mlflow", **options
    )  # fmt: skip
    workflow.initialize()
    last = len(workflow.parser[handlers]) - 1
    assert workflow.parser[f"{handlers}::{last}"]["_target_"] == "MLFlowHandler"
    assert workflow.parser.get_parsed_content(f"{handlers}::{last}") is None
