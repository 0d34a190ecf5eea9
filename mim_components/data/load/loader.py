"""Load the samples of a step: worker processes, micro-batches, and actionable messages for worker failures.

Processes that load data leave SIGINT and SIGTERM to the main process for their whole lifetime. A
workload manager signals all processes of a job, and the main one finishes its step first.
"""

from __future__ import annotations

import multiprocessing
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from itertools import islice
from time import perf_counter
from traceback import walk_tb
from typing import Any

import torch
from monai.data import DataLoader
from torch.utils.data import DataLoader as TorchDataLoader

from mim_components.data.load.sampler import StepSampler
from mim_components.utils.text import CONTINUES, sentence

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class SteadyDataLoader(DataLoader):
    """MONAI's `DataLoader`, whose workers leave signals to the main process.

    They start with the signals blocked, and `init_worker` ignores them. PyTorch's own handler, which ends a worker on
    SIGTERM, never sees one.

    Args:
        dataset: dataset to load from.
        num_workers: number of loading processes; 0 = this one.
        worker_timeout: seconds after which a worker that delivers nothing ends the run.
        device: device of the batches; memory is pinned for CUDA.
        **options: see `torch.utils.data.DataLoader`.

    Example:
        >>> [batch.tolist() for batch in SteadyDataLoader([1, 2, 3], batch_size=2)]
        [[1, 2], [3]]
    """

    def __init__(
        self,
        dataset: Any,
        num_workers: int = 0,
        worker_timeout: float = 0,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> None:
        timeout = worker_timeout if num_workers else 0
        pinned = torch.device(device).type == "cuda"
        options = {"worker_init_fn": init_worker, "timeout": timeout, "pin_memory": pinned} | options
        super().__init__(dataset, num_workers, **options)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Start the workers; signals that arrive meanwhile are delivered to this thread afterwards."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def init_worker(worker_id: int) -> None:
    """For `DataLoader(worker_init_fn=...)`: ignore the signals, including pending ones."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


class StepLoader:
    """Loads the samples of optimizer steps, and measures how long steps wait for data.

    Iterating yields, for every optimizer step, an iterator over its micro-batches; workers prepare the next ones
    meanwhile. So a trainer's iteration is an optimizer step, and schedules, logs and checkpoints count steps.

    Args:
        dataset: dataset with keys `(epoch, index)`.
        num_steps: optimizer steps of the whole run.
        global_batch_size: samples per optimizer step, over all processes and micro-batches.
        batch_size: samples per process and micro-batch; "auto" is 1, until `set_batch_size`.
        num_workers: number of loading processes; 0 = this one.
        worker_timeout: seconds after which a worker that delivers nothing ends the run.
        device: device of the batches; memory is pinned for CUDA.
        seed: seed of the order of the samples.

    Raises:
        ValueError: workers without a timeout, or batch sizes that do not divide.

    Attributes:
        batch_size: as given.
        sampler: defines the samples of each step.
        waited: seconds spent waiting for data since the last `reset_clock`.
        awaited: (epoch, index) of the samples of the awaited micro-batch.

    Example:
        >>> class Keys:  # an item is its key
        ...     __len__ = lambda self: 3
        ...     __getitem__ = lambda self, key: torch.tensor(key)
        >>> loader = StepLoader(Keys(), num_steps=2, global_batch_size=4, batch_size=2)
        >>> [[len(batch) for batch in step] for step in loader]  # two micro-batches of two samples make up a step
        [[2, 2], [2, 2]]
    """

    def __init__(
        self,
        dataset: Any,
        num_steps: int,
        global_batch_size: int,
        batch_size: int | str = 1,
        num_workers: int = 0,
        worker_timeout: float = 600,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        if num_workers and not worker_timeout > 0:
            raise ValueError(
                f"worker_timeout must be positive, got {worker_timeout}: a worker that hangs stops the run."
            )
        samples = 1 if isinstance(batch_size, str) else batch_size
        self.batch_size = batch_size
        self.sampler = StepSampler(len(dataset), num_steps, global_batch_size, samples, seed)
        self.num_workers = num_workers
        self.worker_timeout = worker_timeout
        self.device = torch.device(device)
        self.data_loader = self._loader_of(dataset)
        self.waited = 0.0
        self.awaited: list[tuple[int, int]] = []

    def set_batch_size(self, batch_size: int) -> None:
        """Change the size of a micro-batch before the first one is loaded; steps keep their samples.

        Raises:
            ValueError: `batch_size` does not divide the global batch.
        """
        self.sampler.set_batch_size(batch_size)
        self.data_loader = self._loader_of(self.data_loader.dataset)

    def _loader_of(self, dataset: Any) -> SteadyDataLoader:
        how: dict[str, Any] = {"sampler": self.sampler, "batch_size": self.sampler.batch_size}
        return SteadyDataLoader(dataset, self.num_workers, self.worker_timeout, self.device, **how)

    def __len__(self) -> int:
        """Number of optimizer steps left."""
        return self.sampler.num_steps - self.sampler.start_step

    def __iter__(self) -> Iterator[Iterator[Any]]:
        """Yield the micro-batches of each step."""
        batches = self._timed(iter(self.data_loader))
        if self.device.type == "cuda":
            batches = copied_ahead(batches, self.device)
        for _ in range(self.sampler.start_step, self.sampler.num_steps):
            yield islice(batches, self.sampler.accumulation)

    def _timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield the micro-batches of all steps, timing the wait."""
        for step in range(self.sampler.start_step, self.sampler.num_steps):
            for samples in self.sampler.samples_of(step):
                start = perf_counter()
                self.awaited = samples
                batch = next(batches)
                self.awaited = []
                self.waited += perf_counter() - start
                yield batch

    def awaited_names(self) -> list[str]:
        """Names of the volumes in the awaited micro-batch; none while a step computes."""
        items: Any = self.data_loader.dataset
        while hasattr(items, "data"):  # unwrap nested datasets, whose items would be loaded
            items = items.data
        return list(dict.fromkeys(str(items[index].get("name", index)) for _, index in self.awaited))

    def reset_clock(self) -> float:
        """Return the seconds waited since the last call."""
        waited, self.waited = self.waited, 0.0
        return waited


def copied_ahead(batches: Iterator[Any], device: torch.device) -> Iterator[Any]:
    """Batches on a CUDA device, each copied there while the preceding step computes.

    Args:
        batches: dictionaries with tensors in pinned memory.
        device: target device; copies have a stream of their own.
    """
    stream, computing = torch.cuda.Stream(device), torch.cuda.current_stream(device)

    def copy(batch: dict[str, Any]) -> dict[str, Any]:
        with torch.cuda.stream(stream):
            return {name: each.to(device, non_blocking=True) if isinstance(each, torch.Tensor) else each
                    for name, each in batch.items()}  # fmt: skip

    ahead = (copy(batch) for batch in batches)
    following = next(ahead, None)
    while following is not None:
        batch = following
        computing.wait_stream(stream)
        for each in batch.values():
            if isinstance(each, torch.Tensor):
                each.record_stream(computing)  # its memory was allocated on the other stream
        following = next(ahead, None)
        yield batch


LOWER = "Lower --num_workers, --batch_size or the size of the crops"


class WorkerError(RuntimeError):
    """A process that loads data was killed, hangs, or is out of memory; says what to lower."""


def explain_worker_error(
    error: BaseException, awaited: Sequence[str] = (), how_to_continue: str = CONTINUES
) -> WorkerError | None:
    """An actionable message for a worker failure; None for other errors.

    Args:
        error: error raised by PyTorch's DataLoader.
        awaited: names of the volumes in the awaited batch.
        how_to_continue: that of the run's folder.
    """
    text, again = str(error), f"{sentence(how_to_continue)} from the last checkpoint."
    lost = isinstance(error, (ConnectionError, EOFError)) and _is_of_loader(error)
    if not (isinstance(error, RuntimeError) or lost) or isinstance(error, WorkerError):
        return None
    names = f" It was loading: {', '.join(awaited)}." if awaited else ""
    if "shared memory" in text or "Bus error" in text or ("unable to" in text and "/torch_" in text):
        cut = " Or a cache file was truncated while it was read: the next start detects and regenerates it."
        return WorkerError(
            f"a data worker ran out of shared memory (/dev/shm).{names} {LOWER}, or raise the limit "
            f"(docker run --shm-size).{cut if 'Bus error' in text else ''} {again}"
        )
    if "Too many open files" in text or "received 0 items of ancdata" in text:
        return WorkerError(f"too many open files (ulimit -n).{names} Raise the limit, or lower --num_workers. {again}")
    if found := re.search(r"DataLoader timed out after (\S+) seconds", text):
        return WorkerError(
            f"a data worker hangs: no batch for {found[1]} s (worker_timeout).{names} If reading is only slow, raise "
            f"--worker_timeout or lower --num_workers. {again}"
        )
    if lost or ("DataLoader worker" in text and ("killed by signal" in text or "exited unexpectedly" in text)):
        return WorkerError(
            f"a data worker was killed, most likely because memory ran out.{names} {LOWER}. {again} ({text.strip()})"
        )
    return None


def _is_of_loader(error: BaseException) -> bool:
    """Whether the error arose in PyTorch's loader: a finished batch was lost with its worker."""
    return any(
        frame.f_globals.get("__name__") == TorchDataLoader.__module__ for frame, _ in walk_tb(error.__traceback__)
    )


def kill_workers() -> None:
    """Kill all child processes: the exit would wait for a hanging worker, which ignores SIGTERM.

    PyTorch's handler, which would report their end as another error, is suspended.
    """
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if in_main else None
    children = multiprocessing.active_children()
    for child in children:
        child.kill()
    for child in children:
        child.join()
    if before is not None:
        signal.signal(signal.SIGCHLD, before)
