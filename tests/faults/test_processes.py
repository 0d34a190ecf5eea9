"""Runs of several processes, one of which dies, fails, hangs or is missing after a restart (gloo on the CPU).

Except in tests of `torchrun` itself, the processes are started as by torchrun, but without its imports.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
import pytest

from mim_components.run.checkpoints import CheckpointStore
from mim_components.utils.tensor_files import read_checkpoint
from tests.faults.runs import (
    PRETRAIN,
    SEGMENTATION,
    Bundle,
    Run,
    assert_same,
    configs,
    finish,
    hold,
    losses,
    ranks,
    rows_of,
    start,
)

pytestmark = pytest.mark.slow

Data = Callable[[Bundle], dict[str, str]]
Reference = Callable[..., Path]
SAME = "the same command ends with losses and weights equal to an undisturbed run of two processes, bit for bit"
SLOW = 300  # seconds; both processes import everything again
TWO = {"device": None, "global_batch_size": 2}  # 1 per process


@pytest.fixture
def torchrun() -> Iterator[Callable[..., Run]]:
    """Start two processes as users do, with arguments of torchrun; the run's process is torchrun."""
    runs: list[Run] = []

    def begin(bundle: Bundle, output: Path, *arguments: str, **options: Any) -> Run:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *arguments]
        runs.append(start(bundle, output, *configs(bundle), prefix=[*command, "--no-python"], **{**TWO, **options}))
        return runs[-1]

    yield begin
    for path in Path("/proc").glob("[0-9]*/cmdline"):  # after a failed test: the processes have sessions of their own
        with suppress(OSError):
            if any(str(run.output).encode() in path.read_bytes() for run in runs):
                os.kill(int(path.parent.name), signal.SIGKILL)
    for run in runs:
        run.wait()


def processes(bundle: Bundle, output: Path, count: int = 2, **options: Any) -> list[Run]:
    """Processes with the environment that torchrun would give them."""
    return [
        start(bundle, output, *configs(bundle), environment=environment, **{**TWO, **options})
        for environment in ranks(count)
    ]


def pids_of(run: Run) -> list[int]:
    """The processes of a torchrun, by rank."""
    found: dict[int, int] = {}
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    for pid in children:
        rank = re.search(rb"\0RANK=(\d+)\0", Path(f"/proc/{pid}/environ").read_bytes())
        if rank:
            found[int(rank[1])] = int(pid)
    return [found[rank] for rank in sorted(found)]


def state_of(output: Path, options: dict[str, str]) -> tuple[str, str]:
    """Status of the run in its folder, and in MLflow."""
    state = json.loads((output / "run.json").read_text())
    run = mlflow.MlflowClient(options["tracking_uri"]).get_run(state["mlflow_run_id"])
    return state["status"], run.info.status


@pytest.fixture(scope="module")
def undisturbed(data_of: Data, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Bundle], Path]:
    """Output of an undisturbed run of two processes."""
    outputs: dict[str, Path] = {}

    def run(bundle: Bundle) -> Path:
        if bundle.name not in outputs:
            output = tmp_path_factory.mktemp("two") / bundle.name
            outputs[bundle.name] = goes_on(bundle, output, data_of(bundle))
        return outputs[bundle.name]

    return run


def goes_on(bundle: Bundle, output: Path, data: dict[str, str]) -> Path:
    """Output of a run of two processes that must succeed."""
    for run in processes(bundle, output, **data):
        finish(run)
    assert state_of(output, data) == ("finished", "FINISHED")
    return output


class Holds:
    """Both processes wait at a step until they are released.

    Args:
        folder: folder for their files.
        step: step to wait at.
    """

    def __init__(self, folder: Path, step: int = 5) -> None:
        self.files = [folder / f"held_{rank}" for rank in (0, 1)]
        handler = {**hold(step, folder / "held"), "_target_": "tests.faults.on_one_rank.HoldEach"}
        self.option: dict[str, Any] = {"train::progress": handler}

    def wait(self, *runs: Run) -> None:
        """Wait until both processes hold."""
        for file in self.files:
            runs[0].wait_held(file, SLOW)

    def let_go(self) -> None:
        """Release both processes."""
        for file in self.files:
            file.unlink()


