"""Exponential moving average (EMA) of the weights; PyTorch's, off by default."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def averaged_network(network: nn.Module, decay: float = 0.0) -> AveragedModel | None:
    """A copy of `network` that follows its weights: `average = decay * average + (1 - decay) * weights` every step.

    Args:
        network: with its initial weights, on its device, without the wrapper for several devices.
        decay: in [0, 1); 0 = no average, None is returned.

    Raises:
        ValueError: `decay` is out of range.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"ema_decay must be in [0, 1), 0 = off, got {decay}.")
    if decay == 0:
        return None
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


class UpdateAverage:
    """Let the average follow the network after every step; does nothing without one.

    Args:
        averaged: of `averaged_network`.
        network: that is trained.
    """

    def __init__(self, averaged: AveragedModel | None, network: nn.Module) -> None:
        self.averaged = averaged
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, before validation and checkpoints."""
        if self.averaged is not None:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Update, unless the step was skipped."""
        assert self.averaged is not None
        if not getattr(engine.state, "skipped", False):
            self.averaged.update_parameters(self.network)
