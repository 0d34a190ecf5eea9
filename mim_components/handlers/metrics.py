"""Measurements during training: losses, rates and memory, every n steps, to file, console and progress bar.

The file has one JSON object per line, each for a step of a run; resuming a run removes lines of repeated steps.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import wraps
from time import perf_counter
from typing import Any, TypeVar

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from torch import Tensor
from tqdm.contrib.logging import logging_redirect_tqdm

from mim_components.data.load.loader import StepLoader
from mim_components.run.folder import RunFolder
from mim_components.utils.files import append_line, read_rows, write_text_safely
from mim_components.utils.text import LINE_SECONDS, on_terminal

logger = logging.getLogger(__name__)
H = TypeVar("H")
R = TypeVar("R")


def untimed(handler: Callable[[H, Any], R]) -> Callable[[H, Any], R]:
    """A handler's method whose time is none of a step's: `samples_per_second` and `data_wait_share` leave it out.

    For what takes long and not in every step, such as a validation. It runs after `StepMetrics`.
    """

    @wraps(handler)
    def measured(self: H, engine: Any) -> R:
        begun = perf_counter()
        try:
            return handler(self, engine)
        finally:
            engine.state.untimed = getattr(engine.state, "untimed", 0.0) + perf_counter() - begun

    return measured


class StepMetrics:
    """Every `interval` steps, collect the step's numbers in `engine.state.step_metrics` and append them to a file.

    The numbers: every term of the loss and other results of the step, `gradient_norm`, `learning_rate` of the step,
    `samples_per_second` and `data_wait_share` since the last time, without what is `untimed`, `epoch` (passes over the
    volumes so far) and, on CUDA, `device_memory_gib` (peak so far, GiB). The file has one JSON object per line;
    resuming a run removes lines of repeated steps.

    Args:
        folder: run folder; the first process writes `metrics.jsonl` there.
        loader: loader of the trainer.
        interval: steps between two collections; the first and the last step are always collected.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from mim_components.utils.files import read_rows
        >>> trainer = Engine(lambda engine, loss: {"loss": torch.tensor(loss)})
        >>> trainer.optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> with TemporaryDirectory() as place:
        ...     folder = RunFolder(place)
        ...     StepMetrics(folder, StepLoader([0], num_steps=5, global_batch_size=1), interval=2).attach(trainer)
        ...     _ = trainer.run([5.0, 4.0, 3.0, 2.0, 1.0])
        ...     [(row["step"], row["loss"]) for row in read_rows(folder.path / "metrics.jsonl")]
        [(1, 5.0), (2, 4.0), (4, 2.0), (5, 1.0)]
    """

    def __init__(self, folder: RunFolder, loader: StepLoader, interval: int = 10) -> None:
        self.lines = StepLines(folder, "metrics.jsonl")
        self.loader = loader
        self.interval = interval
        self._since = (0, 0.0)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, before its other handlers of a completed step."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_STARTED, self.read_learning_rate)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def start(self, engine: Any) -> None:
        """Start measuring; remove lines of steps after the one the run continues from."""
        self._since = (engine.state.iteration, perf_counter())
        engine.state.untimed = 0.0
        self.loader.reset_clock()
        self.lines.rewind(engine.state.iteration)

    def read_learning_rate(self, engine: Any) -> None:
        """Store the rate that the step uses."""
        engine.state.learning_rate = engine.optimizer.param_groups[0]["lr"]

    def __call__(self, engine: Any) -> None:
        """Collect, if due."""
        step, last = engine.state.iteration, engine.state.epoch_length
        engine.state.step_metrics = None
        if step % self.interval and step not in (1, last):
            return
        numbers = _over_processes({name: v for name, v in engine.state.output.items() if name != "names"})
        then, now = self._since, (step, perf_counter())
        seconds = max(now[1] - then[1] - getattr(engine.state, "untimed", 0.0), 1e-9)
        engine.state.untimed = 0.0
        sampler = self.loader.sampler
        numbers["learning_rate"] = engine.state.learning_rate
        numbers["samples_per_second"] = (now[0] - then[0]) * sampler.global_batch_size / seconds
        numbers["data_wait_share"] = self.loader.reset_clock() / seconds
        numbers["epoch"] = step * sampler.global_batch_size / sampler.num_items
        device = torch.device(getattr(engine.state, "device", None) or "cpu")
        if device.type == "cuda":
            numbers["device_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        self._since = now
        engine.state.step_metrics = numbers
        self.lines.append(step, numbers)


class ConsoleLog:
    """Log one line per collection of `StepMetrics`.

    Args:
        skip: collections per line.

    Example:
        >>> from unittest.mock import patch
        >>> numbers = {"loss": 0.5, "gradient_norm": 2.0, "learning_rate": 1e-4}
        >>> numbers |= {"samples_per_second": 8.0, "data_wait_share": 0.25}
        >>> trainer = Engine(lambda engine, batch: setattr(engine.state, "step_metrics", numbers))
        >>> ConsoleLog().attach(trainer)
        >>> with patch.object(logger, "info", lambda text, *values: print(text % values)):
        ...     _ = trainer.run([None])
        step 1/1: loss 0.5000, gradient norm 2, learning rate 0.0001, 8.00 samples/s, 25 % data wait
    """

    def __init__(self, skip: int = 1) -> None:
        self.skip = skip
        self._count = 0

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, after `StepMetrics`."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Write the line, if due."""
        numbers = engine.state.step_metrics
        if numbers is None:
            return
        self._count += 1
        if (self._count - 1) % self.skip and engine.state.iteration != engine.state.epoch_length:
            return
        terms = " ".join(f"{_short(name)} {numbers[name]:.4f}" for name in numbers if "_level" in name)
        logger.info(
            "step %d/%d: loss %.4f%s, gradient norm %.3g, learning rate %.3g, %.2f samples/s, %.0f %% data wait",
            engine.state.iteration,
            engine.state.epoch_length,
            numbers["loss"],
            f" ({terms})" if terms else "",
            numbers["gradient_norm"],
            numbers["learning_rate"],
            numbers["samples_per_second"],
            100 * numbers["data_wait_share"],
        )


