"""Which parameters are decayed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mim_components.networks import MiM
from mim_components.optimizer import weight_decay_groups


def network_of(encoder: str) -> MiM:
    return MiM(input_size=(32, 32, 32), preset="nano", encoder=encoder, projection_dim=16)


@pytest.mark.parametrize("encoder", ["hybrid", "vit"])
def test_kernels_and_matrices_are_decayed_and_nothing_else(encoder: str) -> None:
    network = network_of(encoder)
    decayed, others = weight_decay_groups(network, 0.05)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
    expected = {
        f"{name}.weight" for name, module in network.named_modules() if isinstance(module, (nn.Linear, nn.Conv3d))
    }
    trainable = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    names = {id(parameter): name for name, parameter in trainable.items()}
    found = [names[id(parameter)] for parameter in decayed["params"]]
    rest = [names[id(parameter)] for parameter in others["params"]]
    assert set(found) == expected & trainable.keys()
    assert sorted(found + rest) == sorted(trainable)  # every one exactly once
    assert "decoder.mask_token" in rest and any("norm" in name for name in rest)
    assert all(name in rest for name in trainable if name.endswith("bias"))


def test_frozen_parameters_are_left_out() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    network[0].requires_grad_(False)
    decayed, others = weight_decay_groups(network, 0.1)
    assert [p is q for p, q in zip(decayed["params"] + others["params"], network[1].parameters(), strict=True)] == [
        True,
        True,
    ]


def test_trainable_positions_are_not_decayed() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions = nn.Parameter(torch.ones(1, 8, 6))
            self.qkv = nn.Parameter(torch.ones(3, 8, 6))

    network = Tokens()
    decayed, others = weight_decay_groups(network, 0.1)
    assert decayed["params"][0] is network.qkv and others["params"][0] is network.positions


def test_step_without_gradient_shrinks_decayed_weights_by_rate_times_decay() -> None:
    network = nn.Sequential(nn.Conv3d(2, 2, 3), nn.LayerNorm(4))
    for parameter in network.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    torch.optim.AdamW(weight_decay_groups(network, 0.5), lr=0.1).step()
    torch.testing.assert_close(network[0].weight, torch.full((2, 2, 3, 3, 3), 0.95))  # 1 - 0.1 * 0.5
    for parameter in (network[0].bias, network[1].weight, network[1].bias):
        assert torch.equal(parameter, torch.ones_like(parameter))
