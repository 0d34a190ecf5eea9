"""The depth-wise convolution of a whole grid is PyTorch's; that of blocks is in test_sparse_hybrid.py."""

import torch
from torch import nn

from mim_components.networks.depthwise import depthwise


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
