"""`torch.jit.script`, which MONAI's `ckpt_export` and the Model Zoo call, for networks that do not support it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Traced(nn.Module):
    """A traced network in a form that `torch.jit.script` takes.

    Args:
        recorded: the result of `torch.jit.trace`.
    """

    def __init__(self, recorded: nn.Module) -> None:
        super().__init__()
        self.recorded = recorded

    def forward(self, image: Tensor) -> Tensor:
        """The network's output."""
        return self.recorded(image)


class ScriptedByTrace(nn.Module):
    """Base of networks that `torch.jit.script` traces instead: for inference on windows of one size.

    Attributes:
        example_shape: `(B, C, H, W, D)` of the example image.

    Example:
        >>> from mim_components.networks import HybridClassifier
        >>> network = HybridClassifier(1, num_classes=3, preset="nano", input_size=(16, 16, 8))
        >>> torch.jit.script(network)(torch.zeros(3, 1, 16, 16, 8)).shape
        torch.Size([3, 3])
    """

    example_shape: Sequence[int]

    def __prepare_scriptable__(self) -> nn.Module:
        """PyTorch's hook, called by `torch.jit.script`."""
        training = self.training
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch's own deprecation warnings
                device = next(self.parameters()).device
                image = torch.zeros(*self.example_shape, device=device)
                return Traced(torch.jit.trace(self.eval(), image, check_trace=False))
        finally:
            self.train(training)
