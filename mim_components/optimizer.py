"""Parameter groups: weight decay on matrices and kernels, none on biases, norms and tokens."""

from __future__ import annotations

from typing import Any

from torch import nn


def weight_decay_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of the network's trainable parameters, the second without weight decay.

    Biases, norms (one axis) and tokens or positions (leading axes of size 1) are not decayed.
    """
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in network.parameters():
        if parameter.requires_grad:
            is_vector = sum(size > 1 for size in parameter.shape) <= 1
            is_token = parameter.ndim == 3 and parameter.shape[0] == 1
            (others if is_vector or is_token else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
