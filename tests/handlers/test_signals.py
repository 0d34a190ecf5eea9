"""Graceful shutdown on the first signal, immediate exit on the second."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from ignite.engine import Engine

from mim_components.handlers import signals as module
from mim_components.handlers.signals import StopSignals

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture
def received() -> Iterator[list[int]]:
    """Signals that reach the previous handlers; the handlers of the process are restored afterwards."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    numbers: list[int] = []
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: numbers.append(number))
    yield numbers
    for number, handler in before.items():
        signal.signal(number, handler)


def make_training(signals_at: dict[int, list[int]]) -> tuple[Engine, StopSignals, list[int], list[int]]:
    """A training of 5 steps; returns it, the handler, and the lists of finished and of saved steps."""
    finished: list[int] = []
    saved: list[int] = []

    def step(engine: Engine, batch: None) -> None:
        for number in signals_at.get(engine.state.iteration, []):
            signal.raise_signal(number)
        finished.append(engine.state.iteration)

    engine = Engine(step)
    checkpoints: Any = SimpleNamespace(save=lambda engine: saved.append(engine.state.iteration))
    folder: Any = SimpleNamespace(
        checkpoints=checkpoints, at_end=lambda handler: None, stopped="", how_to_continue="this"
    )
    handler = StopSignals(folder)
    handler.attach(engine)
    return engine, handler, finished, saved


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_first_signal_finishes_the_step_saves_and_exits(number: int, code: int, received: list[int]) -> None:
    engine, handler, finished, saved = make_training({3: [number]})
    with pytest.raises(SystemExit) as stopped:
        engine.run([None] * 5)
    assert stopped.value.code == code
    assert finished == [1, 2, 3] and saved == [3] and received == []
    assert handler.folder.stopped == (
        f"{signal.Signals(number).name}: stopped after step 3 of 5, checkpoint saved; this."
    )
    handler.close()


@pytest.mark.parametrize("second", SIGNALS)
def test_second_signal_goes_to_whom_it_went_before(second: int, received: list[int]) -> None:
    engine, handler, finished, saved = make_training({3: [signal.SIGTERM, second]})
    with pytest.raises(SystemExit):
        engine.run([None] * 5)
    assert received == [second]
    assert not any(signal.getsignal(number) == handler.receive for number in SIGNALS)


def test_signal_that_torchrun_repeats_is_one_signal(received: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    engine, handler, finished, saved = make_training({3: [signal.SIGTERM, signal.SIGTERM]})
    with pytest.raises(SystemExit) as stopped:
        engine.run([None] * 5)
    assert stopped.value.code == 143 and saved == [3] and received == []
    handler.close()


@pytest.mark.parametrize(("second", "later"), [(signal.SIGTERM, 3.1), (signal.SIGINT, 0.0)])
def test_later_or_other_signal_is_a_second_one_also_under_torchrun(
    second: int, later: float, received: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    times = iter([0.0, later, later])
    monkeypatch.setattr(module, "monotonic", lambda: next(times))
    engine, handler, finished, saved = make_training({3: [signal.SIGTERM, second]})
    with pytest.raises(SystemExit):
        engine.run([None] * 5)
    assert received == [second]


@pytest.fixture
def interactive() -> Iterator[None]:
    """Restore Python's handler of Ctrl-C, since a shell starts background jobs with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interactive")
def test_second_ctrl_c_interrupts_the_step() -> None:
    engine, handler, finished, saved = make_training({3: [signal.SIGINT, signal.SIGINT]})
    with pytest.raises(KeyboardInterrupt):
        engine.run([None] * 5)
    assert finished == [1, 2] and saved == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_close_gives_the_signals_back(received: list[int]) -> None:
    engine, handler, finished, saved = make_training({})
    before = [signal.getsignal(number) for number in SIGNALS]
    engine.run([None] * 5)
    assert [signal.getsignal(number) == handler.receive for number in SIGNALS] == [True, True]
    handler.close()
    handler.close()
    assert [signal.getsignal(number) for number in SIGNALS] == before and saved == []
    signal.raise_signal(signal.SIGTERM)
    assert received == [signal.SIGTERM]


def test_signals_are_left_alone_before_the_training(received: list[int]) -> None:
    make_training({})
    signal.raise_signal(signal.SIGTERM)
    assert received == [signal.SIGTERM]
