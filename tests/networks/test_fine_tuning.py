"""Hybrid Swin-UNETR: Swin-UNETR's decoder, all image sizes of the datasets, and a gradient for every parameter."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import SwinUNETR

from mim_components.networks import PRESETS, HybridSwinUNETR
from mim_components.networks.fine_tuning import check_sides
from mim_components.networks.presets import HybridSizes, Preset

SIZES = [(96, 96, 96), (192, 192, 32), (224, 224, 128), (128, 128, 128), (384, 384, 32)]  # regions of the datasets
WIDTHS = (12, 24, 48, 96, 192)  # of the preset `tiny`, and of Swin-UNETR with feature size 12


def test_the_decoder_of_base_has_the_parameters_of_swin_unetr() -> None:
    with torch.device("meta"):
        ours = HybridSwinUNETR(1, 14, "base")
    theirs = SwinUNETR(1, 14, feature_size=48)
    # one kernel or bias of ours for each of theirs outside the Swin transformer, of the same shape
    decoder = [p.shape for name, p in ours.named_parameters() if not name.startswith(("encoder.", "down."))]
    reference = [p.shape for name, p in theirs.named_parameters() if not name.startswith("swinViT.")]
    assert sorted(decoder) == sorted(reference)
    assert ours.down.conv.weight.shape == (768, 384, 2, 2, 2)


def test_the_decoder_computes_what_swin_unetr_does() -> None:
    # the same maps and the same weights give the same logits: MONAI's forward is the reference
    torch.manual_seed(0)
    ours, theirs = HybridSwinUNETR(1, 3, "tiny").double(), SwinUNETR(1, 3, feature_size=12).double()
    pairs = {"bottleneck": "encoder10", "out": "out"}
    pairs |= {f"skips.{i}": f"encoder{i + 1}" for i in range(4)} | {f"ups.{i}": f"decoder{5 - i}" for i in range(5)}
    for mine, name in pairs.items():
        ours.get_submodule(mine).load_state_dict(theirs.get_submodule(name).state_dict())
    image = torch.rand(1, 1, 64, 32, 32).double()
    sides = [tuple(side // 2 ** (i + 1) for side in (64, 32, 32)) for i in range(len(WIDTHS))]
    maps = [torch.rand(1, width, *size).double() for width, size in zip(WIDTHS, sides, strict=True)]
    ours.encoder.forward = lambda image: maps[:4]
    with torch.no_grad():
        deepest = ours.down(maps[3].permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)
        normalized = [torch.nn.functional.layer_norm(each.movedim(1, -1), [each.shape[1]]) for each in maps[:4]]
        theirs.swinViT.forward = lambda image, normalize: [*(each.movedim(-1, 1) for each in normalized), deepest]
        torch.testing.assert_close(ours(image), theirs(image))


@pytest.mark.parametrize(("preset", "size"), [("nano", (32, 16, 16)), ("tiny", (64, 32, 32))])
def test_every_parameter_learns(preset: str, size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = HybridSwinUNETR(2, 3, preset)
    weights = torch.rand(1, 3, *size)
    logits = network(torch.rand(1, 2, *size))
    (logits * weights).sum().backward()
    assert logits.shape == (1, 3, *size)
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("preset", "size"),
    [*(("base", size) for size in SIZES), ("small", SIZES[0]), ("tiny", SIZES[0]), ("nano", SIZES[0])],
    ids=str,
)
def test_shapes_of_every_preset_forward_and_backward(preset: str, size: tuple[int, ...]) -> None:
    with torch.device("meta"):  # no numbers
        network = HybridSwinUNETR(4, 5, preset)
        logits = network(torch.empty(1, 4, *size))
        logits.sum().backward()
    assert logits.shape == (1, 5, *size)
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes_of_the_datasets_run_forward_and_backward(size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    # only sizes are tested: the strides of `base` with few channels, to fit the memory of CI
    thin = Preset(HybridSizes((1, 2, 2, 6), (1, 1, 1, 1), 1), *[PRESETS["tiny"].vit] * 2, head_width=8, feature_size=12)
    monkeypatch.setitem(PRESETS, "thin", thin)
    torch.manual_seed(0)
    network = HybridSwinUNETR(1, 2, "thin")
    image = torch.rand(1, 1, *size, requires_grad=True)
    logits = network(image)
    assert logits.shape == (1, 2, *size)
    logits[..., -1].square().mean().backward()
    assert image.grad is not None and bool(image.grad.isfinite().all()) and bool(image.grad[..., -1].any())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())


def test_bfloat16_autocast_runs_backward() -> None:
    torch.manual_seed(0)
    network = HybridSwinUNETR(1, 2, "nano")
    with torch.autocast("cpu", torch.bfloat16):
        # the deepest grid is 3x3x1: at 2x2x2, the backward pass of torch 2.13 on CPU reads uninitialised memory
        logits = network(torch.rand(1, 1, 48, 48, 16))
    logits.float().square().mean().backward()
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters() if p.grad is not None)


def test_a_voxel_stays_where_it_is() -> None:
    # without the maps of the encoder the logits follow the image through the convolutions at the full grid alone
    torch.manual_seed(0)
    network = HybridSwinUNETR(1, 1, "nano")
    torch.nn.init.zeros_(network.ups[-1].transp_conv.conv.weight)
    image = torch.zeros(1, 1, 32, 16, 48)
    image[0, 0, 21, 6, 33] = 1.0
    with torch.no_grad():
        change = (network(image) - network(torch.zeros_like(image)))[0, 0]
    change = change - change[0, 0, 0]  # the effect of the instance norms, equal at all positions
    assert change.any()
    far = torch.nonzero(change.abs() > 1e-3 * change.abs().max()) - torch.tensor([21, 6, 33])
    assert far.abs().max() <= 4 and (far == 0).all(1).any()  # four convolutions of 3x3x3


@pytest.mark.parametrize(
    ("preset", "size", "text"),
    [
        ("tiny", (224, 224, 120), r"multiples of 32, got \(224, 224, 120\); .*: \(224, 224, 96\), \(224, 224, 128\)"),
        ("nano", (24, 32, 32), r"multiples of 16, got \(24, 32, 32\); nearest .*: \(16, 32, 32\), \(32, 32, 32\)"),
        ("nano", (16, 16, 16), r"2 positions on its coarsest grid, of 16 .*, got \(16, 16, 16\); .*: \(32, 16, 16\)"),
    ],
)
def test_sizes_that_do_not_fit(preset: str, size: tuple[int, ...], text: str) -> None:
    with pytest.raises(ValueError, match=f"HybridSwinUNETR needs .*{text}"):
        HybridSwinUNETR(1, 2, preset)(torch.zeros(1, 1, *size))


def test_sides_are_three() -> None:
    with pytest.raises(ValueError, match=r"net needs three sides that are multiples of 32, got \(96, 96\)\.$"):
        check_sides((96, 96), 32, "net")
    with pytest.raises(ValueError, match=r"got \(96, -1, 96\); nearest valid sizes: \(96, 32, 96\), \(96, 32, 96\)"):
        check_sides((96, -1, 96), 32, "net")
