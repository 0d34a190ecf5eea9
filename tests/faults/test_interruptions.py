"""Runs that are killed or told to stop, and continue as if undisturbed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest

from mim_components.run.checkpoints import CheckpointStore
from tests.faults.runs import PRETRAIN, SEGMENTATION, Bundle, Run, assert_same, finish, hold, losses, start

pytestmark = pytest.mark.slow

Data = Callable[[Bundle], dict[str, str]]
Reference = Callable[..., Path]
SAME = "the same command ends with losses and weights equal to an undisturbed run, bit for bit"


def newest_step(output: Path) -> int:
    """Step of the newest intact checkpoint, or 0."""
    state = CheckpointStore(output / "checkpoints").newest()
    return 0 if state is None else int(state["step"])


def started_until(bundle: Bundle, output: Path, step: int, **options: object) -> tuple[Run, Path]:
    """A run that waits in a step until the file is removed."""
    held = output.parent / "held"
    run = start(bundle, output, **{"train::progress": hold(step, held), **options})
    run.wait_held(held)
    return run, held


def kill_in_step(bundle: Bundle, output: Path, step: int, **options: object) -> None:
    """A run that is killed in a step, with all its processes."""
    run, held = started_until(bundle, output, step, **options)
    run.kill()
    assert run.wait() == -signal.SIGKILL
    held.unlink()
    assert not (output / "models" / "encoder.safetensors").exists()


@pytest.mark.parametrize(
    ("bundle", "workers"),
    [
        pytest.param(PRETRAIN, 0, marks=pytest.mark.fault(
            "A1", fault="kill -9 mid-epoch, 0 workers", injection="SIGKILL in a random step", expected=SAME)),
        pytest.param(SEGMENTATION, 0, marks=pytest.mark.fault(
            "A1s", fault="kill -9 mid-epoch, segmentation", injection="SIGKILL in a random step", expected=SAME)),
        pytest.param(PRETRAIN, 2, marks=pytest.mark.fault(
            "A2", fault="kill -9 mid-epoch, 2 workers", injection="SIGKILL in a random step", expected=SAME)),
        pytest.param(SEGMENTATION, 2, marks=pytest.mark.fault(
            "A2s", fault="kill -9 mid-epoch, 2 workers, segmentation", injection="SIGKILL in a random step",
            expected=SAME)),
    ],
    ids=["pretrain", "segmentation", "pretrain-workers", "segmentation-workers"],
)  # fmt: skip
def test_killed(bundle: Bundle, workers: int, data_of: Data, reference: Reference, tmp_path: Path) -> None:
    step = random.randrange(2, bundle.steps + 1)
    print(f"killed in step {step}")
    kill_in_step(bundle, tmp_path / "run", step, **data_of(bundle), num_workers=workers)
    assert newest_step(tmp_path / "run") >= step - 2  # at most one interval is lost
    finish(start(bundle, tmp_path / "run", **data_of(bundle), num_workers=workers))
    assert_same(tmp_path / "run", reference(bundle))


@pytest.mark.fault("A3", fault="10 kills, worker count changed each time",
                   injection="SIGKILL in 10 random steps, 0, 1 or 2 workers", expected=SAME)  # fmt: skip
def test_killed_ten_times(scans: dict[str, str], reference: Reference, tmp_path: Path) -> None:
    many = {"max_steps": 14, "checkpoint_interval": 1}
    steps = sorted(random.sample(range(1, 15), k=10))
    print(f"killed in steps {steps}")
    for number, step in enumerate(steps):
        kill_in_step(PRETRAIN, tmp_path / "run", step, **{**scans, **many, "num_workers": number % 3})
    finish(start(PRETRAIN, tmp_path / "run", **{**scans, **many}))
    assert_same(tmp_path / "run", reference(PRETRAIN, **many))


@pytest.mark.fault("A4", fault="kill -9 while a checkpoint is written",
                   injection="200 MB more in a checkpoint, SIGKILL when a part of it is on the disk",
                   expected=f"the checkpoint before it serves; {SAME}")  # fmt: skip
def test_killed_while_writing(scans: dict[str, str], reference: Reference, tmp_path: Path) -> None:
    large = {"_target_": "tests.faults.hold.Ballast", "folder": "@folder", "size": 200_000_000}
    ballast = {"train::progress": large}
    run = start(PRETRAIN, tmp_path / "run", **scans, **ballast)
    run.wait_for_file("checkpoints/step_00000002.pt")
    while True:  # if the writing ends before it is noticed, the next checkpoint is tried
        partial = run.wait_for_file("checkpoints/.*.partial")
        run.kill(signal.SIGSTOP)
        if partial.exists() and partial.stat().st_size < 200_000_000:
            break
        run.kill(signal.SIGCONT)
    run.kill()
    assert run.wait() == -signal.SIGKILL
    assert partial.exists()
    assert 2 <= newest_step(run.output) < PRETRAIN.steps
    finish(start(PRETRAIN, run.output, **scans))
    assert_same(run.output, reference(PRETRAIN))
    assert not list(run.output.rglob("*.partial"))


@pytest.mark.fault("A6", fault="kill -9 just after the last step of the epoch",
                   injection="SIGKILL between the last checkpoint and the end of the epoch",
                   expected="no step is done again, the learning rate too is the same; " + SAME)  # fmt: skip
def test_killed_after_the_last_step(scans: dict[str, str], reference: Reference, tmp_path: Path) -> None:
    held = tmp_path / "held"
    last = hold(PRETRAIN.steps, held, "ITERATION_COMPLETED")
    run = start(PRETRAIN, tmp_path / "run", **scans, **{"train::pictures": last})
    run.wait_held(held)
    run.kill()
    assert run.wait() == -signal.SIGKILL
    assert newest_step(run.output) == PRETRAIN.steps and not (run.output / "models").exists()
    whole = (run.output / "metrics.jsonl").read_bytes()
    finish(start(PRETRAIN, run.output, **scans))
    assert (run.output / "metrics.jsonl").read_bytes() == whole  # with the learning rates
    assert_same(run.output, reference(PRETRAIN))


@pytest.mark.parametrize(
    ("bundle", "number"),
    [
        pytest.param(PRETRAIN, signal.SIGTERM, marks=pytest.mark.fault(
            "A8", fault="SIGTERM mid-epoch", injection="SIGTERM to all processes in a random step, 1 worker",
            expected="the step is finished and saved, exit 143 within 30 s, MLflow run KILLED, 0 steps done again; "
            + SAME)),
        pytest.param(SEGMENTATION, signal.SIGTERM, marks=pytest.mark.fault(
            "A8s", fault="SIGTERM mid-epoch, segmentation",
            injection="SIGTERM to all processes in a random step, 1 worker",
            expected="the step is finished and saved, exit 143 within 30 s, MLflow run KILLED, 0 steps done again; "
            + SAME)),
        pytest.param(PRETRAIN, signal.SIGINT, marks=pytest.mark.fault(
            "A9", fault="SIGINT mid-epoch", injection="SIGINT to all processes in a random step, 1 worker",
            expected="as SIGTERM with exit 130; nothing is left that looks like the end of a run; " + SAME)),
    ],
    ids=["pretrain-SIGTERM", "segmentation-SIGTERM", "pretrain-SIGINT"],
)  # fmt: skip
def test_told_to_stop(bundle: Bundle, number: int, data_of: Data, reference: Reference, tmp_path: Path) -> None:
    step = random.randrange(1, bundle.steps)
    print(f"told to stop in step {step}")
    options = {**data_of(bundle), "num_workers": 1}
    run, held = started_until(bundle, tmp_path / "run", step, **options)
    run.kill(number)
    held.unlink()
    assert run.wait(30) == 128 + number
    assert f"stopped after step {step} of {bundle.steps}, checkpoint saved; the same command" in run.text
    assert newest_step(run.output) == step
    names = {path.name for path in run.output.rglob("*")}
    assert "encoder.safetensors" not in names and not any("final" in name for name in names)
    state = json.loads((run.output / "run.json").read_text())
    client = mlflow.MlflowClient(options["tracking_uri"])
    assert (state["status"], client.get_run(state["mlflow_run_id"]).info.status) == ("interrupted", "KILLED")
    again = finish(start(bundle, run.output, **options))
    assert f"from step {step} of {bundle.steps}" in again.text
    assert_same(run.output, reference(bundle))
    assert client.get_run(state["mlflow_run_id"]).info.status == "FINISHED"


@pytest.mark.fault("A5", fault="a second SIGTERM", injection="SIGTERM twice while a step goes on",
                   expected="exits at once, without finishing the step; " + SAME)  # fmt: skip
def test_told_twice(scans: dict[str, str], reference: Reference, tmp_path: Path) -> None:
    run, held = started_until(PRETRAIN, tmp_path / "run", 4, **scans)
    run.send(signal.SIGTERM)
    time.sleep(0.2)  # two that come together are one
    run.send(signal.SIGTERM)
    assert run.wait(30) == -signal.SIGTERM
    held.unlink()  # the step was not finished
    assert len(losses(run.output)) == 3 and newest_step(run.output) == 2
    finish(start(PRETRAIN, run.output, **scans))
    assert_same(run.output, reference(PRETRAIN))


@pytest.mark.fault("A7", fault="SIGTERM before the first step", injection="SIGTERM while the scans are prepared",
                   expected="ends by the signal, the folder is free; " + SAME)  # fmt: skip
def test_told_before_the_first_step(scans: dict[str, str], reference: Reference, tmp_path: Path) -> None:
    run = start(PRETRAIN, tmp_path / "run", **{**scans, "cache_dir": str(tmp_path / "cache")})
    run.wait_for_file(".lock")
    run.send(signal.SIGTERM)
    assert run.wait(30) == -signal.SIGTERM
    assert losses(run.output) == []
    finish(start(PRETRAIN, run.output, **scans))
    assert_same(run.output, reference(PRETRAIN))


@pytest.mark.fault("A19", fault="a second run in the same folder", injection="the same command while the first runs",
                   expected="refused, exit 1, folder named; the first is not disturbed")  # fmt: skip
def test_second_run(scans: dict[str, str], reference: Reference, tmp_path: Path) -> None:
    run, held = started_until(PRETRAIN, tmp_path / "run", 3, **scans)
    second = start(PRETRAIN, run.output, **scans)
    assert second.wait() == 1
    assert second.error.startswith("ERROR: another process") and f"is running in {run.output}" in second.error
    held.unlink()
    finish(run)
    assert_same(run.output, reference(PRETRAIN))


@pytest.mark.fault("A1p", fault="kill -9 mid-epoch, started as in the README",
                   injection="SIGKILL of `python -m monai.bundle run` in a random step", expected=SAME)  # fmt: skip
def test_plain_command_killed(scans: dict[str, str], reference: Reference, tmp_path: Path) -> None:
    kill_in_step(PRETRAIN, tmp_path / "run", random.randrange(2, PRETRAIN.steps + 1), **scans, plain=True)
    finish(start(PRETRAIN, tmp_path / "run", **scans, plain=True))
    assert_same(tmp_path / "run", reference(PRETRAIN))


# workers that load data


def workers_of(run: Run) -> list[int]:
    """Ids of the processes that load data."""
    found = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True, check=False).stdout
    return [int(pid) for pid in found.split()]


@pytest.mark.parametrize(
    "bundle",
    [
        pytest.param(PRETRAIN, marks=pytest.mark.fault(
            "A11", fault="a data worker is killed", injection="SIGKILL of a worker, as the out-of-memory killer does",
            expected="exit 1, the message says what to lower; " + SAME)),
        pytest.param(SEGMENTATION, marks=pytest.mark.fault(
            "A11s", fault="a data worker is killed, segmentation", injection="SIGKILL of a worker",
            expected="exit 1, the message says what to lower; " + SAME)),
    ],
    ids=["pretrain", "segmentation"],
)  # fmt: skip
def test_worker_killed(bundle: Bundle, data_of: Data, reference: Reference, tmp_path: Path) -> None:
    options = {**data_of(bundle), "num_workers": 1}
    run, held = started_until(bundle, tmp_path / "run", 4, **options)
    for pid in workers_of(run):
        os.kill(pid, signal.SIGKILL)
    held.unlink()
    assert run.wait(60) == 1
    assert "a data worker was killed, most likely because memory ran out" in run.error
    assert "Lower --num_workers" in run.error and "The same command continues" in run.error
    assert newest_step(run.output) >= 2
    finish(start(bundle, run.output, **options))
    assert_same(run.output, reference(bundle))


@pytest.mark.fault("A12", fault="a data worker hangs", injection="the files it reads become FIFOs that nobody fills",
                   expected="exit 1 at the time-out of workers, the scan that was waited for is named; "
                   + SAME)  # fmt: skip
def test_worker_hangs(scans: dict[str, str], reference: Reference, tmp_path: Path) -> None:
    reference(PRETRAIN)  # fills the cache
    cache = Path(shutil.copytree(scans["cache_dir"], tmp_path / "cache"))
    options = {**scans, "cache_dir": str(cache), "num_workers": 1, "train::dataloader::worker_timeout": 3}
    run, held = started_until(PRETRAIN, tmp_path / "run", 2, **options)
    for path in cache.rglob("*.npy"):
        path.unlink()
        os.mkfifo(path)
    held.unlink()
    assert run.wait(60) == 1
    assert "a data worker hangs: no batch for 3" in run.error and "worker_timeout" in run.error
    assert f"It was loading: {scans['dataset_dir']}" in run.error and "The same command continues" in run.error
    for path in cache.rglob("*.npy"):
        path.unlink()
    finish(start(PRETRAIN, run.output, **options))
    assert_same(run.output, reference(PRETRAIN))
