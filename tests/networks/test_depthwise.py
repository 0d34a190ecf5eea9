"""The depth-wise convolution of a whole grid, whose backward is our own on CPU, against PyTorch's."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mim_components.networks.depthwise import _products_of_blocks, _weight_gradient, depthwise
from mim_components.networks.hybrid import neighbour_rows


def gradients(apply, conv, x, grad):
    x = x.clone().requires_grad_()
    conv.zero_grad()
    out = apply(x)
    out.backward(grad)
    return [out.detach(), x.grad, conv.weight.grad.clone(), conv.bias.grad.clone()]


def last(conv, x):
    """PyTorch's convolution of `(B, H, W, D, C)`."""
    return conv(x.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("size", [(19, 6, 7), (8, 5, 3), (2, 3, 1)])  # three slabs of planes, one, less than a kernel
def test_same_as_pytorch(size, kernel_size):
    torch.manual_seed(0)
    conv = nn.Conv3d(3, 3, kernel_size, padding=kernel_size // 2, groups=3).double()
    x, grad = torch.randn(2, 2, *size, 3, dtype=torch.float64)
    got, expected = (gradients(lambda x, f=f: f(conv, x), conv, x, grad) for f in (depthwise, last))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_gradcheck():
    torch.manual_seed(0)
    conv = nn.Conv3d(2, 2, 5, padding=2, groups=2).double()

    def apply(x, weight, bias):
        return depthwise(SimpleNamespace(weight=weight, bias=bias), x)

    x = torch.randn(1, 3, 2, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(apply, (x, conv.weight, conv.bias))


def test_only_what_needs_a_gradient_gets_one():
    conv = nn.Conv3d(2, 2, 3, padding=1, groups=2).requires_grad_(False)
    x = torch.randn(1, 3, 3, 3, 2, requires_grad=True)
    depthwise(conv, x).sum().backward()
    assert x.grad is not None and conv.weight.grad is None


def test_layout_stays_channels_last():
    conv = nn.Conv3d(4, 4, 5, padding=2, groups=4)
    x = torch.randn(2, 6, 6, 6, 4, requires_grad=True)
    out = depthwise(conv, x)
    assert out.is_contiguous()
    out.backward(torch.randn_like(out))
    assert x.grad is not None and x.grad.is_contiguous()


def test_bfloat16_autocast():
    torch.manual_seed(0)
    conv = nn.Conv3d(4, 4, 5, padding=2, groups=4)
    x = torch.randn(1, 8, 8, 8, 4).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        out = depthwise(conv, x)
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert conv.weight.grad is not None and conv.weight.grad.dtype == torch.float32
    torch.testing.assert_close(out.float(), last(conv, x.float()), rtol=0.02, atol=0.02)


def test_other_devices_use_pytorch():
    conv = nn.Conv3d(2, 2, 5, padding=2, groups=2).to("meta")
    out = depthwise(conv, torch.empty(1, 6, 4, 4, 2, device="meta"))
    assert out.shape == (1, 6, 4, 4, 2) and "_Depthwise" not in type(out.grad_fn.next_functions[0][0]).__name__


@pytest.mark.parametrize(("edge", "channels"), [(4, 6), (2, 12), (1, 3)])
def test_weight_gradient_of_blocks_on_other_devices_is_that_of_the_cpu(edge, channels):
    torch.manual_seed(0)
    ids = torch.stack([torch.randperm(27)[:11].sort().values for _ in range(2)])
    rows = neighbour_rows(ids, (3, 3, 3), edge, 2)
    x, grad = torch.randn(2, 2, 11, edge, edge, edge, channels, dtype=torch.float64)
    weight = torch.randn(channels, 1, 5, 5, 5, dtype=torch.float64)
    cpu, other = (f(x, grad, weight, rows).view(weight.shape) for f in (_products_of_blocks, _weight_gradient))
    torch.testing.assert_close(other, cpu, rtol=1e-12, atol=1e-12)


def test_weight_gradient_on_other_devices_has_one_group_per_channel():
    class Groups(TorchDispatchMode):
        seen = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket.__name__ in ("convolution", "convolution_backward"):
                self.seen.append(args[8 if func is torch.ops.aten.convolution.default else 9])
            return func(*args, **(kwargs or {}))

    conv = nn.Conv3d(3, 3, 5, padding=2, groups=3).to("meta")
    x = torch.empty(2, 4, 2, 2, 2, 3, device="meta", requires_grad=True)
    with Groups() as groups:
        depthwise(conv, x, torch.empty(8, 6**3, dtype=torch.int64, device="meta")).sum().backward()
    assert groups.seen == [3, 3, 3]  # forward, gradient of the input, of the weights; not 2 * 4 * 3
