"""Tiny runs of a bundle in processes of their own, and access to their results."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from mim_components.run.checkpoints import CheckpointStore
from mim_components.utils.tensor_files import read_checkpoint
from tests.small import SMALL, SMALL_PRETRAIN

ROOT = Path(__file__).resolve().parents[2]
POLL = 0.01  # seconds
TIMES = ("samples_per_second", "data_wait_share")
# warnings are not what these runs test; telemetry stays off; one thread: two runs at once share few cores
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "PYTHONWARNINGS": "ignore",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "MPLBACKEND": "Agg",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}


@dataclass(frozen=True)
class Bundle:
    """A bundle with the options of a tiny run."""

    name: str
    options: Mapping[str, Any] = field(hash=False)

    @property
    def config(self) -> Path:
        """The configuration file of a training."""
        return ROOT / "bundles" / self.name / "configs" / "train.json"

    @property
    def steps(self) -> int:
        """Optimizer steps of a run."""
        return int(self.options["max_steps"])


NOTHING = {"_target_": "tests.faults.hold.Hold"}  # in place of handlers that draw
COMMON = SMALL | {
    "log_interval": 1,
    "max_steps": 8,
    "checkpoint_interval": 2,
    "learning_rate": 1e-3,
    "prepare_workers": 0,  # each would import everything again, for three scans
    "train::progress": NOTHING,
}
PRETRAIN = Bundle(
    "mim_pretrain",
    SMALL_PRETRAIN
    | COMMON
    | {
        "num_children": 2,
        "global_batch_size": 2,
        "batch_size": 1,
        "warmup_steps": 2,
        "train::pictures": NOTHING,
        "train::checkpoints::keep": 2,
    },
)
SEGMENTATION = Bundle(
    "mim_msd_spleen_segmentation",
    COMMON
    | {
        "pretrained": "none",
        "spacing": [9.0, 9.0, 9.0],
        "roi_size": [32, 32, 32],
        "overlap": 0.0,
        "num_samples": 1,
        "global_batch_size": 1,
        "validation_steps": 2,
    },
)


def environment_of_runs() -> dict[str, str]:
    """This process's environment, with the variables common to all runs."""
    return {**os.environ, **ENVIRONMENT}


class Run:
    """A run in a process (group) of its own.

    Attributes:
        output: its output folder.
        pid: id of the process, and of its group.
    """

    def __init__(self, output: Path, log: Path, process: subprocess.Popen[bytes] | None, pid: int) -> None:
        self.output, self.log, self.process, self.pid = output, log, process, pid

    @property
    def text(self) -> str:
        """Its output so far, stdout and stderr together."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def error(self) -> str:
        """The last line that begins with ERROR, with the lines after it; empty if there is none."""
        found = re.split(r"(?m)^(?=ERROR: )", self.text)
        return found[-1].strip() if len(found) > 1 else ""

    @property
    def code(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        if self.process is not None:
            return self.process.poll()
        exited = Path(f"{self.log}.exit")
        return int(exited.read_text()) if exited.exists() else None

    def wait(self, timeout: float = 120) -> int:
        """Wait for the end and return the exit code; a run that hangs is killed, and fails the test."""
        self._until(lambda: self.code is not None, timeout, "has not ended")
        code = self.code
        assert code is not None
        return code

    def wait_for(self, step: int, timeout: float = 120) -> None:
        """Wait until a step is logged."""
        self._until(lambda: any(row["step"] >= step for row in rows_of(self.output / "metrics.jsonl")), timeout,
                    f"has not reached step {step}", ended=True)  # fmt: skip

    def wait_for_file(self, pattern: str, timeout: float = 120) -> Path:
        """Wait until the output folder contains a matching file; returns the first."""
        self._until(lambda: any(self.output.glob(pattern)), timeout, f"has not made {pattern}", ended=True)
        return sorted(self.output.glob(pattern))[0]

    def wait_held(self, file: Path, timeout: float = 120) -> None:
        """Wait until it holds at a step, see `hold`; it goes on when the file is removed."""
        self._until(file.exists, timeout, f"has not come to {file.name}", ended=True)

    def _until(self, condition: Any, timeout: float, text: str, ended: bool = False) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline or (ended and self.code is not None and not condition()):
                code = self.code
                self.kill()
                said = self.text[-3000:]
                raise AssertionError(f"the run {text} after at most {timeout} s, exit code {code}:\n{said}")
            time.sleep(POLL)

    def send(self, number: int) -> None:
        """Send a signal to the main process only."""
        os.kill(self.pid, number)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the process and all its children, as a workload manager does."""
        if self.code is None:
            os.killpg(self.pid, number)


