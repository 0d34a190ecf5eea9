"""Run the cells of a study: each is a sequence of single-threaded, low-priority processes; cells run concurrently.

A cell is locked while it runs. The lock is a kernel lock (`flock`) that the processes of the cell inherit, so it
outlives a killed runner: no other runner takes a cell that still has a process. The cost of a cell is recorded in its
folder and summed over interruptions.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from pathlib import Path
from time import monotonic, sleep
from types import FrameType
from typing import IO, Any

import torch

from mim_components.utils.files import sha256
from studies.attempts import cost_of, last_lines, note
from studies.definition import ENCODER, ROOT, Cell, Study, StudyError
from studies.results import DONE, FAILED, append_result, facts_of, outcome_of, read_results

logger = logging.getLogger(__name__)

LOG = "{command}.log"
INTERRUPTED = "interrupted"
TRIES = 3


@contextmanager
def locked(path: Path) -> Iterator[IO[str] | None]:
    """The open lock file, or None if another process, or a child of it, holds the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for _ in range(TRIES):  # `is_running` holds it for an instant
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                sleep(0.1)
            else:
                yield file
                return
        yield None


def is_running(work: Path, cell: Cell) -> bool:
    """Whether a process holds the lock of a cell."""
    path = _lock_path(work, cell)
    if not path.exists():
        return False
    with locked(path) as lock:
        return lock is None


def _lock_path(work: Path, cell: Cell) -> Path:
    return work / "locks" / f"{cell.folder.replace('/', '_')}.lock"


def chosen(study: Study, pattern: str | None) -> list[Cell]:
    """Cells whose names match a pattern such as `mim/*`, and the cells they need, in the study's order.

    Raises:
        StudyError: no cell matches.
    """
    names = [name for name in study.cells if pattern is None or fnmatchcase(name, pattern)]
    if not names:
        raise StudyError(f"--only {pattern!r} matches none of the cells: {', '.join(study.cells)}.")
    wanted = {*names, *(study.cells[name].needs for name in names)}
    return [cell for name, cell in study.cells.items() if name in wanted]


