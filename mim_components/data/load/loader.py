"""Processes that load data leave SIGINT and SIGTERM to the main process, from their first instant to their last.

A workload manager sends signals to all processes of a job, and the main one finishes its step first.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

from monai.data import DataLoader

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class SteadyDataLoader(DataLoader):
    """MONAI's `DataLoader`, to be used with `worker_init_fn=init_worker`.

    Workers begin with the signals blocked, and `init_worker` ignores them. PyTorch's own handler, which ends a worker
    at SIGTERM, never sees one.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Start the workers; signals that this thread gets meanwhile reach it after that."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def init_worker(worker_id: int) -> None:
    """For `DataLoader(worker_init_fn=...)`: ignore the signals, those that came before included."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
