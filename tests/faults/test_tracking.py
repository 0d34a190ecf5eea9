"""A tracking store that refuses, is silent, dies, comes back, or is damaged: training continues, no number is lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import mlflow
import pytest

from tests.faults.runs import PRETRAIN, Run, assert_same, environment_of_runs, finish, hold, start

pytestmark = pytest.mark.slow

Reference = Callable[..., Path]
ALL_STEPS = list(range(1, PRETRAIN.steps + 1))


def spooled(run: Run) -> list[int]:
    """Steps whose numbers wait in the spool."""
    path = run.output / "tracking_spool.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [record["step"] for record in records if "numbers" in record]


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.fault("E1", fault="tracking server refuses", injection="http://127.0.0.1:9",
                   expected="the first step within 15 s, exit 0, all numbers in a spool that the summary names; losses "
                   "and weights equal to an undisturbed run, bit for bit")  # fmt: skip
def test_refuses(scans: dict[str, str], reference: Reference, tmp_path: Path) -> None:
    run = finish(start(PRETRAIN, tmp_path / "run", **{**scans, "tracking_uri": "http://127.0.0.1:9"}))
    started = (run.output / "run.json").stat().st_ctime, (run.output / "metrics.jsonl").stat().st_ctime
    assert abs(started[1] - started[0]) < 15
    assert "Tracking stopped, the training continues: http://127.0.0.1:9" in run.text
    assert "Warning: http://127.0.0.1:9 did not answer: " in run.text and "the same command sends them" in run.text
    assert spooled(run) == ALL_STEPS
    assert_same(run.output, reference(PRETRAIN))


@pytest.mark.fault("E2", fault="tracking server never answers", injection="a socket that accepts and is silent",
                   expected="as E1, after one time-out of 5 s")  # fmt: skip
def test_silent(scans: dict[str, str], reference: Reference, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        run = finish(start(PRETRAIN, tmp_path / "run", **{**scans, "tracking_uri": uri}))
    assert f"Tracking stopped, the training continues: {uri}" in run.text
    assert spooled(run) == ALL_STEPS
    assert_same(run.output, reference(PRETRAIN))


class TrackingServer:
    """A real `mlflow server`.

    Args:
        folder: folder of its store and log.
        port: port on which it listens.
    """

    def __init__(self, folder: Path, store: str, port: int) -> None:
        self.uri = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
        command += ["--backend-store-uri", store, "--artifacts-destination", str(folder / "artifacts")]
        with (folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment_of_runs(), start_new_session=True, cwd=folder
            )
        deadline = time.monotonic() + 180
        while not self._answers():
            assert time.monotonic() < deadline and self.process.poll() is None, (folder / "server.log").read_text()
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            with closing(urllib.request.urlopen(f"{self.uri}/health", timeout=5)) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """Kill all its processes."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def servers(tmp_path: Path, store: str) -> Iterator[Callable[[], TrackingServer]]:
    """A function that starts the server, or restarts it."""
    port, begun = free_port(), list[TrackingServer]()

    def begin() -> TrackingServer:
        begun.append(TrackingServer(tmp_path, store, port))
        return begun[-1]

    yield begin
    for each in begun:
        each.kill()


@pytest.mark.fault(
    "E3",
    fault="tracking server dies in mid-run",
    injection="SIGKILL of all processes of `mlflow server`",
    expected="exit 0, 0 steps lost, numbers from then on in a spool; losses and weights equal to an "
    "undisturbed run, bit for bit",
)
@pytest.mark.fault("E5", fault="tracking server comes back", injection="`mlflow server` is started again",
                   expected="the same command sends what waits, into the same MLflow run: every step once, status "
                   "FINISHED")  # fmt: skip
def test_dies_and_comes_back(
    scans: dict[str, str], reference: Reference, servers: Callable[[], TrackingServer], tmp_path: Path
) -> None:
    server = servers()
    held = tmp_path / "held"
    patient = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "100"}  # of a machine that is busy with other tests
    options = {**scans, "tracking_uri": server.uri, "environment": patient}
    run = start(PRETRAIN, tmp_path / "run", **options, **{"train::progress": hold(4, held)})
    run.wait_held(held)
    server.kill()
    held.unlink()
    finish(run)
    assert spooled(run) == ALL_STEPS[3:]
    assert_same(run.output, reference(PRETRAIN))
    servers()
    finish(start(PRETRAIN, run.output, **options))
    assert not (run.output / "tracking_spool.jsonl").exists()
    client = mlflow.MlflowClient(scans["tracking_uri"])
    run_id = json.loads((run.output / "run.json").read_text())["mlflow_run_id"]
    assert sorted(point.step for point in client.get_metric_history(run_id, "loss")) == ALL_STEPS
    assert client.get_run(run_id).info.status == "FINISHED"


@pytest.mark.fault("E4", fault="tracking store damaged", injection="mlruns.db overwritten with text",
                   expected="exit 0, all numbers in a spool that the summary names; losses and weights equal to an "
                   "undisturbed run, bit for bit")  # fmt: skip
def test_damaged(scans: dict[str, str], reference: Reference, tmp_path: Path) -> None:
    (tmp_path / "mlruns.db").write_text("no database" * 1000)
    uri = f"sqlite:///{tmp_path / 'mlruns.db'}"
    run = finish(start(PRETRAIN, tmp_path / "run", **{**scans, "tracking_uri": uri}))
    assert f"Tracking stopped, the training continues: {uri}" in run.text
    assert spooled(run) == ALL_STEPS
    assert_same(run.output, reference(PRETRAIN))
