"""Every form of a network compiles to one graph, with the same results."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mim_components.networks import HybridEncoder, ViTEncoder, classification_network, segmentation_network

FORMS = {
    "hybrid_swin_unetr": (lambda: segmentation_network("hybrid_swin_unetr", 1, 2, (32, 16, 16), "nano"), (32, 16, 16)),
    "unetr": (lambda: segmentation_network("unetr", 1, 2, (32, 16, 16), "tiny"), (32, 16, 16)),
    "swin_unetr": (lambda: segmentation_network("swin_unetr", 1, 2, (64, 32, 32), "tiny"), (64, 32, 32)),
    "hybrid": (lambda: classification_network("hybrid", 1, 3, (16, 16, 8), "nano"), (16, 16, 8)),
    "swin_vit": (lambda: classification_network("swin_vit", 1, 3, (32, 32, 16), "nano"), (32, 32, 16)),
    "HybridEncoder": (lambda: HybridEncoder(1, "nano", dense_only=True, input_size=(16, 16, 16)), (16, 16, 8)),
    "ViTEncoder": (lambda: ViTEncoder(1, "nano", (16, 16, 16)), (16, 16, 8)),
}


def output_and_gradient(network: nn.Module, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    output = network(image)
    last = output[-1] if isinstance(output, list) else output
    weight = next(each for each in network.parameters() if each.requires_grad)
    weight.grad = None
    last.square().mean().backward()
    assert weight.grad is not None
    return last.detach(), weight.grad


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_one_graph(name: str) -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    make, size = FORMS[name]
    network, image = make(), torch.rand(2, 1, *size)
    expected = output_and_gradient(network, image)
    network.compile(backend="aot_eager", dynamic=False, fullgraph=True)  # raises if it is not
    for found, wanted in zip(output_and_gradient(network, image), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
