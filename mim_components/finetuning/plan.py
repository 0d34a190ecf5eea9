"""How long a fine-tuning is, and what is said of it before its first step."""

from __future__ import annotations

import logging
import math
from typing import Any

import ignite.distributed as idist
import torch
from torch import nn

from mim_components.data.load.sampler import StepSampler
from mim_components.engines.training import keep_remarks, size_of_run
from mim_components.run.folder import RunFolder

logger = logging.getLogger(__name__)


def steps_of(epochs: float | None, num_items: int, global_batch_size: int, default: int) -> int:
    """Optimizer steps of so many passes over the training scans, at least 1; without a number of passes the default.

    Args:
        epochs: passes over the scans; None = not given.
        num_items: training scans.
        global_batch_size: scans per optimizer step.
        default: optimizer steps, whatever the number of scans.

    Raises:
        ValueError: a value is not positive.

    Example:
        >>> steps_of(500, num_items=24, global_batch_size=4, default=25_000)
        3000
        >>> steps_of(None, num_items=24, global_batch_size=4, default=25_000)
        25000
    """
    if epochs is None:
        return default
    if not (epochs > 0 and num_items > 0 and global_batch_size > 0):
        raise ValueError(
            f"epochs, training scans and global_batch_size must be positive, got {epochs}, {num_items}, "
            f"{global_batch_size}."
        )
    return max(math.ceil(epochs * num_items / global_batch_size - 1e-9), 1)


def length_of(sampler: StepSampler, num_samples: int = 1) -> str:
    """How long a training is, in steps and in epochs.

    Args:
        sampler: of the training.
        num_samples: crops of every scan.

    Example:
        >>> length_of(StepSampler(24, num_steps=25_000, global_batch_size=1), num_samples=4)
        '25,000 steps of 1 scan x 4 crops = 1,042 epochs of 24 scans'
    """
    scans, crops = _count(sampler.global_batch_size, "scan"), f" x {num_samples} crops" if num_samples > 1 else ""
    epochs = f"{sampler.epochs:,.0f}" if sampler.epochs >= 10 else f"{sampler.epochs:.3g}"
    steps, items = _count(sampler.num_steps, "step"), _count(sampler.num_items, "scan")
    return f"{steps} of {scans}{crops} = {epochs} epochs of {items}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def log_plan(
    folder: RunFolder,
    prepared: Any,
    sampler: StepSampler,
    network: nn.Module,
    device: torch.device,
    validation_interval: int,
    num_samples: int = 1,
) -> None:
    """Log what was found and what will be done; keep remarks and excluded scans in the run's folder.

    Args:
        folder: of the run.
        prepared: the training and validation cases.
        sampler: of the training.
        network: that is trained.
        device: it runs on.
        validation_interval: optimizer steps between two validations.
        num_samples: crops of every scan.
    """
    if idist.get_rank() != 0:
        return
    size, length = size_of_run(folder, sampler, network, device), length_of(sampler, num_samples)
    logger.info("%s; %s; validation every %s", size, length, _count(validation_interval, "step"))
    keep_remarks(folder, prepared)
