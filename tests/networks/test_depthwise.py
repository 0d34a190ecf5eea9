"""The depth-wise convolution of a whole grid equals PyTorch's; test_sparse_hybrid.py tests that of blocks."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mim_components.networks.depthwise import _products_of_blocks, _weight_gradient, depthwise
from mim_components.networks.hybrid import neighbour_rows


def test_a_grid_by_hand():
    conv = nn.Conv3d(2, 2, 3, padding=1, groups=2, bias=False)
    nn.init.ones_(conv.weight)
    grid = torch.zeros(1, 3, 3, 3, 2)
    grid[0, 1, 1, 1] = torch.tensor([1.0, 5.0])
    grid[0, 0, 0, 0, 0] = 2.0
    out = depthwise(conv, grid)
    assert out.shape == grid.shape and out.is_contiguous()  # channels stay last
    assert out[0, 1, 1, 1].tolist() == [3.0, 5.0]  # every channel by itself: 1 + 2, 5
    assert out[0, 2, 2, 2].tolist() == [1.0, 5.0]  # two voxels from the corner


def test_a_grid_is_stock_pytorch():
    conv = nn.Conv3d(2, 2, 3, padding=1, groups=2)
    out = depthwise(conv, torch.rand(1, 3, 3, 3, 2))
    assert type(out.grad_fn.next_functions[0][0]).__name__ == "ConvolutionBackward0"


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
