"""One optimizer step of pre-training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mim_components.levels import level_batch
from mim_components.optimizer_step import NonFiniteError, OptimizerStep

__all__ = ["NonFiniteError", "PretrainStep"]


class PretrainStep(OptimizerStep):
    """Reconstruct and align the volumes of all levels; see `OptimizerStep` for what it does with the loss.

    Args:
        num_levels: number of levels L.
        accumulation: micro-batches per step.
        num_visible: visible tokens per volume; saves waiting for the device.
        num_steps: steps of the whole run, for schedules of the loss.
        max_norm: gradients are clipped to this norm; 0 = only measured.
        amp: run the network in bfloat16 autocast; the losses stay in float32.
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
        super().__init__(accumulation, max_norm, amp)
        self.num_levels = num_levels
        self.num_visible = num_visible
        self.num_steps = num_steps

    def terms(self, engine: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Every term of the loss for one micro-batch."""
        device = engine.state.device
        levels = level_batch(batch, self.num_levels, device)
        with self.autocast(device):
            output = engine.network(levels.images, levels.masked, self.num_visible)
        progress = (engine.state.iteration - 1) / self.num_steps
        return engine.loss_function(output, levels, progress)
