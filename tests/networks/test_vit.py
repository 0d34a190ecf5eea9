"""Plain ViT encoder: MONAI's class and keys, on visible tokens only."""

import functools

import pytest
import torch
from monai.networks.nets import UNETR

from mim_components.networks import PRESETS, ViTEncoder
from mim_components.tokens import gather_tokens, sincos_positions, upsample_mask, visible_and_masked_ids

SIZES = {"nano": (32, 16, 40), "tiny": (48, 32, 32), "small": (48, 32, 32), "base": (48, 32, 32)}


@functools.cache
def encoder(preset="nano"):
    torch.manual_seed(0)
    return ViTEncoder(1, preset, SIZES[preset]).eval()


def case(preset="nano", ratio=0.6, batch=3):
    """Image, masks that differ in every row but hide equally many tokens, and the voxels that they hide."""
    size, patch = SIZES[preset], PRESETS[preset].patch_size
    grid = tuple(side // patch for side in size)
    tokens = grid[0] * grid[1] * grid[2]
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(batch, 1, *size, generator=generator)
    visible = max(int(tokens * (1 - ratio) + 1e-9), 1)
    masked = torch.stack([torch.randperm(tokens, generator=generator) >= visible for _ in range(batch)])
    return image, masked, upsample_mask(masked, grid, patch).unsqueeze(1)


@pytest.mark.parametrize("value", ["other", "nan"])
@pytest.mark.parametrize(
    ("preset", "ratio"),
    [*[("nano", ratio) for ratio in (0.25, 0.5, 0.6, 0.75, 0.9)], ("tiny", 0.6), ("small", 0.6), ("base", 0.6)],
)
def test_masked_voxels_never_move_a_visible_token(preset, ratio, value):
    image, masked, hidden = case(preset, ratio)
    changed = torch.where(hidden, torch.rand_like(image) if value == "other" else torch.nan, image)
    with torch.no_grad():
        tokens, after = (encoder(preset)(x, masked=masked) for x in (image, changed))
    assert tokens.isfinite().all()
    assert torch.equal(tokens, after)  # bit for bit


@pytest.mark.parametrize("preset", ["nano", "tiny"])
def test_control_a_visible_voxel_moves_other_tokens(preset):
    image, masked, hidden = case(preset)
    changed = image.clone()
    changed[(0, 0, *torch.nonzero(~hidden[0, 0])[0])] += 1.0
    with torch.no_grad():
        moved = (encoder(preset)(image, masked=masked) != encoder(preset)(changed, masked=masked)).any(-1)
    assert moved[0].all() and not moved[1:].any()


def test_gradient_of_masked_voxels_is_exactly_zero():
    image, masked, hidden = case()
    image.requires_grad_()
    encoder()(image, masked=masked).square().sum().backward()
    assert (image.grad[hidden] == 0).all()
    assert (image.grad[~hidden] != 0).float().mean() > 0.99


def test_visible_tokens_come_in_ascending_order():
    torch.manual_seed(0)
    net = ViTEncoder(1, "nano", SIZES["nano"])
    net.blocks = net.blocks[:0]  # nothing mixes
    image, masked, _ = case()
    ids, _ = visible_and_masked_ids(masked)
    with torch.no_grad():
        torch.testing.assert_close(
            net(image, masked=masked), gather_tokens(net(image, masked=torch.zeros_like(masked)), ids)
        )


def test_nothing_hidden_is_the_dense_output():
    image, masked, _ = case()
    with torch.no_grad():
        tokens = encoder()(image, masked=torch.zeros_like(masked))
        assert torch.equal(tokens, encoder()(image)[-1].flatten(2).transpose(1, 2))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [(96, 96, 96), (192, 192, 32), (224, 224, 128)])
