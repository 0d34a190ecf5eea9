"""Collect the probabilities of all scans of a validation, as Ignite's metrics do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from ignite.metrics import Metric, MetricsLambda
from torch import Tensor

from mim_components.metrics.classification import summary_figures


@dataclass(frozen=True)
class ScoredScan:
    """One scan and what the network says of it.

    Attributes:
        name: of the case.
        group: patient.
        source: where it lies.
        label: class number.
        probabilities: one per class.
    """

    name: str
    group: str
    source: str
    label: int
    probabilities: tuple[float, ...]

    @property
    def predicted(self) -> int:
        """Most probable class; the first of equals."""
        return self.probabilities.index(max(self.probabilities))


def decollated(engine: Engine) -> list[dict[str, Any]]:
    """What an evaluator knows of every scan of the batch that is done: what was loaded, and `pred`."""
    state: Any = engine.state
    return [{**batch, **output} for batch, output in zip(state.batch, state.output, strict=True)]


class ClassScores(Metric):
    """The scans of a validation with their probabilities; its value are `summary_figures`.

    Reads batch and output of an evaluator, decollated and after softmax: `pred` `(K,)`, `label`, `name`, `group`
    (patient) and `source`. The processes of a run put their scans together.

    Attributes:
        scans: in the order of their names, when the value was computed.

    Raises:
        ValueError: when updated, a probability that is not finite; names the scan.
    """

    def __init__(self) -> None:
        self._own: list[ScoredScan] = []
        self.scans: list[ScoredScan] = []
        super().__init__()

    def reset(self) -> None:
        """Forget everything."""
        self._own, self.scans = [], []

    def iteration_completed(self, engine: Engine) -> None:
        """Take the scans of the batch that is done."""
        self.update(decollated(engine))

    def update(self, output: Sequence[Mapping[str, Any]]) -> None:
        """Take the scans of a batch."""
        for item in output:
            probabilities = tuple(torch.as_tensor(item["pred"]).double().flatten().tolist())
            if not all(map(math.isfinite, probabilities)):
                raise ValueError(f"{item['name']}: the network's output is not finite: {list(probabilities)}.")
            name, group, source = (str(item[key]) for key in ("name", "group", "source"))
            self._own.append(ScoredScan(name, group, source, int(item["label"]), probabilities))

    def compute(self) -> dict[str, float]:
        """`summary_figures` over the scans of all processes."""
        every: Any = idist.all_gather(self._own) if idist.get_world_size() > 1 else [self._own]
        named = {scan.name: scan for part in every for scan in part}  # of few scans, every process has all
        self.scans = [named[name] for name in sorted(named)]
        return summary_figures(*as_tensors(self.scans))


def as_tensors(scans: Sequence[ScoredScan]) -> tuple[Tensor, Tensor]:
    """Probabilities float64 `(N, K)` and labels int64 `(N,)`."""
    probabilities = torch.tensor([scan.probabilities for scan in scans], dtype=torch.float64)
    return probabilities, torch.tensor([scan.label for scan in scans])


def one_figure(scores: ClassScores, name: str) -> MetricsLambda:
    """One of the figures as a metric of its own, for MONAI's `key_val_metric`."""
    return MetricsLambda(itemgetter(name), scores)
