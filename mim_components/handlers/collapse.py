"""Collapse monitor for the alignment features: one number per pair of levels, and a warning.

A step may have only two vectors, from neighbouring crops, and its own number would be noise. So vectors
are accumulated over as many steps as necessary.

Axes: context vectors (children, D).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ignite.distributed as idist
import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from torch import Tensor

from mim_components.run.folder import RunFolder

NAME = "context_std_level"
WINDOW = 64  # vectors; unrelated ones then give 1 to within a few percent


@dataclass
class _Window:
    """Vectors of one pair of levels that are measured together.

    Attributes:
        sums: sum of the unit vectors, and their number, (D + 1).
        count: vectors in it including unmeasured ones; known without a device synchronisation.
        last: value of the last full window.
        full: number of full windows.
    """

    sums: Tensor
    count: int = 0
    last: Tensor | None = None
    full: int = 0


class ContextSpread:
    """Standard deviation of unit context vectors, over the steps, passes, micro-batches and processes of a window.

    The vectors are scaled to length 1 and the variances of their D coordinates are summed. That is 1 minus the mean
    cosine of two vectors: 0 if all are equal, 1 if they point in unrelated directions, whatever D and their number.
    A window is full after the step that completes its `size` vectors, and the next one begins. The value is
    that of the last full window or, before there is one, of the vectors so far. Vectors that are not finite, and those
    of children without content, which are rightly equal, count towards a window but are not measured.

    Args:
        size: number of vectors in a window, over all processes.

    Example:
        >>> spread = ContextSpread()
        >>> spread.add([torch.eye(4)])
        >>> spread.take()
        {'context_std_level1_2': tensor(1., dtype=torch.float64)}
    """

    def __init__(self, size: int = WINDOW) -> None:
        self.size = size
        self._step: list[Tensor] = []
        self._counts: list[int] = []
        self._windows: list[_Window] = []

    @torch.no_grad()
    def add(self, context: Sequence[Tensor], content: Sequence[Tensor] | None = None) -> None:
        """Add vectors of a step.

        Args:
            context: one `(children, D)` per pair of levels, which may be empty.
            content: which of the children have content, bool `(children,)` per pair. None = all.
        """
        for pair, vectors in enumerate(context):
            unit = F.normalize(vectors.double(), dim=-1)
            counted = unit.isfinite().all(-1, keepdim=True)  # a skipped step must not spoil its window
            if content is not None:
                counted &= content[pair].unsqueeze(-1)
            total = torch.cat([unit.where(counted, 0).sum(0), counted.sum(0, dtype=unit.dtype)])  # (D + 1)
            if pair < len(self._step):
                self._step[pair] = self._step[pair] + total
                self._counts[pair] += len(vectors)
            else:
                self._step.append(total)
                self._counts.append(len(vectors))

    def take(self) -> dict[str, Tensor]:
        """End the step: the value of every pair, a scalar on the device of the vectors, NaN for a single vector."""
        sums, counts = self._step, self._counts
        self._step, self._counts = [], []
        processes = idist.get_world_size()
        if processes > 1:
            sums = [torch.as_tensor(idist.all_reduce(each)) for each in sums]
        self._windows += [_Window(torch.zeros_like(each)) for each in sums[len(self._windows) :]]
        for window, total, count in zip(self._windows, sums, counts, strict=False):
            window.sums = window.sums.to(total.device) + total  # checkpoints are loaded on the CPU
            window.last = None if window.last is None else window.last.to(total.device)
            window.count += count * processes
            if window.count >= self.size:
                window.last, window.full = _spread(window.sums), window.full + 1
                window.sums, window.count = torch.zeros_like(window.sums), 0
        return {
            _name(pair): _spread(window.sums) if window.last is None else window.last
            for pair, window in enumerate(self._windows)
        }

    @property
    def full(self) -> dict[str, int]:
        """Number of full windows of every pair so far."""
        return {_name(pair): window.full for pair, window in enumerate(self._windows)}

    def state_dict(self) -> dict[str, Any]:
        """The windows, so that a resumed run logs the same numbers."""
        return {"windows": [dict(vars(window)) for window in self._windows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the windows."""
        self._windows = [_Window(**window) for window in state["windows"]]


def _name(pair: int) -> str:
    return f"{NAME}{pair + 1}_{pair + 2}"


def _spread(sums: Tensor) -> Tensor:
    """Square root of 1 minus the mean cosine, from sum and number of unit vectors."""
    count = sums[-1]
    variance = (1 - (sums[:-1] / count).square().sum()).clamp_min(0) * count / (count - 1)
    return torch.where(count > 1, variance, torch.nan).sqrt()


class HasSpread(Protocol):
    """A step that measures the spread of its context vectors."""

    spread: ContextSpread


class CollapseWarning:
    """Warn once per pair when `ContextSpread` falls below a bound.

    Only windows that began after the first steps and in this process are judged: vectors that have become equal are
    noticed after at most two windows.

    Args:
        folder: run folder.
        step: step of the trainer, whose `spread` measures.
        bound: smallest value without a warning, in [0, 1); 0 = never warn.
        after: share of the steps before the first judgement, since an untrained network has similar vectors for all
            volumes.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from types import SimpleNamespace
        >>> step = SimpleNamespace(spread=ContextSpread(size=2))
        >>> def update(engine, batch):
        ...     step.spread.add([torch.ones(2, 8)])  # two equal vectors, which make a window
        ...     engine.state.step_metrics = step.spread.take()
        >>> trainer = Engine(update)
        >>> with TemporaryDirectory() as place:
        ...     folder = RunFolder(place)
        ...     CollapseWarning(folder, step, bound=0.1, after=0.0).attach(trainer)
        ...     _ = trainer.run(range(5))
        ...     folder.notes[0].split(":")[0]
        'context_std_level1_2 is 0.0000 at step 2, below 0.1'
    """

    def __init__(self, folder: RunFolder, step: HasSpread, bound: float, after: float = 0.2) -> None:
        if not 0 <= bound < 1:
            raise ValueError(f"collapse_bound must be in [0, 1), 0 = no warning, got {bound}.")
        self.folder = folder
        self.spread = step.spread
        self.bound = bound
        self.after = after
        self._before: dict[str, int] = {}  # full windows when the judgement began
        self._said: set[str] = set()

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, after `StepMetrics`."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def start(self, engine: Engine) -> None:
        """Ignore the windows from before an interruption."""
        self._before = self.spread.full

    def __call__(self, engine: Any) -> None:
        """Judge, if numbers were collected."""
        step = engine.state.iteration
        if step <= int(self.after * engine.state.epoch_length):
            self._before = self.spread.full
            return
        for name, full in self.spread.full.items():
            value = (engine.state.step_metrics or {}).get(name)
            if value is None or name in self._said or full < self._before.get(name, 0) + 2:
                continue  # the window after the last ignored one began too early
            if value < self.bound:
                self._said.add(name)
                self.folder.note(
                    f"{name} is {value:.4f} at step {step}, below {self.bound:g}: the alignment features may have "
                    "collapsed: all volumes get nearly the same."
                )