class Server:
    """A fork server, see fork_server.py.

    Args:
        prefix: words before its command.
    """

    def __init__(self, prefix: Sequence[str] = ()) -> None:
        command = [*prefix, sys.executable, str(Path(__file__).with_name("fork_server.py"))]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment_of_runs(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def fork(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        program: str | None = None,
        cwd: Path = ROOT,
    ) -> int:
        """Start `python -m monai.bundle`, or a program; returns the process id."""
        request = {"program": program, "argv": list(argv), "environment": dict(environment)}
        request |= {"cwd": str(cwd), "log": str(log)}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    @property
    def pid(self) -> int:
        """Of the server."""
        return self._process.pid

    def close(self) -> None:
        """End the server; its children continue."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@cache
def server() -> Server:
    """The server that most runs use."""
    return Server()


def command_of(bundle: Bundle, output: Path, *arguments: str, **options: Any) -> list[str]:
    """The arguments of `python -m monai.bundle`; options that are None are left out."""
    given = {**bundle.options, "output_dir": str(output), **options}
    config = [] if "--config_file" in arguments else ["--config_file", str(bundle.config)]
    pairs = [part for name, value in given.items() if value is not None for part in (f"--{name}", str(value))]
    return ["run", *config, *arguments, *pairs]


def configs(bundle: Bundle) -> tuple[str, str]:
    """The option with both configuration files of a training in several processes."""
    return "--config_file", f"['{bundle.config}','{bundle.config.with_name('multi_gpu_train.json')}']"


def hold(step: int, file: Path, event: str = "ITERATION_STARTED") -> dict[str, Any]:
    """Value of the option `train::progress`: wait at a step (before validation and checkpoint) while a file exists.

    As `train::pictures` (pre-training only) it waits after the checkpoint.
    """
    return {**NOTHING, "event": event, "step": step, "file": str(file)}


def start(
    bundle: Bundle,
    output: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    plain: bool = False,
    forked_by: Server | None = None,
    **options: Any,
) -> Run:
    """Start a training of a bundle.

    Args:
        bundle: bundle to run.
        output: output folder of the run.
        arguments: further arguments, such as "--config_file" and its value in place of the bundle's own.
        environment: variables added to the environment.
        prefix: words before the command, such as `unshare -rm sh -c "...; exec $@" sh`.
        plain: start a new interpreter, as a user does; always so with a prefix.
        forked_by: fork server to use instead of the shared one.
        options: options of the bundle, in addition to those of `bundle`.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    log = output.parent / f"{output.name}_{uuid.uuid4().hex[:6]}.log"
    argv = command_of(bundle, output, *arguments, **options)
    if not (prefix or plain):
        return Run(output, log, None, (forked_by or server()).fork(argv, environment or {}, log))
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "monai.bundle", *argv],
            cwd=ROOT,
            env={**environment_of_runs(), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Run(output, log, process, process.pid)


def ranks(count: int = 2) -> list[dict[str, str]]:
    """The environments that torchrun would give `count` processes of one machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    shared["LOCAL_WORLD_SIZE"] = str(count)
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def start_each(argv: Sequence[str], folder: Path, program: str | None = None) -> list[Run]:
    """Start two processes as torchrun does; their logs are 0.log and 1.log in a folder."""
    runs = []
    for rank, environment in enumerate(ranks()):
        log = folder / f"{rank}.log"
        pid = server().fork(argv, {**environment_of_runs(), **environment}, log, program)
        runs.append(Run(folder, log, None, pid))
    return runs


def finish(run: Run, timeout: float = 120) -> Run:
    """Wait for a run that must succeed."""
    code = run.wait(timeout)
    assert code == 0, run.text[-4000:]
    return run


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a JSON lines file, without times; empty if there is no file."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [{name: value for name, value in json.loads(line).items() if name not in TIMES} for line in lines]


def losses(output: Path) -> list[dict[str, Any]]:
    """The logged losses of every step, then the validation results."""
    return rows_of(output / "metrics.jsonl") + rows_of(output / "validation.jsonl")


def weights_digest(output: Path) -> str:
    """Digest of all bits of a run's weights, and of those in its newest checkpoint."""
    newest = CheckpointStore(output / "checkpoints").paths()[-1]
    sha = hashlib.sha256(newest.name.encode())
    for weights in (read_checkpoint(output / "models" / "model.pt"), read_checkpoint(newest)["network"]):
        for name, value in sorted(weights.items()):
            sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            sha.update(
                value.contiguous().flatten().view(torch.uint8).numpy().tobytes() if value.ndim else str(value).encode()
            )
    return sha.hexdigest()


def assert_same(output: Path, reference: Path) -> None:
    """Two finished runs are the same, bit for bit."""
    assert losses(output) == losses(reference)
    assert weights_digest(output) == weights_digest(reference)


@cache
def mounts_possible() -> bool:
    """Whether this user may mount in a namespace of its own."""
    try:
        command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False
