"""What PyTorch says of a worker that was killed, hangs or has no memory, put so that one knows what to do."""

from __future__ import annotations

import multiprocessing
import re
import signal
import threading
from collections.abc import Sequence
from traceback import walk_tb

from torch.utils.data import DataLoader

LOWER = "Lower --num_workers, --batch_size or the size of the crops"
AGAIN = "The same command continues from the last checkpoint."


class WorkerError(RuntimeError):
    """A process that loads data was killed, hangs, or has no memory; says what to lower."""


def explain_worker_error(error: BaseException, awaited: Sequence[str] = ()) -> WorkerError | None:
    """The error in words that help, where it is one of a worker; else None.

    Args:
        error: as PyTorch's DataLoader raised it.
        awaited: names of the volumes of the batch that was waited for.
    """
    text = str(error)
    lost = isinstance(error, (ConnectionError, EOFError)) and _is_of_loader(error)
    if not (isinstance(error, RuntimeError) or lost) or isinstance(error, WorkerError):
        return None
    names = f" It was loading: {', '.join(awaited)}." if awaited else ""
    if "shared memory" in text or "Bus error" in text or ("unable to" in text and "/torch_" in text):
        cut = " Or a file of the cache was cut short while it was read: the next start finds and remakes it."
        return WorkerError(
            f"a data worker found no room in shared memory (/dev/shm).{names} {LOWER}, or raise the limit "
            f"(docker run --shm-size).{cut if 'Bus error' in text else ''} {AGAIN}"
        )
    if "Too many open files" in text or "received 0 items of ancdata" in text:
        return WorkerError(f"too many open files (ulimit -n).{names} Raise the limit, or lower --num_workers. {AGAIN}")
    if found := re.search(r"DataLoader timed out after (\S+) seconds", text):
        return WorkerError(
            f"a data worker hangs: no batch for {found[1]} s (worker_timeout).{names} If reading is only slow, raise "
            f"--worker_timeout or lower --num_workers. {AGAIN}"
        )
    if lost or ("DataLoader worker" in text and ("killed by signal" in text or "exited unexpectedly" in text)):
        return WorkerError(
            f"a data worker was killed, most likely because memory ran out.{names} {LOWER}. {AGAIN} ({text.strip()})"
        )
    return None


def _is_of_loader(error: BaseException) -> bool:
    """Whether PyTorch's loader met it: a batch that a worker had ready went with the worker."""
    return any(frame.f_globals.get("__name__") == DataLoader.__module__ for frame, _ in walk_tb(error.__traceback__))


def kill_workers() -> None:
    """End all child processes: a worker that hangs, and ignores SIGTERM, would be waited for at exit.

    PyTorch's handler would report their end as an error of its own, in the place of the one that is known.
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
