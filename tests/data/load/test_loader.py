"""Workers and signals sent to all processes of a job."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from monai.data import DataLoader

from mim_components.data.load.loader import SteadyDataLoader, init_worker


def signalled_early(worker_id: int) -> None:
    """The signal arrives while a worker starts, before the worker can ignore it."""
    os.kill(os.getpid(), signal.SIGTERM)
    init_worker(worker_id)


def signalled_late(worker_id: int) -> None:
    init_worker(worker_id)
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("init", [signalled_early, signalled_late])
def test_signals_end_no_worker(init: object) -> None:
    loader = SteadyDataLoader([1, 2, 3], num_workers=1, worker_init_fn=init, multiprocessing_context="fork")
    assert [int(batch) for batch in loader] == [1, 2, 3]


def test_without_it_a_signal_at_the_start_ends_the_worker() -> None:
    loader = DataLoader([1, 2, 3], num_workers=1, worker_init_fn=signalled_early, multiprocessing_context="fork")
    with pytest.raises(RuntimeError, match="DataLoader worker .* exited unexpectedly"):
        list(loader)


def test_main_thread_gets_its_signal_after_the_workers_have_started(monkeypatch: pytest.MonkeyPatch) -> None:
    came: list[str] = []

    def begin(loader: DataLoader) -> Iterator[str]:
        signal.raise_signal(signal.SIGTERM)
        return iter(came.copy())

    monkeypatch.setattr(DataLoader, "__iter__", begin)
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append("signal"))
    try:
        assert list(SteadyDataLoader([1])) == [] and came == ["signal"]
    finally:
        signal.signal(signal.SIGTERM, before)
