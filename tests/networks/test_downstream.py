"""Networks by name: the right class and sizes, and refusal of unsuitable image sizes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from monai.networks.nets import UNETR, SwinUNETR
from torch import Tensor, nn

from mim_components.networks import (
    HybridClassifier,
    HybridSwinUNETR,
    SwinViTClassifier,
    classification_network,
    segmentation_network,
)


@pytest.mark.parametrize(
    ("name", "kind", "width"),
    [("hybrid_swin_unetr", HybridSwinUNETR, 48), ("unetr", UNETR, 16), ("swin_unetr", SwinUNETR, 48)],
)
def test_base_by_name(name: str, kind: type, width: int) -> None:
    with torch.device("cpu" if name == "swin_unetr" else "meta"):  # MONAI's class reads values in its constructor
        network: Any = segmentation_network(name, 4, 3, (96, 96, 96))
    assert type(network) is kind
    assert network.out.conv.conv.weight.shape == (3, width, 1, 1, 1)
    if name == "unetr":
        assert network.vit.patch_embedding.position_embeddings.shape == (1, 216, 768)
        assert (len(network.vit.blocks), network.vit.blocks[0].attn.num_heads) == (12, 12)
        assert network.vit.blocks[0].mlp.linear1.out_features == 3072


@pytest.mark.parametrize("name", ["hybrid_swin_unetr", "unetr", "swin_unetr"])
def test_every_trainable_parameter_of_a_segmentation_network_gets_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    network = segmentation_network(name, 1, 2, (64, 32, 32), "tiny")
    logits = network(torch.rand(1, 1, 64, 32, 32))
    assert logits.shape == (1, 2, 64, 32, 32)
    logits.square().mean().backward()
    assert [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None] == []
    frozen = [n for n, p in network.named_parameters() if not p.requires_grad]
    assert all(".norm_cross_attn." in n for n in frozen) and len(frozen) == (24 if name == "unetr" else 0)


@pytest.mark.parametrize(("name", "kind"), [("hybrid", HybridClassifier), ("swin_vit", SwinViTClassifier)])
def test_classifiers_by_name(name: str, kind: type) -> None:
    network = classification_network(name, 1, 3, (32, 32, 16), "nano")
    assert type(network) is kind and network.head.out_features == 3  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "roi_size", "text"),
    [
        ("hybrid_swin_unetr", (224, 224, 120), r"32, got \(224, 224, 120\); .*: \(224, 224, 96\), \(224, 224, 128\)"),
        ("swin_unetr", (224, 224, 120), r"32, got \(224, 224, 120\); .*: \(224, 224, 96\), \(224, 224, 128\)"),
        ("unetr", (224, 224, 120), r"16, got \(224, 224, 120\); .*: \(224, 224, 112\), \(224, 224, 128\)"),
        ("hybrid_swin_unetr", (32, 32, 32), r"2 positions .*, got \(32, 32, 32\); nearest valid size: \(64, 32, 32\)"),
        ("swin_unetr", (32, 32, 32), r"2 positions .*, got \(32, 32, 32\); nearest valid size: \(64, 32, 32\)"),
    ],
)
def test_regions_that_do_not_fit_are_refused_when_the_network_is_made(
    name: str, roi_size: tuple[int, ...], text: str
) -> None:
    with pytest.raises(ValueError, match=f"{name} needs .*{text}"):
        segmentation_network(name, 1, 2, roi_size, "tiny")


def test_smallest_region_of_unetr_runs() -> None:
    with torch.no_grad():
        assert segmentation_network("unetr", 1, 2, [16, 16, 16], "tiny")(torch.rand(1, 1, 16, 16, 16)).shape[1] == 2


def test_unetr_has_one_patch_size() -> None:
    with pytest.raises(ValueError, match="unetr needs a patch size of 16 voxels, preset 'nano' has 8; use another"):
        segmentation_network("unetr", 1, 2, (32, 32, 32), "nano")


@pytest.mark.parametrize(
    ("name", "size", "text"),
    [
        ("hybrid", (380, 384, 32), r"16, got \(380, 384, 32\); nearest .*: \(368, 384, 32\), \(384, 384, 32\)"),
        ("swin_vit", (384, 384, 0), r"1, got \(384, 384, 0\)"),
    ],
)
def test_images_that_do_not_fit_a_classifier(name: str, size: tuple[int, ...], text: str) -> None:
    with pytest.raises(ValueError, match=f"{name} needs three sides that are multiples of {text}"):
        classification_network(name, 1, 3, size, "tiny")


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="must be one of hybrid_swin_unetr, unetr, swin_unetr, got 'unet'"):
        segmentation_network("unet", 1, 2, (96, 96, 96), "tiny")
    with pytest.raises(ValueError, match="must be one of hybrid, swin_vit, got 'resnet'"):
        classification_network("resnet", 1, 2, (96, 96, 96), "tiny")
    for make, name in ((segmentation_network, "swin_unetr"), (classification_network, "hybrid")):
        with pytest.raises(ValueError, match="preset must be one of nano, tiny, small, base, got 'huge'"):
            make(name, 1, 2, (96, 96, 96), "huge")


class ExactNorm(nn.Module):
    """Instance norm from elementary operations, with correct gradients in any memory layout."""

    def forward(self, maps: Tensor) -> Tensor:
        variance, mean = torch.var_mean(maps, (2, 3, 4), correction=0, keepdim=True)
        return (maps - mean) / (variance + 1e-5).sqrt()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=str)
@pytest.mark.parametrize(
    ("name", "preset", "size"),
    [
        ("hybrid_swin_unetr", "nano", (32, 32, 16)),
        ("unetr", "tiny", (32, 32, 32)),
        ("swin_unetr", "tiny", (64, 32, 32)),
    ],
)
def test_gradients_of_one_sample_are_right(
    name: str, preset: str, size: tuple[int, ...], layout: torch.memory_format
) -> None:
    # PyTorch 2.13 on CPU: with one sample, a channels-last gradient of an instance norm comes back wrong
    torch.manual_seed(0)
    network = segmentation_network(name, 1, 2, size, preset)
    reference = copy.deepcopy(network).double()
    norms = [key for key, module in reference.named_modules() if isinstance(module, nn.InstanceNorm3d)]
    for key in norms:
        reference.set_submodule(key, ExactNorm())
    image, weights = torch.rand(1, 1, *size), torch.rand(1, 2, *size)
    (reference(image.double()) * weights.double()).sum().backward()
    network.to(memory_format=layout)
    image, weights = image.contiguous(memory_format=layout), weights.contiguous(memory_format=layout)
    (network(image) * weights).sum().backward()
    right = dict(reference.named_parameters())
    assert len(norms) > 10
    for key, mine in network.named_parameters():
        if mine.grad is not None:
            error = (mine.grad.double() - right[key].grad).norm() / right[key].grad.norm()  # type: ignore[operator, union-attr]
            assert error < 0.05, key  # rounding gives 0.005, the wrong gradient is off by about 1


def test_what_pytorch_gets_wrong_is_still_wrong() -> None:
    # once this fails, the test above can be removed
    torch.manual_seed(0)
    maps, grad = torch.randn(2, 1, 3, 4, 5, 6, dtype=torch.float64)
    x, last = maps.clone().requires_grad_(), maps.clone().requires_grad_()
    nn.InstanceNorm3d(3)(x).backward(grad)
    nn.InstanceNorm3d(3)(last).backward(grad.contiguous(memory_format=torch.channels_last_3d))
    assert x.grad is not None and last.grad is not None and (x.grad - last.grad).abs().max() > 1
