"""Instance norm that keeps channels-last maps, against PyTorch's."""

import pytest
import torch
from torch import nn

from mim_components.networks import HybridSwinUNETR
from mim_components.networks.blocks import InstanceNorm, replace_instance_norms

LAYOUTS = (torch.contiguous_format, torch.channels_last_3d)


def test_by_hand():
    maps = torch.tensor([1.0, 3.0, 10.0, 10.0]).view(1, 2, 1, 1, 2)
    # mean 2, deviation 1, and a channel without deviation
    torch.testing.assert_close(InstanceNorm(2, eps=0.21)(maps).flatten(), torch.tensor([-1, 1, 0, 0]) / 1.1)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("grad_layout", LAYOUTS, ids=str)
def test_same_numbers_and_gradients_as_pytorch(batch, layout, grad_layout):
    torch.manual_seed(0)
    maps, grad = torch.randn(2, batch, 3, 4, 5, 6, dtype=torch.float64)
    # PyTorch's in the default layout: with one sample and a channels-last gradient it is wrong
    expected = maps.clone().requires_grad_()
    out = nn.InstanceNorm3d(3)(expected)
    out.backward(grad)
    x = maps.to(memory_format=layout).requires_grad_()
    ours = InstanceNorm(3)(x)
    ours.backward(grad.to(memory_format=grad_layout))
    torch.testing.assert_close(ours, out)
    torch.testing.assert_close(x.grad, expected.grad)
    assert ours.is_contiguous(memory_format=torch.channels_last_3d) and not ours._is_view()


def test_gradcheck_with_the_output_changed_in_place():
    torch.manual_seed(0)
    x = torch.randn(2, 2, 2, 3, 2, dtype=torch.float64, requires_grad=True)

    def apply(x):
        out = InstanceNorm(2)(x)
        out += x
        return nn.functional.leaky_relu(out, 0.1, inplace=True)

    assert torch.autograd.gradcheck(apply, x)


def test_rounding_of_large_maps():
    # the batch norm of PyTorch 2.13 is off by 6e-6 here, with 96^3 positions by 4e-4
    maps = (torch.randn(1, 48, 32, 32, 32, generator=torch.Generator().manual_seed(0)) + 1).contiguous(
        memory_format=torch.channels_last_3d
    )
    exact = nn.functional.instance_norm(maps.double())
    assert (InstanceNorm(48)(maps) - exact).abs().max() < 2e-6


def test_what_is_replaced():
    module = nn.Sequential(
        nn.InstanceNorm3d(2, eps=0.5), nn.Sequential(nn.InstanceNorm3d(2, affine=True)), nn.InstanceNorm3d(
            2, track_running_stats=True
        ),
    )  # fmt: skip
    replace_instance_norms(module)
    assert isinstance(module[0], InstanceNorm) and module[0].eps == 0.5
    assert type(module[1][0]) is type(module[2]) is nn.InstanceNorm3d


def test_every_norm_of_the_segmentation_network_is_ours_and_has_no_state():
    with torch.device("meta"):
        network = HybridSwinUNETR(1, 2, "nano")
    norms = [name for name, module in network.named_modules() if isinstance(module, nn.InstanceNorm3d)]
    assert len(norms) > 10 and all(isinstance(network.get_submodule(name), InstanceNorm) for name in norms)
    assert not any(key.startswith(tuple(f"{name}." for name in norms)) for key in network.state_dict())


def test_other_devices_use_pytorch():
    assert InstanceNorm(2)(torch.empty(1, 2, 3, 3, 3, device="meta")).shape == (1, 2, 3, 3, 3)
