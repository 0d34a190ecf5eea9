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
from mim_components.training import keep_remarks, size_of_run

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
    text = size_of_run(folder, sampler, network, device)
    logger.info("%s; %d crops of each, validation every %d steps", text, num_samples, validation_interval)
    keep_remarks(folder, prepared)
