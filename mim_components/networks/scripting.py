"""`torch.jit.script` of networks that are not written for it, which MONAI's `ckpt_export` and the Model Zoo call."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Traced(nn.Module):
    """A network as `torch.jit.script` takes it.

    Args:
        recorded: what `torch.jit.trace` made of the network.
    """

    def __init__(self, recorded: nn.Module) -> None:
        super().__init__()
        self.recorded = recorded

    def forward(self, image: Tensor) -> Tensor:
        """The network's output."""
        return self.recorded(image)


class ScriptedByTrace(nn.Module):
    """Base of networks of which `torch.jit.script` gives the trace: for inference, and windows of one size.

    Attributes:
        example_shape: `(B, C, H, W, D)` of the image that is traced.

    Example:
        >>> from mim_components.networks import HybridClassifier
        >>> network = HybridClassifier(1, num_classes=3, preset="nano", input_size=(16, 16, 8))
        >>> torch.jit.script(network)(torch.zeros(3, 1, 16, 16, 8)).shape
        torch.Size([3, 3])
    """

    example_shape: Sequence[int]

    def __prepare_scriptable__(self) -> nn.Module:
        """PyTorch's hook."""
        training = self.training
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch's, of what it has deprecated itself
                device = next(self.parameters()).device
                image = torch.zeros(*self.example_shape, device=device)
                return Traced(torch.jit.trace(self.eval(), image, check_trace=False))
        finally:
            self.train(training)
