"""An evaluation in MLflow: a child of its training, with figures, settings and files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest

from mim_components.data import PreparedCases
from mim_components.handlers import TrackEvaluation
from mim_components.handlers.tracked_evaluation import results_of

TARGETS = [{"name": "spleen", "dice": 0.25, "nsd": None, "tolerance_mm": 3.0, "cases": 6}, {"name": "a+b", "dice": 1.0}]
SEGMENTATION = {
    "settings": {"dataset": "BTCV", "weights": "model.pt, step 9", "spacing": [1, 2], "datalist": None, "overlap": 0.7},
    "mean": {"dice": 0.5, "nsd": None, "cases": 6},
    "targets": TARGETS,
    "per_case": [{"case": "p1", "mean_dice": 0.5}],
    "published": {"dice": {"MiM 10k": 96.99}},
}
CLASSIFICATION = {
    "facts": {"fold": 0},
    "cases": 6,
    "accuracy": 0.5,
    "auc_macro": None,
    "classes": {"NCP": {"cases": 2, "f1": 0.75}},
}
PRETRAINING = {
    "weights": "encoder.safetensors, step 9",
    "tokens": 27,
    "hu_window": [-1000, 1000],
    "data": {"origin": "validation data cts", "excluded": ["ct.nii.gz: damaged"]},
    "levels": [{"level": 2, "mse": 0.125, "native_size": [96, 96, 96], "content": {"mse": 0.5}}],
    "pairs": [
        {"parent_level": 1, "accuracy": 0.5, "children_per_crop": 4, "content": {"accuracy": 0.75}},
        {"parent_level": 2, "content": None},
    ],
}


@pytest.mark.parametrize(
    ("report", "figures", "settings"),
    [
        (
            SEGMENTATION,
            {"mean_dice": 0.5, "dice_spleen": 0.25, "dice_a_b": 1.0},
            {"dataset": "BTCV", "weights": "model.pt, step 9", "spacing": [1, 2], "overlap": 0.7},
        ),
        (CLASSIFICATION, {"accuracy": 0.5, "f1_NCP": 0.75}, {"fold": 0, "cases": 6}),
        (
            PRETRAINING,
            {
                "mse_level2": 0.125,
                "content_mse_level2": 0.5,
                "accuracy_level1_2": 0.5,
                "content_accuracy_level1_2": 0.75,
            },
            {"origin": "validation data cts", "weights": "encoder.safetensors, step 9", "tokens": 27},
        ),
    ],
    ids=["segmentation", "classification", "pretraining"],
)
def test_figures_and_settings(
    tmp_path: Path, report: dict[str, Any], figures: dict[str, float], settings: dict[str, Any]
) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps(report))
    assert results_of(tmp_path / "metrics.json") == (figures, settings)


def test_no_results() -> None:
    assert results_of(Path("absent.json")) == ({}, {})


def write_results(folder: Path, weights: Path) -> Path:
    """Results of an evaluation of these weights."""
    folder.mkdir(exist_ok=True)
    settings = {**SEGMENTATION["settings"], "weights": f"{weights}, step 9"}
    (folder / "metrics.json").write_text(json.dumps({**SEGMENTATION, "settings": settings}))
    return folder


@pytest.mark.parametrize(
    ("weights", "parent"),
    [
        ("mine/models/model.pt", "mine"),
        ("other, step 1/models/model.pt", "other, step 1"),
        ("mine/checkpoints/step_00000009.pt", "mine"),
        ("downloads/models/model.pt", None),
        ("mine/models/encoder_tiny.safetensors", None),
    ],
)
def test_the_parent_is_the_run_that_wrote_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str, parent: str | None
) -> None:
    for name in ("mine", "other, step 1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"name": name, "mlflow_run_id": f"id of {name}"}))
    results = write_results(tmp_path / "mine" / "evaluation", tmp_path / weights)
    sent: list[str] = []
    monkeypatch.setattr(TrackEvaluation, "_send", lambda self, *given: sent.extend(given[:2]) or "page")
    TrackEvaluation(tmp_path / "mine", results, "sqlite:////nowhere/mlruns.db")(SimpleNamespace())  # type: ignore[arg-type]
    assert sent == ([] if parent is None else [f"id of {parent}", f"{parent} evaluation"])


def test_an_evaluation_is_a_child_of_its_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = f"sqlite:///{tmp_path / 'mlruns.db'}"
    client = mlflow.MlflowClient(store)
    experiment = client.create_experiment("tests", artifact_location=(tmp_path / "mlruns").as_uri())
    training = client.create_run(experiment, tags={"preset": "nano", "pretrained_run": "x"}).info.run_id
    (tmp_path / "run.json").write_text(json.dumps({"name": "btcv-1", "mlflow_run_id": training}))
    results = write_results(tmp_path / "evaluation", tmp_path / "models" / "model.pt")
    prepared = PreparedCases(training=[{}], validation=[{}, {}], digest="0ab")
    engine: Any = SimpleNamespace()
    handler = TrackEvaluation(tmp_path, results, store, prepared=prepared)
    handler.start(engine)
    handler(engine)
    assert os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] == "true"  # they have the password
    (child,) = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{training}'")
    assert child.info.run_name == "btcv-1 evaluation" and child.info.status == "FINISHED"
    assert child.data.metrics == {"mean_dice": 0.5, "dice_spleen": 0.25, "dice_a_b": 1.0}
    assert child.data.params["overlap"] == "0.7" and child.data.params["spacing"] == "[1, 2]"
    note = f"Evaluation of {tmp_path}/models/model.pt, step 9."
    tags = {"stage": "evaluation", "preset": "nano", "mlflow.note.content": note}
    assert {name: child.data.tags[name] for name in tags} == tags and "pretrained_run" not in child.data.tags
    assert child.data.tags["mlflow.source.name"]
    (data,) = child.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest, data.dataset.profile) == ("BTCV", "0ab", '{"scans": 2}')
    assert data.tags[0].value == "evaluation"
    assert [each.path for each in client.list_artifacts(child.info.run_id, "evaluation")] == ["evaluation/metrics.json"]
    (tmp_path / "run.json").write_text(json.dumps({"name": "gone", "mlflow_run_id": "0" * 32}))
    handler(engine)
    assert "The evaluation was not logged to MLflow" in caplog.text


def test_an_evaluation_of_no_training(tmp_path: Path) -> None:
    TrackEvaluation(tmp_path, tmp_path, "sqlite:////nowhere/mlruns.db")(SimpleNamespace())  # type: ignore[arg-type]
