"""One MLflow run per run folder: its content, how it continues, how it ends."""

from __future__ import annotations

import json
import logging
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
import torch
from ignite.engine import Engine

from mim_components.handlers import tracked_facts
from mim_components.handlers import tracking as module
from mim_components.handlers.tracked_facts import git_commit
from mim_components.handlers.tracking import RunTracker
from mim_components.run.folder import RunFolder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a store that all tests share, since creating one takes seconds."""
    return tmp_path_factory.mktemp("store with space")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    """A run that has begun."""
    run = RunFolder(tmp_path / "run").begin("digest")
    yield run
    run.release()


def make_tracker(folder: RunFolder, store: Path, **parameters: Any) -> RunTracker:
    folder.facts |= parameters
    return RunTracker(folder, store_dir=store, experiment_name="tests")


def engine_at(step: int, numbers: dict[str, float] | None = None) -> Any:
    return SimpleNamespace(state=SimpleNamespace(iteration=step, epoch_length=4, step_metrics=numbers), logger=logging)


def run_of(tracker: RunTracker, folder: RunFolder) -> mlflow.entities.Run:
    return mlflow.MlflowClient(tracker.tracking_uri).get_run(folder.state["mlflow_run_id"])


def test_parameters_metrics_and_artifacts(folder: RunFolder, store: Path, tmp_path: Path) -> None:
    tracker = make_tracker(folder, store, seed=0, sizes=[[4, 4], [2, 2]], preset="nano", nothing=None)
    tracker.start(engine_at(0))
    assert json.loads((folder.path / "run.json").read_text())["mlflow_run_id"] == tracker.run_id
    tracker.log_step(engine_at(1, {"loss": 2.0, "epoch": 0.5}))
    tracker.log_step(engine_at(2, None))  # not a step that was collected
    tracker.log_step(engine_at(3, {"loss": 1.0, "epoch": 1.5}))
    (tmp_path / "picture.png").write_bytes(b"png")
    tracker.log_artifact(tmp_path / "picture.png", "pictures")
    tracker.close()
    run = run_of(tracker, folder)
    assert (run.info.status, run.info.run_name) == ("FINISHED", folder.name)
    expected = {"seed": "0", "sizes": "[[4, 4], [2, 2]]", "preset": "nano", "nothing": "null", "devices": "1"}
    assert run.data.params.items() >= expected.items()
    assert run.data.params["version_torch"] == torch.__version__ and run.data.params["git_commit"] == git_commit()
    client = mlflow.MlflowClient(tracker.tracking_uri)
    points = client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in points] == [(1, 2.0), (3, 1.0)]
    assert {each.path for each in client.list_artifacts(run.info.run_id)} == {"configuration.json", "pictures"}
    assert [each.path for each in client.list_artifacts(run.info.run_id, "pictures")] == ["pictures/picture.png"]
    saved = json.loads(Path(client.download_artifacts(run.info.run_id, "configuration.json")).read_text())
    assert saved == folder.state["config"]
    assert (store / "mlruns.db").exists() and store in Path(run.info.artifact_uri.replace("%20", " ")[7:]).parents


@pytest.mark.parametrize("status", ["KILLED", "FAILED"])
def test_continued_run_goes_on_in_its_mlflow_run(folder: RunFolder, store: Path, status: str) -> None:
    tracker = make_tracker(folder, store, seed=0)
    tracker.start(engine_at(0))
    first = tracker.run_id
    tracker.log_step(engine_at(1, {"loss": 2.0}))
    tracker.close(status)
    assert run_of(tracker, folder).info.status == status
    again = make_tracker(folder, store, seed=5)  # a parameter cannot be logged twice with another value
    again.start(engine_at(1))
    assert again.run_id == first and run_of(again, folder).info.status == "RUNNING"
    again.log_step(engine_at(2, {"loss": 1.0}))
    again.close()
    run = run_of(again, folder)
    assert run.info.status == "FINISHED" and run.data.params["seed"] == "0"
    points = mlflow.MlflowClient(again.tracking_uri).get_metric_history(first, "loss")
    assert [point.step for point in points] == [1, 2]


def test_killed_run_does_not_swallow_the_next(folder: RunFolder, store: Path, tmp_path: Path) -> None:
    killed = make_tracker(folder, store)
    killed.start(engine_at(0))  # never closed: stays RUNNING
    other = RunFolder(tmp_path / "other").begin("digest")
    tracker = make_tracker(other, store)
    tracker.start(engine_at(0))
    assert tracker.run_id != killed.run_id
    tracker.close()
    assert run_of(killed, folder).info.status == "RUNNING"
    killed.close("KILLED")
    other.release()


def test_run_continues_with_another_store(folder: RunFolder, store: Path) -> None:
    folder.update(mlflow_run_id="0" * 32)  # tracking_uri may change between two starts: it is a free key
    tracker = make_tracker(folder, store)
    tracker.start(engine_at(0))
    assert folder.state["mlflow_run_id"] == tracker.run_id != "0" * 32
    tracker.close()


def test_without_a_run_nothing_is_sent(folder: RunFolder, store: Path, tmp_path: Path) -> None:
    tracker = make_tracker(folder, store)  # as in all processes but the first
    tracker.log_step(engine_at(1, {"loss": 1.0}))
    tracker.log_artifact(tmp_path / "no such file")
    tracker.close("FAILED")
    assert "mlflow_run_id" not in folder.state


def test_only_the_first_process_tracks(folder: RunFolder, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.idist, "get_rank", lambda: 1)
    tracker = make_tracker(folder, store)
    engine = Engine(lambda engine, batch: None)
    tracker.attach(engine)
    engine.run([None])
    assert tracker.handler is None


def test_store_by_default_and_by_name(folder: RunFolder, store: Path) -> None:
    assert RunTracker(folder, store_dir=store).tracking_uri == f"sqlite:///{store / 'mlruns.db'}"
    assert RunTracker(folder, "http://server:5000", store).tracking_uri == "http://server:5000"


def test_store_of_a_bundle_that_is_read_only_is_in_the_folder_of_the_run(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.os, "access", lambda path, mode: Path(path) != tmp_path / "bundle")
    tracker = RunTracker(folder, store_dir=tmp_path / "bundle", experiment_name="tests")
    assert tracker.tracking_uri == f"sqlite:///{folder.path / 'mlruns.db'}"


def test_commit_is_unknown_outside_of_a_working_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise subprocess.CalledProcessError(128, "git")

    with monkeypatch.context() as broken:
        broken.setattr(subprocess, "run", fail)
        assert git_commit() == "unknown"
    monkeypatch.setattr(tracked_facts, "__file__", "/nowhere/tracked_facts.py")
    assert git_commit() == "unknown"


def test_the_commit_is_not_that_of_a_repository_that_ignores_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*command: str) -> str:
        who = ["-c", "user.name=ann", "-c", "user.email=ann@example.org"]
        done = subprocess.run(["git", "-C", str(tmp_path), *who, *command], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / ".gitignore").write_text("venv\n")
    for name in ("venv", "own"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tracked_facts.py").touch()
    git("add", ".")
    git("commit", "-qm", "of another project")
    monkeypatch.setattr(tracked_facts, "__file__", str(tmp_path / "venv" / "tracked_facts.py"))
    assert git_commit() == "unknown"
    monkeypatch.setattr(tracked_facts, "__file__", str(tmp_path / "own" / "tracked_facts.py"))
    assert git_commit() == git("rev-parse", "HEAD")


def test_a_run_that_was_deleted_gets_a_new_one_with_all_numbers(
    folder: RunFolder, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = make_tracker(folder, store)
    tracker.start(engine_at(0))
    first = tracker.run_id
    tracker.log_step(engine_at(1, {"loss": 2.0}))
    tracker.close("KILLED")
    mlflow.MlflowClient(tracker.tracking_uri).delete_run(first)
    (folder.path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    tracker = make_tracker(folder, store)
    tracker.start(engine_at(1))
    assert tracker.run_id != first and "continues in a new one, with all its numbers" in caplog.text
    tracker.log_step(engine_at(2, {"loss": 1.0}))
    tracker.close()
    client = mlflow.MlflowClient(tracker.tracking_uri)
    points = client.get_metric_history(folder.state["mlflow_run_id"], "loss")
    assert sorted((point.step, point.value) for point in points) == [(1, 2.0), (2, 1.0)]
    assert folder.notes == []


def test_a_new_run_has_the_numbers_of_validations_and_of_the_probe_under_their_names(
    folder: RunFolder, store: Path
) -> None:
    tracker = make_tracker(folder, store)
    tracker.start(engine_at(0))
    first = tracker.run_id
    tracker.close("KILLED")
    client = mlflow.MlflowClient(tracker.tracking_uri)
    client.delete_run(first)
    rows = '{"step": 1, "val_mean_dice": 0.5, "dice_left+right": 0.25, "dice_none": null}\n'
    (folder.path / "validation.jsonl").write_text(rows)
    (folder.path / "probe.jsonl").write_text('{"step": 1, "probe_dice": 0.75, "probe_knn": 0.125}\n')
    tracker = make_tracker(folder, store)
    waiting = {"step": 1, "time": 7, "numbers": {"val_mean_dice": 0.5, "probe_dice": 0.75}}
    tracker.spool.append(waiting)
    tracker.start(engine_at(1))
    tracker.close()
    numbers = {"val_mean_dice": 0.5, "val_dice_left_right": 0.25, "probe_dice": 0.75, "probe_knn": 0.125}
    assert run_of(tracker, folder).data.metrics == numbers
    (point,) = client.get_metric_history(folder.state["mlflow_run_id"], "val_mean_dice")  # what waited is sent once
    assert point.timestamp == 7


def test_a_deleted_experiment_is_replaced_by_one_with_a_number(
    folder: RunFolder, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def tracker() -> RunTracker:
        return RunTracker(folder, store_dir=store, experiment_name="gone")

    first = tracker()
    first.start(engine_at(0))
    first.close("KILLED")
    client = mlflow.MlflowClient(first.tracking_uri)
    client.delete_experiment(client.get_experiment_by_name("gone").experiment_id)
    second = tracker()
    second.start(engine_at(0))
    second.close()
    assert client.get_experiment(run_of(second, folder).info.experiment_id).name == "gone_2"
    assert "experiment gone was deleted: the run goes to gone_2" in caplog.text


def test_the_environments_store_is_used_and_named(
    folder: RunFolder, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{store / 'mlruns.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    tracker = RunTracker(folder, store_dir=tmp_path / "other", experiment_name="tests")
    assert tracker.place == uri
    given = RunTracker(folder, tracking_uri="http://me:secret@host:5000", experiment_name="tests")
    assert (given.tracking_uri, given.place) == ("http://me:secret@host:5000", "http://***@host:5000")
    tracker.start(engine_at(0))
    tracker.close()
    assert run_of(tracker, folder).info.status == "FINISHED"


@pytest.mark.parametrize("uri", ["htp://host", "localhost:5000", "/some/folder", "http://", "file:///folder"])
def test_an_address_that_can_never_work_is_refused(folder: RunFolder, uri: str) -> None:
    with pytest.raises(ValueError, match="is not an address of an MLflow store; examples: http://host:5000"):
        RunTracker(folder, tracking_uri=uri)


def test_a_locked_sqlite_file_costs_seconds(
    folder: RunFolder, store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_tracker(folder, store).start(engine_at(0))
    monkeypatch.setattr(tracked_facts, "SQLITE_SECONDS", 0.1)
    tracker = make_tracker(folder, store)
    with closing(sqlite3.connect(store / "mlruns.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        tracker.start(engine_at(0))
    assert tracker.handler is None and "database is locked" in caplog.text
