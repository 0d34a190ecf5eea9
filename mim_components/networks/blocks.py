"""Layers that several networks share: transformer block; convolution of images, instance norm in fast memory layouts.

Axes: image and feature maps (B, C, H, W, D); tokens (B, N, E).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.blocks.transformerblock import TransformerBlock
from torch import Tensor, nn


def transformer_block(hidden_size: int, num_heads: int, mlp_ratio: int = 4) -> TransformerBlock:
    """A pre-norm block with biases in q, k, v and PyTorch's fused attention; acts on `(B, N, E)`."""
    block = TransformerBlock(hidden_size, mlp_ratio * hidden_size, num_heads, qkv_bias=True, use_flash_attention=True)
    # MONAI makes this norm also where there is no cross-attention; unused parameters break DDP and are dead weight
    block.register_module("norm_cross_attn", nn.Identity())
    return block


def init_linear(module: nn.Module) -> None:
    """Initialise linear layers as transformers want it: Xavier-uniform weights, zero biases; for `Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


LEAST_CHANNELS = 3
SLOW_ROWS = 20480  # batch * C * H * W up to which PyTorch 2.13 does not use oneDNN for one image


class ImageConv(nn.Conv3d):
    """PyTorch's convolution without dilation or groups; channels-last maps on CPU.

    With one channel PyTorch gives maps in the default layout, which must be copied both ways, and sends a single image
    of less than 143 x 143 rows to a slower convolution. So channels of zeros, with weights of zeros, fill an image up
    to three. A single one that is too small for the faster convolution even so goes as it is.
    """

    def forward(self, input: Tensor) -> Tensor:  # PyTorch's name
        """Maps `(B, C', H', W', D')` of an image `(B, C, H, W, D)`."""
        missing = LEAST_CHANNELS - self.in_channels
        fast = len(input) > 1 or LEAST_CHANNELS * input.shape[2] * input.shape[3] > SLOW_ROWS
        if input.device.type != "cpu" or missing <= 0 or not fast:
            return super().forward(input)
        image, weight = (F.pad(each, (0, 0, 0, 0, 0, 0, 0, missing)) for each in (input, self.weight))
        image = image.contiguous(memory_format=torch.channels_last_3d)
        return F.conv3d(image, weight, self.bias, self.stride, self.padding)


def replace_image_convs(module: nn.Module, in_channels: int) -> None:
    """Put `ImageConv`, with the same parameters, in the place of the convolutions that take `in_channels` channels."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Conv3d and child.in_channels == in_channels:
                conv = ImageConv(in_channels, child.out_channels, child.kernel_size, device="meta")  # type: ignore[arg-type]
                conv.stride, conv.padding = child.stride, child.padding
                conv.weight, conv.bias = child.weight, child.bias
                setattr(parent, name, conv)


class InstanceNorm(nn.InstanceNorm3d):
    """PyTorch's instance norm without parameters; on CPU it takes and gives channels-last maps.

    PyTorch's own copies a channels-last map to the default layout, where every convolution behind it then works; and it
    returns a view, so that adding to it in place, as MONAI's residual blocks do, copies the map once more on the way
    back. Its batch norm keeps the layout, but sums 96^3 float32 values one after the other: an error of 4e-4. And with
    one sample and a channels-last gradient, instance norm of PyTorch 2.13 gives a wrong gradient on CPU.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps=eps)

    def forward(self, input: Tensor) -> Tensor:  # PyTorch's name
        """Maps `(B, C, H, W, D)` with mean 0 and (biased) variance 1 of every channel of every sample."""
        if input.device.type != "cpu":
            return super().forward(input)
        return _Normalize.apply(input.contiguous(memory_format=torch.channels_last_3d), self.eps)


class _Normalize(torch.autograd.Function):
    """Normalise channels-last maps over positions; keeps its input, as what comes out is changed in place.

    Plane after plane: what is in between stays in the caches. As large as the map, it was new memory every time, which
    the system hands out page by page, more slowly than numbers are added up.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        mean = _mean(x)
        planes, centred, m = x.unbind(2), torch.empty_like(x[:, :, 0]), mean[:, :, 0]
        variance = _mean_of_planes(torch.sub(each, m, out=centred).square_() for each in planes)
        scale = (variance + eps).rsqrt()
        out = torch.empty_like(x)
        for each, normalized in zip(planes, out.unbind(2), strict=True):
            torch.sub(each, m, out=normalized).mul_(scale)
        ctx.save_for_backward(x, mean, scale)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, mean, scale = ctx.saved_tensors
        planes, centred, m = x.unbind(2), torch.empty_like(x[:, :, 0]), mean[:, :, 0]
        grads, grad_mean = grad.unbind(2), _mean(grad)[:, :, 0]
        product = _mean_of_planes(
            torch.sub(each, m, out=centred).mul_(g) for each, g in zip(planes, grads, strict=True)
        )
        slope = -product * scale.square()
        out = torch.empty_like(x)
        for each, g, o in zip(planes, grads, out.unbind(2), strict=True):
            torch.sub(each, m, out=o).mul_(slope).add_(g).sub_(grad_mean).mul_(scale)
        return out, None


def _mean(x: Tensor) -> Tensor:
    """Mean over H, W and D, `(B, C, 1, 1, 1)`; in two steps, which threads share and rounding does not add up in."""
    x = x.permute(0, 2, 3, 4, 1)  # so that sums are laid out, and added up, with channels last: four times faster
    return x.mean((2, 3), keepdim=True).mean(1, keepdim=True).permute(0, 4, 1, 2, 3)


def _mean_of_planes(planes: Iterable[Tensor]) -> Tensor:
    """Mean over planes `(B, C, W, D)` and their positions, `(B, C, 1, 1)`."""
    means = [plane.permute(0, 2, 3, 1).mean((1, 2)) for plane in planes]
    return torch.stack(means).mean(0)[:, :, None, None]


def replace_instance_norms(module: nn.Module) -> None:
    """Put `InstanceNorm` in the place of every `nn.InstanceNorm3d` without parameters inside a module."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.InstanceNorm3d and not child.affine and not child.track_running_stats:
                setattr(parent, name, InstanceNorm(child.num_features, child.eps))