class Runner:
    """Runs cells until none is left that can run.

    Args:
        study: study that the cells belong to.
        cells: cells in the order in which they run.
        data: folder of the source data.
        work: working folder of the study.
        results: file to which a line per cell is added.
        commit: commit of the code, for the results.
        retry: run failed cells again.
        niceness: niceness of the processes; 19 = yield to everything else on the machine.
    """

    def __init__(
        self,
        study: Study,
        cells: list[Cell],
        data: Path,
        work: Path,
        results: Path,
        commit: str,
        retry: bool = False,
        niceness: int = 19,
    ) -> None:
        self.study = study
        self.cells = {cell.name: cell for cell in cells}
        self.work = work.absolute()
        self.places = {"data": str(data.absolute()), "work": str(self.work)}
        self.results = results
        self.commit = commit
        self.niceness = niceness
        self.stopping = False
        self._guard = threading.Condition()
        self._waiting = list(cells)
        self._active: set[str] = set()
        self._elsewhere: set[str] = set()
        self._gpus = visible_gpus()
        self._own = threading.local()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._untold: set[subprocess.Popen[bytes]] = set()  # those of them not yet told to stop
        self._states = {name: line["state"] for name, line in read_results(results, study).items()}
        if retry:
            self._states = {name: state for name, state in self._states.items() if state == DONE}
        for name in {cell.needs for cell in cells if cell.needs and cell.name not in self._states}:
            if self._states.get(name) == DONE and not self._has_encoder(study.cells[name]):
                logger.info("%s: done before, but its encoder is not in %s; running it again", name, self.work)
                del self._states[name]

    def run(self, jobs: int) -> dict[str, str]:
        """Run up to `jobs` cells at a time; returns the state of every cell that has one.

        SIGTERM and SIGINT are forwarded once: the bundles finish their step and write a checkpoint.
        """
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            with ThreadPoolExecutor(jobs) as pool:
                workers = [pool.submit(self._work, number) for number in range(jobs)]
                for worker in workers:
                    worker.result()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return {name: self._states[name] for name in self.cells if name in self._states}

    @property
    def elsewhere(self) -> list[str]:
        """Cells that other processes were running."""
        return sorted(self._elsewhere)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Forward the first signal once to every process, and every later one too, on which a bundle exits at once.

        Takes no lock, since a worker or the main thread itself may hold it.
        """
        again, self.stopping = self.stopping, True
        for process in list(self._processes):
            self._terminate(process, again)

    def _terminate(self, process: subprocess.Popen[bytes], again: bool = False) -> None:
        """Send SIGTERM; not through `Popen`, which would reap a finished process before its cost is read."""
        with suppress(KeyError, ProcessLookupError):
            if not again:
                self._untold.remove(process)
            os.kill(process.pid, signal.SIGTERM)

    def _work(self, number: int) -> None:
        """Run cells in a thread of the pool; a machine's GPUs are dealt out to the threads."""
        self._own.gpu = self._gpus[number % len(self._gpus)] if self._gpus else None
        while (cell := self._next()) is not None:
            state = self._attempt(cell)
            with self._guard:
                self._active.discard(cell.name)
                if state is None:
                    self._elsewhere.add(cell.name)
                else:
                    self._states[cell.name] = state
                self._guard.notify_all()

    def _attempt(self, cell: Cell) -> str | None:
        """The state of a cell after it has run, None if another process runs it; on an error the other cells go on."""
        try:
            return self._take(cell)
        except Exception as error:
            try:
                return self._fail(cell, repr(error))
            except Exception as again:
                logger.error("%s: the failure is not in %s, %r", cell.name, self.results, again)
                return FAILED

    def _next(self) -> Cell | None:
        """The first cell that can run; waits while a running cell may make another one ready."""
        with self._guard:
            while not self.stopping:
                for cell in list(self._waiting):
                    if self._is_ready(cell):
                        self._waiting.remove(cell)
                        self._active.add(cell.name)
                        return cell
                if not self._active or not self._waiting:
                    return None
                self._guard.wait(timeout=1.0)  # a signal handler cannot notify
            return None

    def _is_ready(self, cell: Cell) -> bool:
        """Whether the cell that this one needs is done; drops this cell if its state is already settled."""
        if cell.name in self._states:
            self._waiting.remove(cell)
            return False
        needed = self._states.get(cell.needs) if cell.needs else DONE
        if needed == FAILED:
            self._waiting.remove(cell)
            self._states[cell.name] = "skipped"
            logger.warning("%s: skipped, %s has failed", cell.name, cell.needs)
        return needed == DONE

    def _take(self, cell: Cell) -> str | None:
        with locked(_lock_path(self.work, cell)) as lock:
            if lock is None:
                logger.info("%s: another process runs it", cell.name)
                return None
            line = read_results(self.results, self.study).get(cell.name, {})
            if line.get("state") == DONE and self._has_encoder(cell):  # meanwhile, by another process
                return DONE
            return self._run_commands(cell, lock)

    def _has_encoder(self, cell: Cell) -> bool:
        """Whether the encoder that other cells need from this one is in the working folder; True for fine-tunings."""
        return cell.phase != "pretraining" or (cell.folder_in(self.work) / ENCODER).exists()

    def _encoder_digest(self, cell: Cell) -> str | None:
        """SHA-256 of the encoder that a pre-training wrote or a fine-tuning began with; None from scratch."""
        source = cell if cell.phase == "pretraining" else self.study.cells[cell.needs] if cell.needs else None
        path = source.folder_in(self.work) / ENCODER if source else None
        return sha256(path) if path and path.exists() else None

    def _run_commands(self, cell: Cell, lock: IO[str]) -> str:
        folder = cell.folder_in(self.work)
        folder.mkdir(parents=True, exist_ok=True)
        logger.info("%s: starts in %s", cell.name, folder)
        for command in cell.commands:
            words = command.filled({**self.places, "cell": str(folder)})
            log = folder / LOG.format(command=command.name)
            if self.stopping:
                return INTERRUPTED
            status = self._call(words, folder, command.name, log, lock)
            if self.stopping and status:
                logger.info("%s: interrupted in %s", cell.name, command.name)
                return INTERRUPTED
            if status:
                return self._fail(cell, f"{command.name}: exit status {status}", last_lines(log))
        outcome = {"encoder": self._encoder_digest(cell), **outcome_of(folder, cell.phase)}
        self._record(cell, {"state": DONE, **cost_of(folder), **outcome})
        for name in self.study.prune:
            shutil.rmtree(folder / name, ignore_errors=True)
        logger.info("%s: done", cell.name)
        return DONE

    def _call(self, words: list[str], folder: Path, name: str, log: Path, lock: IO[str]) -> int:
        """Run a command and record its cost; returns its exit status, -N for signal N."""
        threads = str(self.study.threads)
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads,
            "GOMP_SPINCOUNT": "0", "OMP_WAIT_POLICY": "passive", "MPLBACKEND": "Agg",
            "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONPATH": paths,
            # glibc keeps freed memory instead of asking the kernel for it again in every step
            "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40),
            **({"CUDA_VISIBLE_DEVICES": self._own.gpu} if self._gpus else {}),
        }  # fmt: skip
        start = monotonic()
        note(folder, command=name, started=datetime.now(timezone.utc).isoformat(timespec="seconds"))
        with log.open("ab") as output:
            # a session of its own: Ctrl-C reaches the bundles once, through this process
            process = subprocess.Popen(
                ["nice", "-n", str(self.niceness), sys.executable, *words],
                cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True, pass_fds=(lock.fileno(),),
            )  # fmt: skip
            self._untold.add(process)
            self._processes.add(process)
            with suppress(OSError):  # Linux shares the cores between sessions first, and `nice` acts only within one
                Path(f"/proc/{process.pid}/autogroup").write_text(str(self.niceness))
            if self.stopping:  # the signal came between the check and here
                self._terminate(process)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            self._processes.discard(process)
            self._untold.discard(process)
        seconds = {"seconds": round(monotonic() - start, 1), "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1)}
        note(folder, command=name, status=process.returncode, **seconds)
        return process.returncode

    def _fail(self, cell: Cell, cause: str, log: str = "") -> str:
        logger.error("%s: failed, %s\n%s", cell.name, cause, log)
        folder = cell.folder_in(self.work)
        self._record(cell, {"state": FAILED, "cause": cause, "log": log, **cost_of(folder)})
        return FAILED

    def _record(self, cell: Cell, outcome: Mapping[str, Any]) -> None:
        append_result(self.results, {**facts_of(self.study, cell, self.commit), **outcome})


def visible_gpus() -> list[str]:
    """Values of CUDA_VISIBLE_DEVICES that each select one of the GPUs that this process sees."""
    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:count] if named else [str(number) for number in range(count)]


def default_jobs(threads: int) -> int:
    """Number of concurrent cells: one per GPU, or as many as the cores that this process may use have threads for."""
    if gpus := visible_gpus():
        return len(gpus)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // threads)
