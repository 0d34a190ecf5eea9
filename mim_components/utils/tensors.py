"""Tensors with and without MONAI's metadata."""

from __future__ import annotations

from monai.data import MetaTensor
from torch import Tensor


def without_meta(tensor: Tensor) -> Tensor:
    """The plain tensor, sharing memory: metadata cost time in every operation."""
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