@pytest.mark.parametrize(
    ("bundle", "rank"),
    [
        pytest.param(PRETRAIN, 1, marks=pytest.mark.fault(
            "A21", fault="DDP rank kill -9", injection="SIGKILL to process 1 of 2 in step 5",
            expected=f"the other ends within a minute and says why, run FAILED; {SAME}")),
        pytest.param(SEGMENTATION, 0, marks=pytest.mark.fault(
            "A21s", fault="DDP rank kill -9, segmentation", injection="SIGKILL to process 0 of 2 in step 5",
            expected=f"the other ends within a minute and says why; {SAME}")),
    ],
    ids=["pretrain-1", "segmentation-0"],
)  # fmt: skip
def test_process_killed(
    bundle: Bundle, rank: int, data_of: Data, undisturbed: Callable[[Bundle], Path], tmp_path: Path
) -> None:
    holds = Holds(tmp_path)
    runs = processes(bundle, tmp_path / "run", **data_of(bundle), **holds.option)
    holds.wait(*runs)
    runs[rank].kill()
    holds.let_go()
    other = runs[1 - rank]
    assert other.wait(60) == 1
    assert "This process ends because another one of this run has ended (" in other.text
    assert "most likely because memory ran out. The same command continues from the last checkpoint." in other.text
    assert "ERROR: " not in other.text and "Traceback" not in other.text
    expected = ("failed", "FAILED") if rank else ("running", "RUNNING")  # process 0 keeps the state of the run
    assert state_of(tmp_path / "run", data_of(bundle)) == expected
    assert_same(goes_on(bundle, tmp_path / "run", data_of(bundle)), undisturbed(bundle))


@pytest.mark.fault("A21a", fault="exception in one DDP rank only", injection="process 1 of 2 raises after step 5",
                   expected=f"torchrun ends within a minute; its error is the only one, and torchrun's summary has "
                            f"traceback and cause; {SAME}")  # fmt: skip
def test_exception_in_one_process(
    torchrun: Callable[..., Run], scans: dict[str, str], undisturbed: Callable[[Bundle], Path], tmp_path: Path
) -> None:
    fails = {"_target_": "tests.faults.on_one_rank.FailOnRank", "rank": 1, "step": 5}
    run = torchrun(PRETRAIN, tmp_path / "run", **{"train::progress": fails, **scans})
    run.wait_for(4, SLOW)
    assert run.wait(60) == 1
    cause = "ERROR: scan_7: broken in process 1"
    assert re.findall(r"(?m)^.*ERROR: .*$", run.text) == [f"[rank1]: {cause}", f"  {cause}"]
    own, summary = run.text.split("monai.bundle FAILED") if "monai.bundle FAILED" in run.text else (run.text, run.text)
    assert "[rank0]: This process ends because another one" in own and "[rank0]: Traceback" not in own
    root = summary.partition("Root Cause (first observed failure):")[2]
    assert "rank      : 1 (local_rank: 1)" in root and "traceback : Traceback (most recent call last)" in root
    assert root.rstrip(" =\n").endswith(cause)
    assert state_of(tmp_path / "run", scans) == ("failed", "FAILED")
    assert_same(goes_on(PRETRAIN, tmp_path / "run", scans), undisturbed(PRETRAIN))


@pytest.mark.fault("A21b", fault="DDP ranks die again and again",
                   injection="torchrun --max-restarts 3; SIGKILL to process 0, after the restart to process 1",
                   expected=f"goes on by itself; {SAME.replace('the same command', 'it')}")  # fmt: skip
def test_restarts(
    torchrun: Callable[..., Run], scans: dict[str, str], undisturbed: Callable[[Bundle], Path], tmp_path: Path
) -> None:
    holds = Holds(tmp_path)
    run = torchrun(PRETRAIN, tmp_path / "run", "--max-restarts=3", **holds.option, **scans)
    for rank in (0, 1):
        holds.wait(run)
        os.kill(pids_of(run)[rank], signal.SIGKILL)
        holds.let_go()
    holds.wait(run)
    holds.let_go()
    assert run.wait(SLOW) == 0, run.text[-4000:]
    assert state_of(tmp_path / "run", scans) == ("finished", "FINISHED")
    assert_same(tmp_path / "run", undisturbed(PRETRAIN))


@pytest.mark.fault("A21c", fault="SIGTERM to torchrun (preemption)", injection="kill -TERM of torchrun in step 5",
                   expected=f"all finish the step, one checkpoint, run KILLED, status interrupted; {SAME}")  # fmt: skip
def test_torchrun_told_to_stop(
    torchrun: Callable[..., Run], scans: dict[str, str], undisturbed: Callable[[Bundle], Path], tmp_path: Path
) -> None:
    holds = Holds(tmp_path)
    run = torchrun(PRETRAIN, tmp_path / "run", **holds.option, **scans)
    holds.wait(run)
    run.send(signal.SIGTERM)
    deadline = time.monotonic() + 30
    while run.text.count("closing signal SIGTERM") < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    holds.let_go()
    assert run.wait(60) == 1  # torchrun's own, whatever its processes return
    assert "got signal: 15" in run.text and "SIGTERM: stopped after step" in run.text
    steps = [row["step"] for row in rows_of(tmp_path / "run" / "metrics.jsonl")]
    newest = CheckpointStore(tmp_path / "run" / "checkpoints").newest()
    assert newest is not None and newest["step"] == steps[-1] == len(steps) < PRETRAIN.steps  # nothing is repeated
    assert state_of(tmp_path / "run", scans) == ("interrupted", "KILLED")
    assert_same(goes_on(PRETRAIN, tmp_path / "run", scans), undisturbed(PRETRAIN))


