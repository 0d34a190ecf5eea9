"""Which parameters are decayed, and how fast each layer learns."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mim_components.networks import HybridEncoder, MiM, segmentation_network
from mim_components.optimizers import finetune_groups, warmup_cosine, weight_decay_groups


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


# --- rates by depth ---------------------------------------------------------------------------------------------------


def rates(network: nn.Module, layer_decay: float) -> dict[str, tuple[float, float]]:
    """Rate and weight decay of each trainable parameter by name, for a full rate of 1 and a decay of 0.1."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found: dict[str, tuple[float, float]] = {}
    for group in finetune_groups(network, 0.1, 1.0, layer_decay):
        assert group["params"] and set(group) == {"params", "weight_decay", "lr"}
        for parameter in group["params"]:
            assert names[id(parameter)] not in found, "once only"
            found[names[id(parameter)]] = (group["lr"], group["weight_decay"])
    assert found.keys() == {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    return found


def test_no_layer_decay_is_two_groups_with_one_rate() -> None:
    network = segmentation_network("hybrid_swin_unetr", 1, 2, (32, 32, 32), "nano")
    groups, plain = finetune_groups(network, 0.05, 1e-3), weight_decay_groups(network, 0.05)
    assert [group["lr"] for group in groups] == [1e-3, 1e-3]
    for group, same in zip(groups, plain, strict=True):
        assert group["weight_decay"] == same["weight_decay"]
        assert all(a is b for a, b in zip(group["params"], same["params"], strict=True))


def test_rates_of_the_hybrid_encoder_by_hand() -> None:
    # nano, from the image: embedding, stage, embedding, stage, embedding, block, block: 7 layers
    found = rates(segmentation_network("hybrid_swin_unetr", 1, 2, (32, 32, 32), "nano"), 0.5)
    for part in ("bottleneck", "down", "skips", "ups", "out"):
        assert {rate for name, (rate, _) in found.items() if name.startswith(part)} == {1.0}
    by_hand = {
        "blocks.1": 1 / 2,
        "blocks.0": 1 / 4,
        "projection": 1 / 8,  # of the same layer
        "embeddings.2": 1 / 8,
        "stages.1": 1 / 16,
        "embeddings.1": 1 / 32,
        "stages.0": 1 / 64,
        "embeddings.0": 1 / 128,
    }
    for layer, rate in by_hand.items():
        assert {each for name, (each, _) in found.items() if name.startswith(f"encoder.{layer}.")} == {rate}
    assert found["encoder.embeddings.0.conv.weight"] == (1 / 128, 0.1)
    assert found["encoder.embeddings.0.conv.bias"] == (1 / 128, 0.0)


def test_base_has_18_layers() -> None:
    # 4 embeddings, 3 stages, 11 blocks: the first embedding is 18 steps below the decoder
    with torch.device("meta"):
        network = segmentation_network("hybrid_swin_unetr", 1, 2, (96, 96, 96), "base")
    found = rates(network, 0.75)
    assert found["encoder.embeddings.0.norm.weight"] == (0.75**18, 0.0)
    assert found["encoder.stages.2.1.conv1.weight"] == (0.75**13, 0.1)
    assert found["encoder.blocks.10.mlp.linear1.weight"] == (0.75, 0.1)


def test_rates_of_unetr_by_hand() -> None:
    found = rates(segmentation_network("unetr", 1, 2, (32, 32, 32), "tiny"), 0.5)
    assert {rate for name, (rate, _) in found.items() if not name.startswith("vit.")} == {1.0}
    assert found["vit.blocks.11.mlp.linear1.weight"] == (1 / 2, 0.1)
    assert found["vit.norm.weight"] == (1 / 2, 0.0)  # after the last block, and in its layer
    assert found["vit.blocks.0.mlp.linear1.weight"] == (2**-12, 0.1)
    assert found["vit.patch_embedding.patch_embeddings.weight"] == (2**-13, 0.1)
    assert found["vit.patch_embedding.position_embeddings"] == (2**-13, 0.0)


def test_the_full_rate_stands_first_and_rates_fall() -> None:
    network = segmentation_network("hybrid_swin_unetr", 1, 2, (32, 32, 32), "nano")
    groups = finetune_groups(network, 0.1, 3e-4, 0.9)
    assert groups[0]["lr"] == 3e-4 and groups[0]["params"][0] is network.down.conv.weight  # type: ignore[union-attr]
    falling = [group["lr"] for group in groups]
    assert falling == sorted(falling, reverse=True) and len(set(falling)) == 8  # the full one and 7 layers
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    assert [group["lr"] for group in optimizer.param_groups] == falling


def test_an_encoder_alone_keeps_its_masked_parts_with_the_last_block() -> None:
    found = rates(HybridEncoder(preset="nano"), 0.5)
    assert found["norm.weight"][0] == found["stage_outputs.0.weight"][0] == found["blocks.1.norm1.weight"][0] == 0.5


@pytest.mark.parametrize("layer_decay", [0.0, -0.5, 1.1, float("nan")])
def test_layer_decay_out_of_range(layer_decay: float) -> None:
    with pytest.raises(ValueError, match=rf"layer_decay must be in \(0, 1\], got {layer_decay}"):
        finetune_groups(nn.Linear(2, 2), 0.1, 1.0, layer_decay)


def test_layer_decay_needs_an_encoder() -> None:
    network = segmentation_network("swin_unetr", 1, 2, (64, 32, 32), "nano")
    assert len(finetune_groups(network, 0.1, 1.0)) == 2
    with pytest.raises(ValueError, match="needs an encoder that MiM pre-trains, but SwinUNETR has none; use layer_dec"):
        finetune_groups(network, 0.1, 1.0, 0.9)


@pytest.mark.parametrize(
    ("num_steps", "warmup_steps", "said"), [(50, 100, True), (50, 50, True), (50, 49, False), (1, 1, False)]
)
def test_warmup_that_does_not_end_is_said(
    num_steps: int, warmup_steps: int, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule, rates = warmup_cosine(optimizer, num_steps, warmup_steps), []
    for _ in range(num_steps):
        rates += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    assert (max(rates) < 1.0) == said == ("never reaches its peak" in caplog.text)
