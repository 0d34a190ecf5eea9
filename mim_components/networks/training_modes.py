"""Prepare a network for training: its device, activation checkpointing, compilation; weights and keys stay the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from monai.networks.blocks.transformerblock import TransformerBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mim_components.networks.hybrid import ConvBlock

Network = TypeVar("Network", bound=nn.Module)
BLOCKS = (ConvBlock, TransformerBlock)


def for_training(
    network: Network,
    device: torch.device | str,
    checkpoint_activations: bool = False,
    compile: bool | str = False,
) -> Network:
    """Move a network to its device and set how it computes; returns the network itself.

    Args:
        network: modified in place.
        device: device to train on.
        checkpoint_activations: keep only the input of every block and recompute the rest in the backward pass:
            less memory, more time, the same gradients.
        compile: compile the network with `torch.compile`, once for every shape it meets; a string is the mode. "auto"
            leaves the decision to `fit_to_device`.

    Raises:
        RuntimeError: `compile` is not one of PyTorch's modes; names them.

    Example:
        >>> network = nn.Linear(2, 1)
        >>> for_training(network, "cpu") is network
        True
    """
    on_device(network, device)
    if checkpoint_activations:
        for module in network.modules():
            if isinstance(module, BLOCKS):
                module.forward = partial(_checkpointed, module.forward)  # type: ignore[method-assign]
    if compile and compile != "auto":
        compile_network(network, compile if isinstance(compile, str) else None)
    return network


def on_device(network: Network, device: torch.device | str) -> Network:
    """Move a network to a device and lay out its convolutions for it; returns the network itself.

    On a CPU the 3D convolutions get the channels-last layout, in which a training step of large ones with few channels
    takes two thirds of the time; results are the same up to rounding. An `encoder` keeps its layout, so that its
    features are the same bits in every use.

    Args:
        network: modified in place; the weights stay the same.
        device: device to compute on.

    Example:
        >>> on_device(nn.Linear(2, 1), "cpu").weight.device
        device(type='cpu')
    """
    network.to(device)
    if torch.device(device).type == "cpu":
        for name, part in network.named_children():
            if name != "encoder":
                nn.utils.convert_conv3d_weight_memory_format(part, torch.channels_last_3d)
    return network


def compile_network(network: nn.Module, mode: str | None = None) -> None:
    """Compile a network in place; compilation itself happens on the first call."""
    # DDP would cut the graph at its buckets, which fails where the volumes are split into levels; without that,
    # gradients are exchanged after the backward pass instead of during it
    torch._dynamo.config.optimize_ddp = False
    network.compile(dynamic=False, mode=mode)


def leave_eager(network: nn.Module) -> None:
    """Undo `compile_network`."""
    network._compiled_call_impl = None  # PyTorch has no public way
    torch.compiler.reset()


def _checkpointed(forward: Callable[..., Tensor], *inputs: Any, **named: Any) -> Tensor:
    if not torch.is_grad_enabled():  # nothing to recompute; evaluation and export see the plain block
        return forward(*inputs, **named)
    # the blocks draw no random numbers: there is no dropout
    output: Tensor = checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False, **named)
    return output
