"""Classifiers: mean over tokens, sizes, and a gradient for every parameter."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mim_components.networks import PRESETS, HybridClassifier, SwinViTClassifier


def test_base_is_the_design() -> None:
    with torch.device("meta"):
        ours = HybridClassifier(1, 3, "base")
    baseline = SwinViTClassifier(1, 3, "base")
    assert (ours.norm.normalized_shape, ours.head.in_features, ours.head.out_features) == ((384,), 384, 3)
    assert (baseline.norm.normalized_shape, baseline.head.in_features) == ((768,), 768)
    assert (baseline.swin.embed_dim, baseline.swin.window_size) == (48, (7, 7, 7))


@pytest.mark.parametrize("network", [HybridClassifier, SwinViTClassifier])
def test_every_parameter_learns(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net = network(2, 3, "nano")
    logits = net(torch.rand(2, 2, 32, 32, 16))
    assert logits.shape == (2, 3)
    nn.functional.cross_entropy(logits, torch.tensor([0, 2])).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


def test_logits_are_of_the_mean_over_the_last_stage() -> None:
    torch.manual_seed(0)
    net = HybridClassifier(1, 3, "nano")
    image = torch.rand(1, 1, 16, 24, 8)
    tokens = net.encoder(image)[-1].flatten(2)  # (1, 48, 2 * 3 * 1)
    assert tokens.shape == (1, 48, 6)
    mean = (tokens[..., 0] + tokens[..., 1] + tokens[..., 2] + tokens[..., 3] + tokens[..., 4] + tokens[..., 5]) / 6
    torch.testing.assert_close(net(image), net.head(net.norm(mean)))


@pytest.mark.parametrize("preset", PRESETS)
def test_size_of_the_dataset(preset: str) -> None:
    with torch.device("meta"):
        assert HybridClassifier(1, 3, preset)(torch.empty(2, 1, 384, 384, 32)).shape == (2, 3)


def test_baseline_takes_any_size() -> None:
    with torch.no_grad():
        assert SwinViTClassifier(1, 3, "nano")(torch.rand(1, 1, 37, 30, 5)).shape == (1, 3)


def test_a_side_that_does_not_divide() -> None:
    with pytest.raises(ValueError, match=r"multiple of patch_size=8, got \(20, 16, 16\)"):
        HybridClassifier(1, 3, "nano")(torch.zeros(1, 1, 20, 16, 16))
