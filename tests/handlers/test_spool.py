"""A tracking store that refuses, hangs, dies or is damaged: the training continues, and no number is lost."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import sleep
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest

from mim_components.handlers import tracking as module
from mim_components.handlers.spool import Spool, deliver
from mim_components.handlers.tracking import RunTracker
from mim_components.run.folder import RunFolder


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a store with its tables, which take seconds to create."""
    store = tmp_path_factory.mktemp("store")
    mlflow.MlflowClient(f"sqlite:///{store / 'mlruns.db'}").search_experiments()
    return store


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(empty_store, tmp_path / "store"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunFolder]:
    """A run that has begun, whose tracker retries at every record."""
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    run = RunFolder(tmp_path / "run").begin("digest")
    yield run
    run.release()


def engine_at(step: int) -> Any:
    return SimpleNamespace(state=SimpleNamespace(iteration=step, epoch_length=4, step_metrics=None), logger=logging)


def sent(uri: str, folder: RunFolder) -> list[tuple[int, float]]:
    client = mlflow.MlflowClient(uri)
    return sorted((point.step, point.value) for point in client.get_metric_history(run_id(folder), "loss"))


def run_id(folder: RunFolder) -> str:
    return str(folder.state["mlflow_run_id"])


# the file


def test_records_come_back_in_order_and_a_cut_line_is_none(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    assert spool.records() == []
    spool.rewind(0)
    for step in (1, 2, 3):
        spool.append({"step": step, "time": 5, "numbers": {"loss": 0.5}})
    with spool.path.open("a") as file:
        file.write('[1]\n{"step": 4, "num')
    assert [record["step"] for record in spool.records()] == [1, 2, 3]
    spool.rewind(2)
    assert [json.loads(line)["step"] for line in spool.path.read_text().splitlines()] == [1, 2]
    spool.replace([])
    assert not spool.path.exists()


# stores that fail


def test_numbers_wait_for_a_server_that_refuses(
    folder: RunFolder, store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = RunTracker(folder, "http://127.0.0.1:9", experiment_name="tests")
    with caplog.at_level("WARNING"):
        tracker.start(engine_at(0))
        for step in (1, 2):
            tracker.log_numbers({"loss": 1.0 / step, "nothing": float("nan")}, step)
        (tmp_path / "picture.png").write_bytes(b"png")
        tracker.log_artifact(tmp_path / "picture.png", "pictures")
        tracker.close("KILLED")
    assert caplog.text.count("Tracking stopped, the training continues: http://127.0.0.1:9") == 1
    assert len(folder.notes) == 1 and f"3 records wait in {tracker.spool.path}" in folder.notes[0]
    # the resumed run continues from step 1: step 2 is repeated
    uri = f"sqlite:///{store / 'mlruns.db'}"
    again = RunTracker(folder, uri, experiment_name="tests")
    folder.facts = {"seed": 3}
    again.start(engine_at(1))
    again.log_numbers({"loss": 0.5}, 2)
    again.close()
    run = mlflow.MlflowClient(uri).get_run(run_id(folder))
    assert sent(uri, folder) == [(1, 1.0), (2, 0.5)] and not again.spool.path.exists()
    assert (run.info.status, run.data.params["seed"]) == ("FINISHED", "3")
    assert len(folder.notes) == 1  # no second one


def test_finished_run_sends_what_is_left(folder: RunFolder, store: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{store / 'mlruns.db'}"
    tracker = RunTracker(folder, uri, experiment_name="tests")
    tracker.send_rest(engine_at(0))  # nothing waits: the store is not even opened
    assert "mlflow_run_id" not in folder.state
    (tmp_path / "a.txt").write_text("a")
    for record in (
        {"step": 3, "file": str(tmp_path / "a.txt"), "folder": None},
        {"step": 3, "file": str(tmp_path / "gone.txt"), "folder": None},
        *({"step": step, "time": step, "numbers": {f"n{i}": 0.5 for i in range(30)}} for step in range(60)),
    ):
        tracker.spool.append(record)
    tracker.send_rest(engine_at(0))
    client = mlflow.MlflowClient(uri)
    assert len(client.get_metric_history(run_id(folder), "n29")) == 60  # 1800 numbers, more than one request takes
    assert [each.path for each in client.list_artifacts(run_id(folder))] == ["a.txt", "configuration.json"]
    assert client.get_run(run_id(folder)).info.status == "FINISHED" and not tracker.spool.path.exists()


def test_server_that_never_answers_costs_its_timeout_once(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 60.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        tracker = RunTracker(folder, f"http://127.0.0.1:{silent.getsockname()[1]}")
        tracker.start(engine_at(0))
        for step in range(1, 50):
            tracker.log_numbers({"loss": 1.0}, step)
        tracker.close()
        silent.setblocking(False)
        tries = 0
        with suppress(BlockingIOError):
            while True:
                silent.accept()[0].close()
                tries += 1
    assert tries == 2  # at the start and, because the run ends, once more; not at each of 49 steps
    assert len(tracker.spool.records()) == 49


def test_asking_takes_a_twentieth_of_the_time(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(module, "monotonic", lambda: clock[0])
    tracker = RunTracker(folder)

    def slow() -> None:
        clock[0] += 10
        raise OSError

    assert not tracker._attempt(slow) and tracker._next == 10 + 190


def test_damaged_database(folder: RunFolder, store: Path, caplog: pytest.LogCaptureFixture) -> None:
    database = store / "mlruns.db"
    whole = database.read_bytes()
    database.write_bytes(b"no database " * 1000)
    tracker = RunTracker(folder, store_dir=store, experiment_name="tests")
    tracker.start(engine_at(0))
    tracker.log_numbers({"loss": 2.0}, 1)
    assert "file is not a database" in caplog.text and len(tracker.spool.records()) == 1
    database.write_bytes(whole)  # repaired while the run goes on
    tracker.log_numbers({"loss": 1.0}, 2)
    tracker.close()
    assert sent(tracker.tracking_uri, folder) == [(1, 2.0), (2, 1.0)]


def test_a_record_that_was_sent_before_is_not_doubled(folder: RunFolder, store: Path) -> None:
    tracker = RunTracker(folder, store_dir=store, experiment_name="tests")
    tracker.start(engine_at(0))
    for _ in range(2):  # the answer to the first got lost
        deliver(tracker.client, tracker.run_id, [{"step": 1, "time": 7, "numbers": {"loss": 0.5}}])
    tracker.close()
    assert sent(tracker.tracking_uri, folder) == [(1, 0.5)]


def test_sending_stops_when_its_time_is_over(folder: RunFolder, store: Path) -> None:
    tracker = RunTracker(folder, store_dir=store, experiment_name="tests")
    tracker.spool.append({"step": 0, "time": 1, "numbers": {"loss": 0.5}})
    tracker.start(engine_at(0))
    assert tracker.spool.records() == []
    tracker._keep({"step": 1, "time": 1, "numbers": {"loss": 0.5}})
    tracker._empty_spool(until=0.0)
    assert len(tracker.spool.records()) == 1 and tracker._waiting
    tracker.close()
    assert tracker.spool.records() == []


def test_spool_that_cannot_be_written_is_named(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: Spool, record: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Spool, "append", full)
    tracker = RunTracker(folder, "http://127.0.0.1:9")
    tracker.start(engine_at(0))
    tracker.log_numbers({"loss": 1.0}, 1)
    tracker.log_numbers({"loss": 1.0}, 2)
    assert caplog.text.count("tracking_spool.jsonl: a record for MLflow is lost: No space left") == 1
    tracker.close()
    assert folder.notes == [f"2 records for MLflow are lost: {tracker.spool.path} could not be written."]


def test_spool_that_cannot_be_rewound_stops_nothing(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: Spool, step: int) -> None:
        raise OSError(28, "cannot write the spool: No space left on device")

    monkeypatch.setattr(Spool, "rewind", full)
    tracker = RunTracker(folder, "http://127.0.0.1:9")
    tracker.start(engine_at(0))
    assert "cannot write the spool: No space left" in caplog.text


# a real server


class Server:
    """`mlflow server` on a port of its own."""

    def __init__(self, store: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.store = store
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.store / 'mlruns.db'}"]
        command += ["--artifacts-destination", str(self.store / "artifacts")]
        quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, cwd=self.store, start_new_session=True, **quiet)
        for _ in range(600):
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                    connection.settimeout(5)
                    connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
                    if b"200" in connection.recv(64):
                        return
            except OSError:
                pass
            sleep(0.2)
        raise TimeoutError("the server does not come up")

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.mark.slow
def test_real_server_that_dies_and_comes_back(
    folder: RunFolder, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(store)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")  # the machine may be busy
    try:
        server.start()
        tracker = RunTracker(folder, server.uri, experiment_name="tests")
        folder.facts = {"seed": 1}
        tracker.start(engine_at(0))
        tracker.log_numbers({"loss": 4.0}, 1)
        server.stop()
        tracker.log_numbers({"loss": 3.0}, 2)
        (tmp_path / "picture.png").write_bytes(b"png")
        tracker.log_artifact(tmp_path / "picture.png", "pictures")
        assert len(tracker.spool.records()) == 2
        server.start()
        tracker.log_numbers({"loss": 2.0}, 3)  # sends what waited first
        assert not tracker.spool.path.exists()
        server.stop()
        tracker.log_numbers({"loss": 1.0}, 4)
        tracker.close("KILLED")
        assert "1 records wait in" in folder.notes[-1]
        server.start()
        again = RunTracker(folder, server.uri, experiment_name="tests")
        again.start(engine_at(4))
        again.close()
        run = mlflow.MlflowClient(server.uri).get_run(run_id(folder))
        assert sent(server.uri, folder) == [(1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0)]
        assert (run.info.status, run.data.params["seed"]) == ("FINISHED", "1")
        assert len(list((store / "artifacts").rglob("picture.png"))) == 1
    finally:
        server.stop()
