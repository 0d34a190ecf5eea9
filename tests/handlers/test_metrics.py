"""Numbers of a step: when they are collected, and where they are written."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events

from mim_components.data.load.sampler import StepSampler
from mim_components.handlers import metrics as module
from mim_components.handlers.metrics import ConsoleLog, ProgressHandler, StepMetrics
from mim_components.run.folder import RunFolder
from mim_components.utils.files import FullDiskError


class Clock:
    """Time and data of a training whose steps take 2 s, of which 0.5 s waiting for data."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waited = 9.0  # before the start: not counted
        self.sampler = StepSampler(5, 7, global_batch_size=4, rank=0, num_devices=1)

    def __call__(self) -> float:
        return self.now

    def reset_clock(self) -> float:
        waited, self.waited = self.waited, 0.0
        return waited


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    made = RunFolder(tmp_path)
    yield made
    made.release()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    values = Clock()
    monkeypatch.setattr(module, "perf_counter", values)
    return values


def make_trainer(clock: Clock, steps: int = 7) -> Engine:
    def step(engine: Engine, batch: None) -> dict[str, Any]:
        clock.now += 2.0
        clock.waited += 0.5
        value = torch.tensor(float(engine.state.iteration))
        return {"loss": value, "reconstruction_level1": value / 2, "gradient_norm": value * 10, "names": ["scan"]}

    engine = Engine(step)
    engine.state.epoch_length = steps
    engine.optimizer = SimpleNamespace(param_groups=[{"lr": 1.0}])  # type: ignore[attr-defined]
    return engine


