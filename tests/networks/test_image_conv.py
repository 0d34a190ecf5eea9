"""Convolution of an image of one or two channels, against PyTorch's."""

import pytest
import torch
from torch import nn

from mim_components.networks import HybridSwinUNETR
from mim_components.networks.blocks import ImageConv, replace_image_convs


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(("bias", "batch"), [(False, 2), (True, 2), (True, 1)])
def test_same_numbers_and_gradients_as_pytorch(kernel_size, channels, bias, batch):
    torch.manual_seed(0)
    plain = nn.Conv3d(channels, 5, kernel_size, padding=kernel_size // 2, bias=bias).double()
    module = nn.Sequential(plain)
    image = torch.rand(batch, channels, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    expected = plain(image)
    weights = torch.rand_like(expected)
    gradients = torch.autograd.grad((expected * weights).sum(), [image, *plain.parameters()])
    replace_image_convs(module, channels)
    assert isinstance(module[0], ImageConv)
    found = module(image)
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(
        torch.autograd.grad((found * weights).sum(), [image, *module.parameters()]), gradients, strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_maps_of_an_image_are_channels_last():
    conv = ImageConv(1, 4, 3, padding=1)
    for size in ((2, 1, 8, 8, 8), (1, 1, 96, 96, 4)):
        assert conv(torch.rand(size)).is_contiguous(memory_format=torch.channels_last_3d)


def test_parameters_and_random_numbers_stay():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv3d(1, 2, 3, stride=2), nn.Conv3d(2, 2, 1))
    first, state = module[0], torch.get_rng_state()
    replace_image_convs(module, 1)
    assert module[0].weight is first.weight and module[0].bias is first.bias and module[0].stride == (2, 2, 2)
    assert type(module[1]) is nn.Conv3d and torch.equal(torch.get_rng_state(), state)


def test_the_segmentation_network_uses_it_for_the_image():
    with torch.device("meta"):
        network = HybridSwinUNETR(1, 2, "nano")
    found = [name for name, module in network.named_modules() if isinstance(module, ImageConv)]
    assert found == ["skips.0.layer.conv1.conv", "skips.0.layer.conv3.conv"]


def test_other_devices_use_pytorch():
    conv = ImageConv(1, 2, 3, device="meta")
    assert conv(torch.empty(1, 1, 4, 4, 4, device="meta")).shape == (1, 2, 2, 2, 2)
