"""One optimizer step of a training, as MONAI's trainer calls it: accumulate micro-batches, clip, step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class NonFiniteError(RuntimeError):
    """The loss or the gradient is not finite; the weights were not updated. Names the step, terms and volumes."""


class OptimizerStep(ABC):
    """`iteration_update` of MONAI's `SupervisedTrainer`; a task adds what its loss is made of.

    Args:
        accumulation: micro-batches per step.
        max_norm: gradients are clipped to this norm; 0 = only measured.
        amp: run the network in bfloat16 autocast; the losses stay in float32.

    Returns:
        When called, every term of the loss (mean over micro-batches) and `gradient_norm` before clipping, as detached
        scalars on the device; `names` lists the volumes of this process.

    Raises:
        NonFiniteError: when called, instead of updating the weights.
    """

    def __init__(self, accumulation: int, max_norm: float = 0.0, amp: bool = False) -> None:
        self.accumulation = accumulation
        self.max_norm = max_norm
        self.amp = amp

    @abstractmethod
    def terms(self, engine: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Scalars of one micro-batch by name; `loss` is the one to minimise."""

    def passes(self, engine: Any, batch: Mapping[str, Any]) -> Sequence[Callable[[], dict[str, Tensor]]]:
        """What makes the terms of a micro-batch; those of several passes add up, and each pass has its own backward."""
        return [partial(self.terms, engine, batch)]

    def __call__(self, engine: Any, batches: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Run one step on its micro-batches."""
        network, optimizer = engine.network, engine.optimizer
        network.train()
        optimizer.zero_grad(set_to_none=True)
        terms: dict[str, Tensor] = {}
        names: list[str] = []
        for number, batch in enumerate(batches, start=1):
            names += dict.fromkeys(batch.get("name", []))  # several crops of a volume name it once
            *others, last = self.passes(engine, batch)
            for make in others:
                self._backward(network, make, terms, is_last=False)
            self._backward(network, last, terms, is_last=number == self.accumulation)
        norm = nn.utils.clip_grad_norm_(network.parameters(), self.max_norm or torch.inf)
        if not bool(torch.isfinite(norm)):
            raise NonFiniteError(self._describe(engine, terms, names))
        optimizer.step()
        return {**terms, "gradient_norm": norm.detach(), "names": names}

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context in which the network runs."""
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.amp)

    def _backward(
        self, network: nn.Module, make: Callable[[], dict[str, Tensor]], terms: dict[str, Tensor], is_last: bool
    ) -> None:
        """Add a pass to the gradients and to `terms`; DDP exchanges gradients in the last pass of a step only."""
        with network.no_sync() if isinstance(network, DistributedDataParallel) and not is_last else nullcontext():
            made = make()
            (made["loss"] / self.accumulation).backward()
        for name, value in made.items():
            value = value.detach() / self.accumulation
            terms[name] = terms[name] + value if name in terms else value

    def _describe(self, engine: Engine, terms: Mapping[str, Tensor], names: list[str]) -> str:
        every: Any = idist.all_gather(names) if idist.get_world_size() > 1 else [names]
        values = ", ".join(f"{name} {float(value):g}" for name, value in terms.items())
        files = "\n  ".join(name for part in every for name in part)
        return (
            f"the gradient of step {engine.state.iteration} is not finite ({values}); the weights were not updated. "
            f"Volumes of this step:\n  {files}"
        )
