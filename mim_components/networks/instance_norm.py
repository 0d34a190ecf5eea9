"""Instance norm in the memory layout in which the convolutions around it are fastest on CPU.

Axes: feature maps (B, C, H, W, D).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


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
