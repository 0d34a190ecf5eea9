"""Parameter groups and the learning-rate schedule.

Weight decay applies to matrices and kernels, not to biases, norms and tokens; learning rates may depend on depth.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import ignite.distributed as idist
from monai.networks.nets import ViT
from monai.optimizers import WarmupCosineSchedule
from torch import nn
from torch.optim import Optimizer

from mim_components.networks.hybrid import HybridEncoder
from mim_components.utils.text import counted
from mim_components.weights.pretrained import encoder_of

logger = logging.getLogger(__name__)


def weight_decay_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of the network's trainable parameters, the second without weight decay.

    Biases, norms (one axis) and tokens or positions (leading axes of size 1) are not decayed.

    Example:
        >>> groups = weight_decay_groups(nn.Conv3d(1, 2, 3), weight_decay=0.01)  # a kernel and a bias
        >>> [(len(group["params"]), group["weight_decay"]) for group in groups]
        [(1, 0.01), (1, 0.0)]
    """
    return _groups(network.parameters(), weight_decay)


def finetune_groups(
    network: nn.Module, weight_decay: float, learning_rate: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Groups of the network's trainable parameters with their learning rates, highest first.

    With `layer_decay` below 1, a layer of the encoder has the rate `learning_rate * layer_decay ** d`, d = 1 for the
    layer nearest to the output, and one more for each layer below. Layers of the hybrid encoder are its embeddings,
    stages and transformer blocks (18 for `base`), those of a ViT its embedding with positions and its blocks (13). A
    norm after the last block belongs to it. Everything outside the encoder has the full rate.

    Args:
        network: fine-tuning network, with its encoder as `encoder` or `vit`.
        weight_decay: weight decay of matrices and kernels; biases, norms, tokens and positions have none.
        learning_rate: rate of everything outside the encoder.
        layer_decay: factor per layer, in (0, 1]; 1 gives the two groups of `weight_decay_groups`.

    Returns:
        Groups for an optimizer, each with `params`, `weight_decay` and `lr`.

    Raises:
        ValueError: `layer_decay` is not in (0, 1], or is below 1 for a network without such an encoder.

    Example:
        >>> groups = finetune_groups(nn.Conv3d(1, 2, 3), weight_decay=0.01, learning_rate=3e-4)
        >>> [(len(group["params"]), group["weight_decay"], group["lr"]) for group in groups]
        [(1, 0.01, 0.0003), (1, 0.0, 0.0003)]
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must be in (0, 1], got {layer_decay}.")
    if layer_decay == 1:
        return [{**group, "lr": learning_rate} for group in weight_decay_groups(network, weight_decay)]
    layers = _encoder_layers(network)
    inside = {id(parameter) for layer in layers for parameter in layer}
    outside = [parameter for parameter in network.parameters() if id(parameter) not in inside]
    groups = []
    for distance, layer in enumerate([outside, *reversed(layers)]):
        rate = learning_rate * layer_decay**distance
        groups += [{**group, "lr": rate} for group in _groups(layer, weight_decay) if group["params"]]
    return groups


def _groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in parameters:
        if parameter.requires_grad:
            is_vector = sum(size > 1 for size in parameter.shape) <= 1
            is_token = parameter.ndim == 3 and parameter.shape[0] == 1
            (others if is_vector or is_token else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _encoder_layers(network: nn.Module) -> list[list[nn.Parameter]]:
    """Parameters of the encoder's layers, from the image up; the last includes those that belong to no layer."""
    encoder = encoder_of(network)
    if isinstance(encoder, HybridEncoder):
        pairs = zip(encoder.embeddings, encoder.stages, strict=False)
        entry = nn.ModuleList([encoder.embeddings[-1], encoder.projection])  # what precedes the transformer
        modules = [*(module for pair in pairs for module in pair), entry, *encoder.blocks]
    elif isinstance(encoder, ViT):
        modules = [encoder.patch_embedding, *encoder.blocks]
    else:
        raise ValueError(
            f"layer_decay below 1 needs an encoder that MiM pre-trains, but {type(network).__name__} has none; "
            "use layer_decay 1."
        )
    layers = [list(module.parameters()) for module in modules]
    inside = {id(parameter) for layer in layers for parameter in layer}
    layers[-1] += [parameter for parameter in encoder.parameters() if id(parameter) not in inside]
    return layers


def warmup_cosine(optimizer: Optimizer, num_steps: int, warmup_steps: int) -> WarmupCosineSchedule:
    """Linear warm-up, whose first step already has a rate above 0, then cosine to 0; by optimizer step.

    The rate rises from `1 / warmup_steps` of the peak in the first step to the peak in step `warmup_steps + 1`. A
    training that ends before that is told so in the log.

    Args:
        optimizer: optimizer with its peak learning rates.
        num_steps: optimizer steps of the training.
        warmup_steps: number of warm-up steps.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule, rates = warmup_cosine(optimizer, 10, 4), []
        >>> for _ in range(5):
        ...     rates += schedule.get_last_lr()
        ...     optimizer.step()
        ...     schedule.step()
        >>> rates
        [0.25, 0.4375, 0.625, 0.8125, 1.0]
    """
    if warmup_steps >= max(num_steps, 2) and idist.get_rank() == 0:
        logger.warning(
            "The learning rate never reaches its peak: warmup_steps is %d, and the training has %s.",
            warmup_steps,
            counted(num_steps, "step"),
        )
    return WarmupCosineSchedule(optimizer, warmup_steps, num_steps, warmup_multiplier=1 / max(warmup_steps, 1))


def steps_of_warmup(ratio: float, num_steps: int) -> int:
    """Number of warm-up steps: the share `ratio` of a training's optimizer steps, at least 1.

    Example:
        >>> steps_of_warmup(0.05, 25_000), steps_of_warmup(0.05, 3)
        (1250, 1)
    """
    return max(round(ratio * num_steps), 1)
