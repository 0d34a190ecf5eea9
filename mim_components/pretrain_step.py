"""One optimizer step of pre-training, as MONAI's trainer calls it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mim_components.levels import level_batch


class NonFiniteError(RuntimeError):
    """The loss or the gradient is not finite; the weights were not updated. Names the step, terms and volumes."""


class PretrainStep:
    """`iteration_update` of MONAI's `SupervisedTrainer`: accumulate micro-batches, clip, step.

    Args:
        num_levels: number of levels L.
        accumulation: micro-batches per step.
        num_visible: visible tokens per volume; saves waiting for the device.
        num_steps: steps of the whole run, for schedules of the loss.
        max_norm: gradients are clipped to this norm; 0 = only measured.
        amp: run the network in bfloat16 autocast; the losses stay in float32.

    Returns:
        When called, every term of the loss (mean over micro-batches) and `gradient_norm` before clipping, as detached
        scalars on the device; `names` lists the volumes of this process.

    Raises:
        NonFiniteError: when called, instead of updating the weights.
    """

    def __init__(
        self,
        num_levels: int,
        accumulation: int,
        num_visible: int | None = None,
        num_steps: int = 1,
        max_norm: float = 0.0,
        amp: bool = False,
    ) -> None:
        self.num_levels = num_levels
        self.accumulation = accumulation
        self.num_visible = num_visible
        self.num_steps = num_steps
        self.max_norm = max_norm
        self.amp = amp

    def __call__(self, engine: Any, batches: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Run one step on its micro-batches."""
        network, optimizer = engine.network, engine.optimizer
        network.train()
        optimizer.zero_grad(set_to_none=True)
        terms: dict[str, Tensor] = {}
        names: list[str] = []
        for number, batch in enumerate(batches, start=1):
            names += batch.get("name", [])
            with _no_sync(network, unless=number == self.accumulation):
                for name, value in self._backward(engine, batch).items():
                    terms[name] = terms[name] + value if name in terms else value
        norm = nn.utils.clip_grad_norm_(network.parameters(), self.max_norm or torch.inf)
        if not bool(torch.isfinite(norm)):
            raise NonFiniteError(self._describe(engine, terms, names))
        optimizer.step()
        return {**terms, "gradient_norm": norm.detach(), "names": names}

    def _backward(self, engine: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        device = engine.state.device
        levels = level_batch(batch, self.num_levels, device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.amp):
            output = engine.network(levels.images, levels.masked, self.num_visible)
        progress = (engine.state.iteration - 1) / self.num_steps
        terms = engine.loss_function(output, levels, progress)
        (terms["loss"] / self.accumulation).backward()
        return {name: value.detach() / self.accumulation for name, value in terms.items()}

    def _describe(self, engine: Engine, terms: Mapping[str, Tensor], names: list[str]) -> str:
        every: Any = idist.all_gather(names) if idist.get_world_size() > 1 else [names]
        values = ", ".join(f"{name} {float(value):g}" for name, value in terms.items())
        files = "\n  ".join(name for part in every for name in part)
        return (
            f"the gradient of step {engine.state.iteration} is not finite ({values}); the weights were not updated. "
            f"Volumes of this step:\n  {files}"
        )


def _no_sync(network: nn.Module, unless: bool) -> Any:
    """Let DDP exchange gradients in the last micro-batch only."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) and not unless else nullcontext()