def rows(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_first_last_and_every_third_step(tmp_path: Path, folder: RunFolder, clock: Clock) -> None:
    engine = make_trainer(clock)
    collected = {}
    StepMetrics(folder, clock, interval=3).attach(engine)  # type: ignore[arg-type]

    @engine.on(Events.ITERATION_COMPLETED)
    def after() -> None:
        collected[engine.state.iteration] = engine.state.step_metrics
        engine.optimizer.param_groups[0]["lr"] /= 2  # the schedule advances at the end of a step

    engine.run([None] * 7, max_epochs=1)
    lines = rows(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 3, 6, 7]
    assert [step for step, numbers in collected.items() if numbers is not None] == [1, 3, 6, 7]
    assert lines[1] == {"step": 3, **collected[3]} and "names" not in lines[1]
    assert [line["loss"] for line in lines] == [1, 3, 6, 7] and lines[3]["gradient_norm"] == 70
    assert [line["learning_rate"] for line in lines] == [1, 1 / 4, 1 / 32, 1 / 64]  # the rate the step used
    # 4 samples in 2 s; 0.5 s of 2 s; epochs of 5 volumes
    assert [line["samples_per_second"] for line in lines] == [2.0] * 4
    assert [line["data_wait_share"] for line in lines] == [0.25] * 4
    assert [line["epoch"] for line in lines] == pytest.approx([0.8, 2.4, 4.8, 5.6])


class Slow:
    """Takes a minute at the start and after steps 2 and 4."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    @module.untimed
    def __call__(self, engine: Engine) -> None:
        if engine.state.iteration in (0, 2, 4):
            self.clock.now += 60.0


def test_what_is_untimed_is_no_time_of_the_steps(tmp_path: Path, folder: RunFolder, clock: Clock) -> None:
    engine = make_trainer(clock)
    StepMetrics(folder, clock, interval=3).attach(engine)  # type: ignore[arg-type]
    for event in (Events.STARTED, Events.ITERATION_COMPLETED):
        engine.add_event_handler(event, Slow(clock))
    engine.run([None] * 7, max_epochs=1)
    lines = rows(tmp_path / "metrics.jsonl")
    # 4 samples in the 2 s of a step, of which 0.5 s waiting
    assert [line["samples_per_second"] for line in lines] == [2.0] * 4
    assert [line["data_wait_share"] for line in lines] == [0.25] * 4


def test_collected_numbers_are_the_step_s_own_not_a_mean(tmp_path: Path, folder: RunFolder, clock: Clock) -> None:
    engine = make_trainer(clock, steps=20)
    StepMetrics(folder, clock, interval=10).attach(engine)  # type: ignore[arg-type]
    engine.run([None] * 20, max_epochs=1)
    assert [(line["step"], line["loss"]) for line in rows(tmp_path / "metrics.jsonl")] == [(1, 1), (10, 10), (20, 20)]


def test_lines_of_steps_that_are_done_again_are_removed(tmp_path: Path, folder: RunFolder, clock: Clock) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}, "loss": -1.0}}\n' for step in range(1, 7)) + '{"step": 7, "lo')
    engine = make_trainer(clock)
    handler = StepMetrics(folder, clock, interval=1)  # type: ignore[arg-type]
    engine.state.iteration = 4
    handler.start(engine)
    assert [line["step"] for line in rows(path)] == [1, 2, 3, 4] and path.read_text().endswith("}\n")
    engine.state.iteration, engine.state.output = 5, {"loss": torch.tensor(2.0)}
    clock.now += 2.0
    handler.read_learning_rate(engine)
    handler(engine)
    assert [(line["step"], line["loss"]) for line in rows(path)] == [(1, -1), (2, -1), (3, -1), (4, -1), (5, 2)]
    assert rows(path)[-1]["samples_per_second"] == 2.0  # since step 4, not since step 0


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_memory_is_that_of_the_device_of_the_training(
    device: str, tmp_path: Path, folder: RunFolder, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: 2**30 if device.index == 1 else 0)
    engine = make_trainer(clock, steps=1)
    engine.state.device = torch.device(device)
    StepMetrics(folder, clock).attach(engine)  # type: ignore[arg-type]
    engine.run([None], max_epochs=1)
    assert rows(tmp_path / "metrics.jsonl")[0].get("device_memory_gib") == (1.0 if device == "cuda:1" else None)


def test_new_run_begins_without_a_file(tmp_path: Path, folder: RunFolder, clock: Clock) -> None:
    StepMetrics(folder, clock).start(make_trainer(clock))  # type: ignore[arg-type]
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_names_the_file(folder: RunFolder, clock: Clock) -> None:
    (folder.path / "metrics.jsonl").symlink_to("/dev/full")
    engine = make_trainer(clock)
    handler = StepMetrics(folder, clock, interval=1)  # type: ignore[arg-type]
    engine.state.iteration, engine.state.output = 1, {"loss": torch.tensor(2.0)}
    handler.read_learning_rate(engine)
    with pytest.raises(FullDiskError, match="cannot write .*/metrics.jsonl, which needs .*There is no checkpoint yet"):
        handler(engine)


def test_console_says_first_last_and_every_so_many(
    folder: RunFolder, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_trainer(clock)
    StepMetrics(folder, clock, interval=1).attach(engine)  # type: ignore[arg-type]
    ConsoleLog(skip=3).attach(engine)
    with caplog.at_level(logging.INFO, "mim_components"):
        engine.run([None] * 7, max_epochs=1)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("step ")]
    assert [line.split(":")[0] for line in lines] == ["step 1/7", "step 4/7", "step 7/7"]
    assert lines[1] == (
        "step 4/7: loss 4.0000 (rec1 2.0000), gradient norm 40, learning rate 1, 2.00 samples/s, 25 % data wait"
    )


def test_console_says_the_last_step_also_between(
    folder: RunFolder, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_trainer(clock)
    StepMetrics(folder, clock, interval=3).attach(engine)  # type: ignore[arg-type]
    ConsoleLog(skip=10).attach(engine)
    with caplog.at_level(logging.INFO, "mim_components"):
        engine.run([None] * 7, max_epochs=1)
    assert [m.split(":")[0] for m in caplog.messages if m.startswith("step ")] == ["step 1/7", "step 7/7"]


@pytest.fixture
def console() -> Iterator[logging.Logger]:
    """The project's logger with a console handler, as set up by logging.conf."""
    logger = logging.getLogger("mim_components")
    handler = logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    logger.propagate = False
    yield logger
    logger.removeHandler(handler)
    logger.propagate = True


def test_progress_bar_shows_losses_and_gives_the_console_back(
    folder: RunFolder,
    clock: Clock,
    console: logging.Logger,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "on_terminal", lambda: True)
    root = logging.getLogger()
    before = list(root.handlers), list(console.handlers)
    engine = make_trainer(clock)
    StepMetrics(folder, clock, interval=3).attach(engine)  # type: ignore[arg-type]
    progress = ProgressHandler()
    progress.attach(engine)

    @engine.on(Events.ITERATION_COMPLETED(once=2))
    def during() -> None:
        assert console.handlers != before[1]
        console.warning("above the bar")

    engine.run([None] * 7, max_epochs=1)
    progress.close()
    assert (root.handlers, console.handlers) == before
    progress.close()
    text = capsys.readouterr().err
    assert text.count("above the bar") == 1
    assert "step" in text and "7/7" in text and "loss=7.0000" in text and "rec1=3.5000" in text
    assert "names" not in text and "gradient" not in text
    # only numbers that are collected anyway, so no further wait
    assert set(re.findall(r"loss=(\d)\.0000", text)) <= {"1", "3", "6", "7"}


def test_console_is_given_back_after_an_error(folder: RunFolder, clock: Clock, console: logging.Logger) -> None:
    before = list(console.handlers)
    engine = make_trainer(clock)
    StepMetrics(folder, clock, interval=3).attach(engine)  # type: ignore[arg-type]
    progress = ProgressHandler()
    progress.attach(engine)

    @engine.on(Events.ITERATION_COMPLETED(once=2))
    def fail() -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        engine.run([None] * 7, max_epochs=1)
    assert console.handlers != before
    progress.close()
    assert console.handlers == before


def test_logger_with_a_file_does_not_double_the_lines(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    logger, root = logging.getLogger("mim_components"), logging.getLogger()
    handlers = [(logger, logging.FileHandler(tmp_path / "log")), (root, logging.StreamHandler(sys.stderr))]
    for owner, handler in handlers:
        owner.addHandler(handler)
    progress = ProgressHandler()
    try:
        progress.start(make_trainer(clock))
        logger.warning("once")
    finally:
        progress.close()
        for owner, handler in handlers:
            owner.removeHandler(handler)
            handler.close()
    assert capsys.readouterr().err.count("once") == 1


def test_a_bar_in_a_log_file_is_a_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="mim_components")
    log = StringIO()  # no terminal
    monkeypatch.setattr(sys, "stderr", log)
    engine = Engine(lambda engine, batch: None)  # of an evaluation, which has no losses
    ProgressHandler(unit="scan").attach(engine)
    engine.run(range(500))
    assert log.getvalue() == "" and "scan" not in caplog.text
    monkeypatch.setattr(module, "LINE_SECONDS", 0.0)
    engine.run(range(2))
    assert [each.getMessage() for each in caplog.records] == ["scan 1 of 2", "scan 2 of 2"]