class ProgressHandler:
    """A progress bar over all iterations with the last collected losses; log lines appear above it until it is closed.

    Losses of the current step would need a device synchronisation. Without a terminal, in a log file or under a batch
    system, it is one line per minute, without losses.

    Args:
        folder: run folder, at whose end the bar is closed; None = it is closed after the last iteration.
        unit: what an iteration is called.

    Example:
        >>> from contextlib import redirect_stderr
        >>> from io import StringIO
        >>> trainer = Engine(lambda engine, batch: setattr(engine.state, "step_metrics", {"loss": 0.5}))
        >>> console, progress = StringIO(), ProgressHandler()
        >>> console.isatty = lambda: True
        >>> with redirect_stderr(console):
        ...     progress.attach(trainer)
        ...     _ = trainer.run(range(4))
        >>> "[4/4]" in console.getvalue(), "loss=0.5000" in console.getvalue()
        (True, True)
    """

    def __init__(self, folder: RunFolder | None = None, unit: str = "step") -> None:
        self.folder = folder
        self.unit = unit
        self._losses: dict[str, str] = {}
        self._stack = ExitStack()
        self._bar = ProgressBar(persist=True, desc=unit, dynamic_ncols=True)
        self._noted = 0.0

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, after `StepMetrics`, or an evaluator; only the first process shows a bar."""
        if idist.get_rank() != 0:
            return
        if self.folder is not None:
            self.folder.at_end(self)
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.read)
        if self.folder is None:
            engine.add_event_handler(Events.COMPLETED, self.close)
        if on_terminal():
            self._bar.attach(engine, output_transform=lambda output: self._losses)
        else:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self.note)

    def note(self, engine: Engine) -> None:
        """Log a line, if due."""
        if (now := perf_counter()) - self._noted >= LINE_SECONDS:
            self._noted = now
            logger.info("%s %d of %s", self.unit, engine.state.iteration, engine.state.epoch_length)

    def start(self, engine: Engine) -> None:
        """Send log lines through the bar."""
        self._noted = perf_counter()
        self._stack.enter_context(logging_redirect_tqdm([logging.getLogger(), *_loggers_with_console()]))

    def read(self, engine: Any) -> None:
        """Store the losses if they were collected."""
        if getattr(engine.state, "step_metrics", None) is not None:
            self._losses = _shown(engine.state.step_metrics)

    def close(self, engine: Engine | None = None) -> None:
        """Close the bar and restore the console; also after an error."""
        if self._bar.pbar is not None:
            self._bar.pbar.close()
        self._stack.close()


def _over_processes(values: dict[str, Tensor]) -> dict[str, float]:
    """Mean of every value over the processes."""
    stacked = torch.stack([value.float() for value in values.values()])
    if idist.get_world_size() > 1:
        stacked = torch.as_tensor(idist.all_reduce(stacked)) / idist.get_world_size()
    return dict(zip(values, stacked.tolist(), strict=True))


def _loggers_with_console() -> list[logging.Logger]:
    named = [logging.getLogger(name) for name in ("mim_components", "mim_tools", "monai", "ignite")]
    return [each for each in named if any(_is_console(handler) for handler in each.handlers)]


def _is_console(handler: logging.Handler) -> bool:
    return type(handler) is logging.StreamHandler  # not the kinds that write files


def _shown(numbers: dict[str, float]) -> dict[str, str]:
    return {_short(k): f"{v:.4f}" for k, v in numbers.items() if k == "loss" or k.startswith("reconstruction")}


def _short(name: str) -> str:
    """`reconstruction_level1` to `rec1`, `alignment_level1_2` to `align12`, `empty_children_level2` to `empty2`."""
    short = name.replace("reconstruction_level", "rec").replace("alignment_level", "align")
    return short.replace("context_std_level", "std").replace("empty_children_level", "empty").replace("_", "")


class StepLines:
    """Numbers of a run by step, as a file of JSON lines; the first process writes.

    Args:
        folder: run folder; decides on a full disk.
        name: name of the file in it.
    """

    def __init__(self, folder: RunFolder, name: str) -> None:
        self.folder = folder
        self.path = folder.path / name

    def rewind(self, step: int) -> None:
        """Remove the lines of steps after `step`, and truncated ones."""
        if idist.get_rank() != 0 or not self.path.exists():
            return
        rows = [row for row in read_rows(self.path) if row.get("step", math.inf) <= step]
        kept = "".join(f"{json.dumps(row)}\n" for row in rows)
        if kept != self.path.read_text(encoding="utf-8", errors="replace"):
            with self.folder.unless_full(f"removal of repeated steps in {self.path.name}"):
                write_text_safely(self.path, kept)

    def append(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Add a line; numbers that are not finite, which JSON lacks, become null.

        Raises:
            OSError: the file cannot be written; names it.
        """
        if idist.get_rank() != 0:
            return
        plain = {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in numbers.items()}
        with self.folder.unless_full(f"steps in {self.path.name}"):
            append_line(self.path, json.dumps({"step": step, **plain}))