@pytest.mark.parametrize(
    ("bundle", "before", "after"),
    [
        pytest.param(PRETRAIN, 2, 1, marks=pytest.mark.fault(
            "A21d", fault="fewer DDP ranks on resume", injection="2 processes killed in step 5, 1 goes on",
            expected="same samples in every step; losses and weights equal up to rounding")),
        pytest.param(SEGMENTATION, 1, 2, marks=pytest.mark.fault(
            "A21ds", fault="more DDP ranks on resume, segmentation", injection="1 process killed in step 5, 2 go on",
            expected="same samples in every step; losses and weights equal up to rounding")),
    ],
    ids=["pretrain-2-1", "segmentation-1-2"],
)  # fmt: skip
def test_number_of_processes_changed(
    bundle: Bundle, before: int, after: int, data_of: Data, undisturbed: Callable[[Bundle], Path], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    one = {**data_of(bundle), "global_batch_size": 2}
    if before == 2:
        holds = Holds(tmp_path)
        runs = processes(bundle, output, **data_of(bundle), **holds.option)
        holds.wait(*runs)
    else:
        runs = [start(bundle, output, **{"train::progress": hold(5, tmp_path / "held"), **one})]
        runs[0].wait_held(tmp_path / "held")
    for run in runs:
        run.kill()
        run.wait()
    if after == 2:
        goes_on(bundle, output, data_of(bundle))
    else:
        finish(start(bundle, output, **one))
    for row, expected in zip(losses(output), losses(undisturbed(bundle)), strict=True):
        assert row == pytest.approx(expected, rel=1e-3, abs=1e-5)
    first, second = (read_checkpoint(each / "models" / "model.pt") for each in (output, undisturbed(bundle)))
    # Adam makes steps of the learning rate, 1e-3, also where a gradient is nothing but rounding
    assert first.keys() == second.keys()
    assert max(float((first[name].float() - second[name].float()).abs().max()) for name in first) < 8e-3


@pytest.mark.fault("A21e", fault="number of DDP ranks on resume that does not divide the batch",
                   injection="1 process, global batch 3, killed in step 3; 2 processes",
                   expected="all refuse, and name the numbers that fit; one process goes on, bit for bit")  # fmt: skip
def test_number_of_processes_that_does_not_divide(scans: dict[str, str], reference: Reference, tmp_path: Path) -> None:
    three = {**scans, "global_batch_size": 3}
    run = start(PRETRAIN, tmp_path / "run", **{"train::progress": hold(3, tmp_path / "held"), **three})
    run.wait_held(tmp_path / "held")
    run.kill()
    run.wait()
    refused = processes(PRETRAIN, tmp_path / "run", **three)
    for each in refused:
        assert each.wait(60) == 1
        assert "global_batch_size must be a multiple of batch_size x devices = 1 x 2, got 3" in each.text
        assert "A run that is continued keeps it: use 1 or 3 devices." in each.text
    finish(start(PRETRAIN, tmp_path / "run", **three))
    assert_same(tmp_path / "run", reference(PRETRAIN, global_batch_size=3))


@pytest.mark.fault("A21f", fault="DDP rank hangs",
                   injection="SIGSTOP to process 1 of 2 in step 5, process_timeout 20 s",
                   expected=f"the other ends after that time and says why; {SAME}")  # fmt: skip
def test_process_that_hangs(scans: dict[str, str], undisturbed: Callable[[Bundle], Path], tmp_path: Path) -> None:
    holds = Holds(tmp_path)
    options = {"process_timeout": 20, "train::dataloader::worker_timeout": 10}
    runs = processes(PRETRAIN, tmp_path / "run", **scans, **options, **holds.option)
    holds.wait(*runs)
    runs[1].kill(signal.SIGSTOP)
    holds.let_go()
    assert runs[0].wait(60) == 1
    last = runs[0].text.strip().splitlines()[-1]
    cause = r"\((Timed out waiting 20000ms|Application timeout)"
    assert re.match(r"\[rank0\]: ERROR: another process of this run does not answer " + cause, last)
    assert last.endswith("If a process was only slow, raise --process_timeout.")
    runs[1].kill()  # as torchrun does after 30 s
    runs[1].wait()
    assert state_of(tmp_path / "run", scans) == ("failed", "FAILED")
    assert_same(goes_on(PRETRAIN, tmp_path / "run", scans), undisturbed(PRETRAIN))