def test_map_shapes(preset, size):
    net = encoder(preset)
    maps = torch.func.functional_call(
        net,
        {name: p.detach().to("meta") for name, p in net.named_parameters()},
        torch.empty(1, 1, *size, device="meta"),
    )
    patch = PRESETS[preset].patch_size
    width = PRESETS[preset].vit.hidden_size
    assert [tuple(each.shape) for each in maps] == [(1, width, *(side // patch for side in size))] * 4
    assert net.channels == (width,) * 4


def test_weights_load_into_monais_unetr_and_give_its_features():
    torch.manual_seed(0)
    net = ViTEncoder(1, "tiny", (48, 32, 32)).eval()
    unetr = UNETR(1, 2, (48, 32, 32), feature_size=8, hidden_size=96, mlp_dim=384, num_heads=4).eval()
    unetr.vit.load_state_dict(net.state_dict(), strict=True)
    image = torch.rand(2, 1, 48, 32, 32)
    with torch.no_grad():
        output, hidden = unetr.vit(image)
        maps = net(image)
    for ours, theirs in zip(maps, [hidden[3], hidden[6], hidden[9], output], strict=True):
        torch.testing.assert_close(ours.flatten(2).transpose(1, 2), theirs, rtol=1e-4, atol=1e-5)


def test_keys_and_shapes_are_monais_unetr_for_base():
    ours = {name: value.shape for name, value in encoder("base").state_dict().items()}
    theirs = UNETR(1, 2, SIZES["base"], feature_size=2).vit.state_dict()
    assert ours == {name: value.shape for name, value in theirs.items()}


def test_stored_positions_are_the_grids():
    net = encoder()
    stored = net.patch_embedding.position_embeddings
    assert torch.equal(stored, sincos_positions((4, 2, 5), 48, stored))
    assert not stored.requires_grad


@pytest.mark.parametrize("positions", ["rescaled", "index"])
def test_positions_of_other_grids(positions):
    net = ViTEncoder(1, "nano", (32, 16, 40), positions).eval()
    other = ViTEncoder(1, "nano", (16, 40, 32)).eval()  # as many tokens on another grid
    weights = {k: v for k, v in net.state_dict().items() if "position_embeddings" not in k}
    other.load_state_dict(weights, strict=False)
    if positions == "rescaled":
        stored = other.patch_embedding.position_embeddings
        stored.data.copy_(sincos_positions((2, 5, 4), 48, stored, trained=(4, 2, 5)))
    image = torch.rand(1, 1, 16, 40, 32)
    with torch.no_grad():
        for a, b in zip(net(image), other(image), strict=True):
            torch.testing.assert_close(a, b)


def test_layers_of_nano():
    image, _, _ = case()
    states = []
    net = encoder()
    hooks = [block.register_forward_hook(lambda m, i, out: states.append(out)) for block in net.blocks]
    with torch.no_grad():
        maps = net(image)
    for hook in hooks:
        hook.remove()
    for ours, state in zip(maps, [*states[1:], net.norm(states[3])], strict=True):  # blocks 1, 2, 3 of 0 ... 3
        assert torch.equal(ours.flatten(2).transpose(1, 2), state)


def test_every_parameter_learns_but_the_frozen_ones():
    torch.manual_seed(0)
    net = ViTEncoder(1, "nano", SIZES["nano"])
    image, masked, _ = case()
    weights = torch.rand(48, generator=torch.Generator().manual_seed(1))
    (net(image, masked=masked).square() * weights).sum().backward()
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    expected = {f"blocks.{i}.norm_cross_attn.{kind}" for i in range(4) for kind in ("weight", "bias")}
    assert frozen == {"patch_embedding.position_embeddings", *expected}
    silent = {name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()}
    assert silent == frozen


def test_errors():
    with pytest.raises(ValueError, match=r"got \(32, 32, 36\); nearest valid sizes: \(32, 32, 32\), \(32, 32, 40\)"):
        ViTEncoder(1, "nano", (32, 32, 36))
    with pytest.raises(ValueError, match="multiple of patch_size=8"):
        encoder()(torch.zeros(1, 1, 32, 32, 33))
    with pytest.raises(ValueError, match="preset must be one of nano, tiny, small, base, got 'big'"):
        ViTEncoder(1, "big")
    image, masked, _ = case()
    masked[0] = False
    with pytest.raises(ValueError, match="same number of visible tokens"):
        encoder()(image, masked=masked)


@pytest.mark.parametrize("shape", [(3, 20), (3, 8)])
def test_a_mask_of_another_grid_is_refused(shape):
    image, _, _ = case()  # 40 tokens
    masked = torch.zeros(shape, dtype=torch.bool)
    masked[:, :4] = True
    with pytest.raises(ValueError, match=str(shape[1])):
        encoder()(image, masked=masked)
