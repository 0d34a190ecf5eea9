"""What the phases before pre-training and before fine-tuning share: settings, a team of processes, workers, copies."""

from __future__ import annotations

import hashlib
import multiprocessing
import signal
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import ignite.distributed as idist
import torch.distributed as dist
from tqdm import tqdm

from mim_components.data.prepare.quarantine import check_on_bad
from mim_components.data.volumes import DataError
from mim_components.run.folder import content_changes
from mim_components.utils.files import PARTIAL
from mim_components.utils.text import bar_options

PREPARE_TIMEOUT = timedelta(days=7)  # a process may wait while another decodes thousands of scans
T = TypeVar("T")
R = TypeVar("R")


def check_options(on_bad: str, max_bad_fraction: float, num_workers: int) -> None:
    """Refuse wrong settings.

    Raises:
        DataError: names the setting.
    """
    check_on_bad(on_bad, max_bad_fraction)
    if num_workers < 0:
        raise DataError(f"num_workers must not be negative, got {num_workers=}.")


class Team:
    """Processes of a run that divide tasks, because each can use what the others have done.

    Those with equal keys are a team. All processes of a run make their teams, and call every method, together.

    Args:
        key: of this process: what it works on, and what it can use.
        folder: that results are written to; only processes that see the same one are a team. None = results are not
            in files.

    Attributes:
        size: processes of this team; 1 in a run of one process.
        place: of this process among them.
    """

    def __init__(self, key: str = "", folder: Path | None = None) -> None:
        several = idist.get_world_size() > 1
        self._group = dist.new_group(backend="gloo", timeout=PREPARE_TIMEOUT) if several else None
        self._members = [0]
        if several:
            seen = "" if folder is None else self._who_sees(folder)
            keys = self._gather(hashlib.sha256(f"{key}\n{seen}".encode("utf-8", "surrogateescape")).hexdigest())
            self._members = [rank for rank, each in enumerate(keys) if each == keys[idist.get_rank()]]
        self.size = len(self._members)
        self.place = self._members.index(idist.get_rank()) if several else 0

    def share(self, tasks: Sequence[T]) -> Sequence[T]:
        """The tasks of this process."""
        return tasks[self.place :: self.size]

    def exchange(self, make: Callable[[], R]) -> list[R]:
        """What `make` returns in every process of the team.

        Raises:
            DataError: in all processes alike, when `make` raised it, or an OSError, in one.
        """
        made: list[R] = []
        error: Exception | None = None
        try:
            made.append(make())
        except (DataError, OSError) as caught:
            error = caught
        everywhere = self._gather((None if error is None else str(error), made))
        if error is not None:
            raise error
        for rank, (text, _) in enumerate(everywhere):
            if text is not None:
                raise DataError(f"process {rank} could not prepare the volumes: {text}")
        return [everywhere[rank][1][0] for rank in self._members]

    def divide(self, work: Callable[[Sequence[T]], Sequence[R]], tasks: Sequence[T]) -> list[R]:
        """Results of all tasks in their order, of which `work` makes those of a share.

        Raises:
            DataError: see `exchange`.
        """
        results: list[Any] = [None] * len(tasks)
        for place, part in enumerate(self.exchange(lambda: list(work(self.share(tasks))))):
            results[place :: self.size] = part
        return results

    def check_same(self, digest: str, contents: Mapping[str, str]) -> None:
        """Raise DataError in all processes of the run when their digests differ; names what two of them have."""
        digests = self._gather(digest)
        if len(set(digests)) > 1:
            found, other = self._gather(contents), next(n for n, each in enumerate(digests) if each != digests[0])
            lines = "; ".join(content_changes(found[0], found[other]))
            raise DataError(f"processes of this run found different volumes; {other} against 0: {lines}")

    def _who_sees(self, folder: Path) -> str:
        """Processes whose mark in its folder this process sees in its own."""
        mark = folder / f".{uuid.uuid4().hex}{PARTIAL}"
        with suppress(OSError):  # a folder that cannot be written is for the preparation to say
            folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
        marks = self._gather(mark.name)  # nobody has asked for one of these names before: no file system remembers it
        seen = [rank for rank, name in enumerate(marks) if (folder / name).exists()]
        self._gather(None)
        with suppress(OSError):
            mark.unlink()
        return str(seen)

    def _gather(self, value: Any) -> list[Any]:
        if self._group is None:
            return [value]
        values: list[Any] = [None] * idist.get_world_size()
        dist.all_gather_object(values, value, group=self._group)
        return values


def run_each(
    function: Callable[[T], R], tasks: Sequence[T], num_workers: int, phase: str, unit: str, progress: bool = True
) -> Iterator[R]:
    """Results of `function` in the order of the tasks.

    Args:
        function: sent to other processes, as its results are; it catches what a bad file may raise.
        tasks: its arguments.
        num_workers: processes; 0 works in this one.
        phase: name of the phase, for the progress bar.
        unit: what a task is, such as "volume".
        progress: show a progress bar.

    Raises:
        DataError: a process was killed.
    """
    with tqdm(total=len(tasks), desc=phase, unit=unit, disable=not progress, **bar_options()) as bar:
        for result in _results(function, tasks, num_workers, unit):
            bar.update()
            yield result


def _results(function: Callable[[T], R], tasks: Sequence[T], num_workers: int, unit: str) -> Iterator[R]:
    if num_workers == 0 or len(tasks) < 2:
        yield from map(function, tasks)
        return
    # spawn: a fork would copy the threads' locks of torch and ITK in an unknown state
    pool = ProcessPoolExecutor(min(num_workers, len(tasks)), mp_context=multiprocessing.get_context("spawn"))
    # workers inherit the mask: Ctrl-C reaches them too, also while they import, and this process alone answers it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        try:
            results = pool.map(function, tasks)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield from results
    except KeyboardInterrupt:
        for worker in list(pool._processes.values()):  # what they have finished is in the cache
            worker.terminate()
        raise
    except BrokenProcessPool as error:
        raise DataError(f"a worker that prepares {unit}s was killed (out of memory?); {num_workers=}") from error
    finally:
        pool.shutdown(cancel_futures=True)


def note_copies(contents: Iterable[tuple[str, str]], what: str) -> Iterator[str]:
    """A note for everything that was there before.

    Args:
        contents: what messages call a scan, and its content, which is equal for copies.
        what: what is equal, such as "voxels".

    Example:
        >>> list(note_copies([("a", "1"), ("b", "2"), ("c", "1")], "voxels"))
        ['c: the same voxels as a; it is kept and counts twice']
    """
    first: dict[str, str] = {}
    for name, content in contents:
        if content in first:
            yield f"{name}: the same {what} as {first[content]}; it is kept and counts twice"
        first.setdefault(content, name)
