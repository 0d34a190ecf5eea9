"""Have the alignment features collapsed? One number per pair of levels, and a warning.

Axes: context vectors (children, D).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ignite.distributed as idist
import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from torch import Tensor

from mim_components.runs.folder import RunFolder

NAME = "context_std_level"


class ContextSpread:
    """Standard deviation of the unit context vectors of a step, over all its passes, micro-batches and processes.

    The vectors are scaled to length 1; the variances of their D coordinates are added up. That is 1 minus the mean
    cosine of two vectors: 0 when all are equal, 1 when they point in unrelated directions, whatever D and their number.

    Example:
        >>> spread = ContextSpread()
        >>> spread.add([torch.eye(4)])
        >>> spread.take()
        {'context_std_level1_2': tensor(1., dtype=torch.float64)}
    """

    def __init__(self) -> None:
        self._sums: list[Tensor] = []

    @torch.no_grad()
    def add(self, context: Sequence[Tensor]) -> None:
        """Count vectors in: one `(children, D)` per pair of levels, which may be empty."""
        for pair, vectors in enumerate(context):
            unit = F.normalize(vectors.double(), dim=-1)
            total = torch.cat([unit.sum(0), unit.new_full((1,), float(len(unit)))])  # (D + 1)
            if pair < len(self._sums):
                self._sums[pair] = self._sums[pair] + total
            else:
                self._sums.append(total)

    def take(self) -> dict[str, Tensor]:
        """The number of every pair, a scalar on the device of the vectors, NaN of a single one; forget the vectors."""
        sums, self._sums = self._sums, []
        if idist.get_world_size() > 1:
            sums = [torch.as_tensor(idist.all_reduce(each)) for each in sums]
        numbers = {}
        for pair, total in enumerate(sums, start=1):
            count = total[-1]
            variance = (1 - (total[:-1] / count).square().sum()).clamp_min(0) * count / (count - 1)
            numbers[f"{NAME}{pair}_{pair + 1}"] = torch.where(count > 1, variance, torch.nan).sqrt()
        return numbers


class CollapseWarning:
    """Say once per run and pair when `ContextSpread` is below a bound.

    Args:
        folder: of the run.
        bound: smallest number that is no reason for a warning, in [0, 1); 0 = no warning.
        after: steps before the first judgement; a new network has similar vectors for all volumes.
    """

    def __init__(self, folder: RunFolder, bound: float, after: int = 0) -> None:
        if not 0 <= bound < 1:
            raise ValueError(f"collapse_bound must be in [0, 1), 0 = no warning, got {bound}.")
        self.folder = folder
        self.bound = bound
        self.after = after
        self._said: set[str] = set()

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, after `StepMetrics`."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Judge, if numbers were collected."""
        step = engine.state.iteration
        for name, value in (engine.state.step_metrics or {}).items():
            if step > self.after and name.startswith(NAME) and value < self.bound and name not in self._said:
                self._said.add(name)
                self.folder.note(
                    f"{name} is {value:.4f} at step {step}, below {self.bound:g}: the alignment features may have "
                    "collapsed, all volumes get nearly the same one."
                )
