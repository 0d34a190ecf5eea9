"""Depth-wise convolution of a whole grid, which is PyTorch's, or of the blocks of visible tokens only.

Axes: grid (B, H, W, D, C); blocks (B, n, s, s, s, C) and `rows`, see `hybrid.neighbour_rows`: the neighbourhood of a
block is the block with a margin of r voxels, edge k = s + 2r, where masked voxels are zero. The kernel's edge is
K = 2r + 1.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Blocks per call in the weight gradient on CPU: more do not fit into its caches, and take several times as long
_CPU_BLOCKS = 8


def depthwise(conv: nn.Conv3d, x: Tensor, rows: Tensor | None = None) -> Tensor:
    """Apply a depth-wise convolution to a grid `(B, H, W, D, C)` or to blocks `(B, n, s, s, s, C)`; same shape.

    Args:
        conv: the convolution, kernel 2r + 1 with padding r.
        x: the grid or the blocks.
        rows: for blocks: from `neighbour_rows`; masked voxels are zero. None = `x` is a grid.
    """
    if rows is None:
        return conv(x.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
    if not torch.is_grad_enabled():  # TorchScript does not support autograd functions
        return _correlate(x, conv.weight, conv.bias, rows)
    return _Depthwise.apply(x, conv.weight, conv.bias, rows)


class _Depthwise(torch.autograd.Function):
    """Gradients as forward convolutions: PyTorch's own backward pass takes several times as long on CPU.

    Neighbourhoods are gathered again in the backward pass: kept, they would take (k / s)^3 times the input's memory.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, rows)
        return _correlate(x, weight, bias, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rows = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            # the same sum over the same neighbours, mirrored
            grad_x = _correlate(grad, weight.flip(2, 3, 4), None, rows)
        if ctx.needs_input_grad[1]:
            # the weight gradient of a channel is its input correlated with the gradient of its output
            product = _products_of_blocks if x.device.type == "cpu" else _weight_gradient
            grad_weight = product(x, grad, weight, rows).view(weight.shape)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.flatten(0, -2).sum(0, dtype=weight.dtype)
        return grad_x, grad_weight, grad_bias, None


def _with_zero(x: Tensor) -> Tensor:
    """The voxels of all blocks and a row of zeros: `(B * n * s^3 + 1, C)`."""
    return torch.cat([x.reshape(-1, x.shape[-1]), x.new_zeros(1, x.shape[-1])])


def _neighbourhoods(x: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    """Blocks with their margins, `(B * n, C, k, k, k)` in channels-last layout."""
    k = x.shape[2] + weight.shape[2] - 1
    return _with_zero(x).index_select(0, rows.flatten()).view(-1, k, k, k, x.shape[-1]).permute(0, 4, 1, 2, 3)


def _correlate(x: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor) -> Tensor:
    around = _neighbourhoods(x, weight, rows)
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    return F.conv3d(around, weight, bias, groups=x.shape[-1]).permute(0, 2, 3, 4, 1).view(x.shape)


def _products_of_blocks(x: Tensor, grad: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    """Sum over blocks of neighbourhood times gradient, `(C, K, K, K)`."""
    s, c = x.shape[2], x.shape[-1]
    k = s + weight.shape[2] - 1
    x, grad = _with_zero(x), grad.reshape(-1, s**3, c)
    # each channel of each block as a channel of its own, with the gradient as kernel: a fast forward convolution, where
    # PyTorch's own gradient on CPU multiplies 16 channels with 16 for the sake of the 16 on the diagonal
    total = weight.new_zeros(c, *weight.shape[2:])
    for near, g in zip(rows.split(_CPU_BLOCKS), grad.split(_CPU_BLOCKS), strict=True):
        m = len(near)
        around = x.index_select(0, near.t().flatten()).view(1, k, k, k, m * c).permute(0, 4, 1, 2, 3)
        kernel = g.transpose(0, 1).reshape(s, s, s, m * c, 1).permute(3, 4, 0, 1, 2)
        product = F.conv3d(around, kernel, groups=m * c)  # (1, m * C, K, K, K)
        total = total + product.view(m, c, *weight.shape[2:]).sum(0, dtype=weight.dtype)
    return total


def _weight_gradient(x: Tensor, grad: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    """The same with PyTorch's own gradient, `(C, 1, K, K, K)`: C groups.

    `_products_of_blocks` would be one convolution with a group per channel and block, 86,688 for a sample of `base`.
    """
    s, c = x.shape[2], x.shape[-1]
    blocks = grad.reshape(-1, s, s, s, c).permute(0, 4, 1, 2, 3)
    gradients = torch.ops.aten.convolution_backward(
        blocks, _neighbourhoods(x, weight, rows), weight.to(x.dtype), None, [1] * 3, [0] * 3, [1] * 3, False, [0] * 3,
        c, [False, True, False],
    )  # fmt: skip
    return gradients[1].to(weight.dtype)
