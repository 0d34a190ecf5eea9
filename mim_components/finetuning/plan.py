"""How long a fine-tuning is, and what is said of it before its first step."""

from __future__ import annotations

import logging
import math
from typing import Any

import ignite.distributed as idist
import torch
from torch import nn

from mim_components.data.sampler import StepSampler
from mim_components.runs.folder import RunFolder
from mim_components.training import keep_remarks

logger = logging.getLogger(__name__)


def steps_of(epochs: float, num_items: int, global_batch_size: int) -> int:
    """Optimizer steps of so many passes over the training scans, at least 1.

    Args:
        epochs: passes over the scans.
        num_items: training scans.
        global_batch_size: scans per optimizer step.

    Raises:
        ValueError: a value is not positive.

    Example:
        >>> steps_of(500, num_items=24, global_batch_size=4), steps_of(1, num_items=3, global_batch_size=4)
        (3000, 1)
    """
    if not (epochs > 0 and num_items > 0 and global_batch_size > 0):
        raise ValueError(
            f"epochs, training scans and global_batch_size must be positive, got {epochs}, {num_items}, "
            f"{global_batch_size}."
        )
    return max(math.ceil(epochs * num_items / global_batch_size - 1e-9), 1)


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
    logger.info(
        "%s, device %s%s: %d scans per step = %d per device x %d devices x %d accumulated, %d crops each; "
        "%.1f M parameters; %d steps, %.1f passes over the scans, validation every %d steps",
        folder.path,
        device,
        f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else "",
        sampler.global_batch_size,
        sampler.batch_size,
        sampler.num_devices,
        sampler.accumulation,
        num_samples,
        sum(parameter.numel() for parameter in network.parameters()) / 1e6,
        sampler.num_steps,
        sampler.num_steps * sampler.global_batch_size / sampler.num_items,
        validation_interval,
    )
    keep_remarks(folder, prepared)
