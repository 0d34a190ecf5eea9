"""Shared parts of the phases before pre-training and fine-tuning: settings, worker processes, copies."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tqdm import tqdm

from mim_components.data.prepare.quarantine import check_on_bad
from mim_components.data.volumes import DataError
from mim_components.utils.text import bar_options

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


def run_each(
    function: Callable[[T], R], tasks: Sequence[T], num_workers: int, phase: str, unit: str, progress: bool = True
) -> Iterator[R]:
    """Results of `function` in the order of the tasks.

    Args:
        function: function to call, sent to other processes like its results; it must catch errors of bad files.
        tasks: its arguments, one per call.
        num_workers: number of processes; 0 = this one.
        phase: name of the phase, for the progress bar.
        unit: unit of a task, such as "volume".
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
    # workers inherit the mask: Ctrl-C reaches them too, even while they import, but only this process handles it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        try:
            results = pool.map(function, tasks)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield from results
    except KeyboardInterrupt:
        for worker in list(pool._processes.values()):  # their finished work is in the cache
            worker.terminate()
        raise
    except BrokenProcessPool as error:
        raise DataError(f"a worker that prepares {unit}s was killed (out of memory?); {num_workers=}") from error
    finally:
        pool.shutdown(cancel_futures=True)


def note_copies(contents: Iterable[tuple[str, str]], what: str) -> Iterator[str]:
    """A note for every scan whose content occurred before.

    Args:
        contents: names of scans in messages, and their contents, which are equal for copies.
        what: kind of content, such as "voxels".

    Example:
        >>> list(note_copies([("a", "1"), ("b", "2"), ("c", "1")], "voxels"))
        ['c: the same voxels as a; it is kept and counts twice']
    """
    first: dict[str, str] = {}
    for name, content in contents:
        if content in first:
            yield f"{name}: the same {what} as {first[content]}; it is kept and counts twice"
        first.setdefault(content, name)
