"""Hybrid encoder: shapes, masked and dense use, and the promise that no masked voxel reaches a visible token."""

import functools

import pytest
import torch
from torch import nn

from mim_components.networks import PRESETS, HybridEncoder, ViTEncoder
from mim_components.networks.hybrid import ConvBlock, PatchEmbedding
from mim_components.tokens import gather_tokens, sincos_positions, upsample_mask, visible_and_masked_ids

SIZES = {"nano": (32, 16, 40), "tiny": (48, 32, 32), "small": (48, 32, 32), "base": (48, 32, 32)}


@functools.cache
def encoder(preset="nano", in_channels=1):
    torch.manual_seed(0)
    return HybridEncoder(in_channels, preset).eval()


def random_masks(batch, tokens, ratio, seed=0):
    """Masks `(batch, tokens)` that hide equally many tokens in every row, but different ones."""
    generator = torch.Generator().manual_seed(seed)
    visible = max(int(tokens * (1 - ratio) + 1e-9), 1)
    return torch.stack([torch.randperm(tokens, generator=generator) >= visible for _ in range(batch)])


def case(preset="nano", ratio=0.6, batch=3, seed=0):
    """Image, masks, and the voxels `(B, 1, H, W, D)` that the masks hide."""
    size, patch = SIZES[preset], PRESETS[preset].patch_size
    grid = tuple(side // patch for side in size)
    image = torch.rand(batch, 1, *size, generator=torch.Generator().manual_seed(seed))
    masked = random_masks(batch, grid[0] * grid[1] * grid[2], ratio, seed)
    return image, masked, upsample_mask(masked, grid, patch).unsqueeze(1)


# --- leak -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["other", "huge", "nan", "inf"])
@pytest.mark.parametrize(
    ("preset", "ratio"),
    [*[("nano", ratio) for ratio in (0.25, 0.5, 0.6, 0.75, 0.9)], ("tiny", 0.6), ("small", 0.6), ("base", 0.6)],
)
def test_masked_voxels_never_move_a_visible_token(preset, ratio, value):
    image, masked, hidden = case(preset, ratio)
    assert len({row.numpy().tobytes() for row in masked}) > 1, "rows must have different masks"
    fill = {"other": torch.rand_like(image), "huge": 1e6 * torch.rand_like(image)}
    changed = torch.where(
        hidden, fill.get(value, torch.full_like(image, float(value) if value in ("nan", "inf") else 0)), image
    )
    with torch.no_grad():
        tokens, after = (encoder(preset)(x, masked=masked) for x in (image, changed))
    assert tokens.isfinite().all()
    assert torch.equal(tokens, after)  # bit for bit


@pytest.mark.parametrize("preset", PRESETS)
def test_control_a_visible_voxel_moves_other_tokens(preset):
    image, masked, hidden = case(preset)
    changed = image.clone()
    first = torch.nonzero(~hidden[0, 0])[0]
    changed[(0, 0, *first)] += 1.0
    with torch.no_grad():
        tokens, after = (encoder(preset)(x, masked=masked) for x in (image, changed))
    moved = (tokens != after).any(-1)
    assert moved[0].all(), "attention carries it to every visible token of its volume"
    assert not moved[1:].any(), "and to no other volume"


def test_control_the_convolution_needs_the_mask():
    # without masks in the convolutional stages the same weights leak, so the test above can fail
    image, masked, hidden = case("nano")
    changed = torch.where(hidden, torch.rand_like(image), image)
    ids, _ = visible_and_masked_ids(masked)
    with torch.no_grad():
        first, second = (gather_tokens(encoder()(x)[1].flatten(2).transpose(1, 2), ids) for x in (image, changed))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("ratio", [0.25, 0.6, 0.9])
def test_gradient_of_masked_voxels_is_exactly_zero(ratio):
    image, masked, hidden = case("nano", ratio)
    image.requires_grad_()
    encoder()(image, masked=masked).square().sum().backward()
    assert (image.grad[hidden] == 0).all()
    assert (image.grad[~hidden] != 0).float().mean() > 0.99


def test_other_volumes_of_the_batch_change_nothing():
    image, masked, _ = case("nano")
    with torch.no_grad():
        together = encoder()(image, masked=masked)
        alone = encoder()(image[1:2], masked=masked[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-5, atol=1e-5)


def test_what_is_hidden_matters():
    image, masked, _ = case("nano")
    with torch.no_grad():
        assert not torch.equal(encoder()(image, masked=masked), encoder()(image, masked=masked.roll(1, 1)))


# --- masked use -------------------------------------------------------------------------------------------------------


def test_visible_tokens_come_in_ascending_order():
    # every token of a constant-in-token image is known by its position alone when nothing mixes: no blocks at all
    torch.manual_seed(0)
    net = HybridEncoder(1, "nano")
    net.stages = nn.ModuleList(nn.ModuleList() for _ in net.stages)
    net.blocks = nn.ModuleList()
    image, masked, _ = case("nano")
    ids, _ = visible_and_masked_ids(masked)
    assert (ids.diff(dim=1) > 0).all()
    with torch.no_grad():
        whole = net(image, masked=torch.zeros_like(masked))
        part = net(image, masked=masked)
    assert part.shape == (3, ids.shape[1], 48)
    torch.testing.assert_close(part, gather_tokens(whole, ids))


def test_nothing_hidden_is_the_dense_pass_plus_the_stage_outputs():
    image, masked, _ = case("nano")
    net = encoder()
    with torch.no_grad():
        *stages, last = net(image)
        expected = last
        for stage, conv in zip(stages, net.stage_outputs, strict=True):
            expected = expected + conv(stage)
        expected = net.norm(expected.flatten(2).transpose(1, 2))
        torch.testing.assert_close(net(image, masked=torch.zeros_like(masked)), expected, rtol=1e-4, atol=1e-5)


def test_number_of_visible_tokens_may_be_given():
    image, masked, _ = case("nano")
    with torch.no_grad():
        tokens = encoder()(image, masked=masked)
        assert torch.equal(encoder()(image, masked=masked, num_visible=tokens.shape[1]), tokens)


def test_unequal_masks_are_refused():
    image, masked, _ = case("nano")
    masked[0] = False
    with pytest.raises(ValueError, match="same number of visible tokens"):
        encoder()(image, masked=masked)


def test_everything_hidden_is_refused():
    image, masked, _ = case("nano")
    with pytest.raises(ValueError, match="between 1 and 40 tokens must be visible, got 0"):
        encoder()(image, masked=torch.ones_like(masked))


def test_a_mask_of_another_grid_is_refused():
    image, _, _ = case("nano", batch=2)  # 40 tokens
    masked = random_masks(2, 20, 0.5)  # 2 x 20 is 1 x 40
    with pytest.raises(ValueError, match="20"):
        encoder()(image, masked=masked)


def test_conv_block_by_hand():
    # weights that make the block x + (sum over 5^3 neighbours of visible * LN(x)), without its MLP
    block = ConvBlock(2)
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    nn.init.ones_(block.norm1.weight)
    nn.init.eye_(block.conv1.weight)
    nn.init.ones_(block.depthwise.weight)
    nn.init.eye_(block.conv2.weight)
    x = torch.zeros(1, 1, 1, 8, 2)
    x[..., 0] = 1e3 * torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0, 1.0, 1.0, 1.0])
    x[..., 1] = -x[..., 0]  # LN over (a, -a) is (1, -1) for a > 0
    hidden = torch.zeros(1, 1, 1, 8, 1, dtype=torch.bool)
    hidden[0, 0, 0, 6] = True
    added = (block(x, hidden) - x)[0, 0, 0, :, 0]
    # neighbours within 2: e.g. position 4 sees 2, 3, 4, 5 (6 is hidden): 1 + 1 - 1 + 1 = 2
    torch.testing.assert_close(added, torch.tensor([3.0, 4.0, 3.0, 3.0, 2.0, 2.0, 1.0, 2.0]), rtol=0, atol=1e-3)


def test_patch_embedding_acts_inside_blocks_of_two():
    torch.manual_seed(0)
    embed = PatchEmbedding(1, 6)
    x = torch.rand(1, 4, 4, 4, 1)
    y = x.clone()
    y[0, 2:, 2:, 2:] += 1
    moved = (embed(x) != embed(y)).any(-1)
    assert moved[0].sum() == 1 and moved[0, 1, 1, 1]


def test_patch_embedding_ends_in_gelu():
    embed = PatchEmbedding(1, 2)
    nn.init.zeros_(embed.norm.weight)
    embed.norm.bias.data = torch.tensor([1.0, -1.0])
    # the norm outputs its biases 1 and -1 for any input; GELU(x) = x * Phi(x), Phi(1) = 0.8413447
    expected = torch.tensor([0.8413447, -0.1586553])
    torch.testing.assert_close(embed(torch.rand(1, 2, 2, 2, 1))[0, 0, 0, 0], expected)
    torch.testing.assert_close(embed(torch.rand(1, 1, 2, 2, 2, 1)).flatten(), expected)


# --- positions --------------------------------------------------------------------------------------------------------


def on_grid(positions, size=(32, 32, 32)):
    torch.manual_seed(0)
    return HybridEncoder(1, "nano", input_size=size, positions=positions).eval()


@pytest.mark.parametrize("sparse", [True, False])
def test_both_kinds_of_positions_are_equal_on_the_trained_grid_only(sparse):
    rescaled, index = on_grid("rescaled"), on_grid("index")
    rescaled.sparse = index.sparse = sparse
    for size, equal in (((32, 32, 32), True), ((64, 64, 16), False)):
        image = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(1))
        masked = random_masks(1, image.numel() // 512, 0.6)
        with torch.no_grad():
            assert torch.equal(rescaled(image)[-1], index(image)[-1]) is equal
            assert torch.equal(rescaled(image, masked=masked), index(image, masked=masked)) is equal


def test_positions_are_those_of_the_trained_grid():
    # without blocks and with a projection to 0 the last map is the positions alone
    net = on_grid("rescaled")
    net.blocks = nn.ModuleList()
    nn.init.zeros_(net.projection.weight)
    with torch.no_grad():
        found = net(torch.rand(1, 1, 64, 64, 16))[-1].flatten(2).transpose(1, 2)
    assert torch.equal(found, sincos_positions((8, 8, 2), 48, found, trained=(4, 4, 4)))


def test_the_trained_grid_goes_with_the_weights():
    net, other, unknown = on_grid("rescaled"), on_grid("rescaled", (16, 16, 16)), HybridEncoder(1, "nano")
    assert (net.trained_grid, other.trained_grid, unknown.trained_grid) == ((4, 4, 4), (2, 2, 2), None)
    other.load_state_dict(net.state_dict())
    assert other.trained_grid == (4, 4, 4)
    other.load_state_dict(unknown.state_dict())
    assert other.trained_grid is None


@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize("positions", ["rescaled", "index"])
def test_positions_of_another_grid_compile_without_a_break(positions):
    net = on_grid(positions)
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, dynamic=False, backend="eager")
    image = torch.rand(1, 1, 32, 16, 16)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(compiled(image), net(image), strict=True))


def test_input_size_must_be_a_multiple_and_positions_known():
    with pytest.raises(ValueError, match="multiple of patch_size=8"):
        HybridEncoder(1, "nano", input_size=(32, 32, 30))
    with pytest.raises(ValueError, match="positions must be one of rescaled, index, got 'numbers'"):
        HybridEncoder(1, "nano", positions="numbers")


# --- dense use --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [(96, 96, 96), (192, 192, 32), (224, 224, 128), (384, 384, 32)])
def test_pyramid_shapes(preset, size):
    net = HybridEncoder(3, preset).to("meta")
    maps = net(torch.empty(1, 3, *size, device="meta"))
    assert [tuple(each.shape) for each in maps] == [
        (1, width, *(side // 2 ** (stage + 1) for side in size)) for stage, width in enumerate(net.channels)
    ]


@pytest.mark.parametrize("size", [(16, 16, 16), (24, 40, 8)])
def test_pyramid_of_other_sizes_has_numbers(size):
    maps = encoder()(torch.rand(2, 1, *size))
    assert all(each.isfinite().all() for each in maps)


def test_axes_are_not_swapped():
    # with nothing but the embeddings a voxel moves exactly the position above it, in every stage
    torch.manual_seed(0)
    net = HybridEncoder(1, "nano")
    net.stages = nn.ModuleList(nn.ModuleList() for _ in net.stages)
    net.blocks = nn.ModuleList()
    image = torch.rand(1, 1, 32, 24, 16)
    other = image.clone()
    other[0, 0, 29, 10, 3] += 1
    for stage, (a, b) in enumerate(zip(net(image), net(other), strict=True)):
        stride = 2 ** (stage + 1)
        assert torch.nonzero((a != b).any(1)).tolist() == [[0, 29 // stride, 10 // stride, 3 // stride]]


def test_mask_none_is_the_dense_pass():
    image, _, _ = case("nano")
    with torch.no_grad():
        for a, b in zip(encoder()(image), encoder()(image, masked=None), strict=True):
            assert torch.equal(a, b)


def test_sides_that_do_not_divide_name_the_nearest_sizes():
    with pytest.raises(ValueError, match=r"got \(100, 96, 33\); nearest valid sizes: \(96, 96, 32\), \(112, 96, 48\)"):
        encoder("tiny")(torch.zeros(1, 1, 100, 96, 33))
    with pytest.raises(ValueError, match="multiple of patch_size=8"):
        encoder()(torch.zeros(1, 1, 32, 32, 36))


def test_several_channels():
    net = encoder("nano", in_channels=4)
    assert net(torch.rand(1, 4, 16, 16, 16))[-1].shape == (1, 48, 2, 2, 2)
    assert net.in_channels == 4


def test_unknown_preset():
    with pytest.raises(ValueError, match="preset must be one of nano, tiny, small, base, got 'giant'"):
        HybridEncoder(1, "giant")


def test_state_dict_does_not_depend_on_the_use():
    torch.manual_seed(0)
    net = HybridEncoder(1, "nano")
    keys = list(net.state_dict())
    net(torch.rand(1, 1, 16, 16, 16))
    net(torch.rand(1, 1, 16, 16, 24), masked=random_masks(1, 12, 0.5))
    assert list(net.state_dict()) == keys
    assert not any("position" in key for key in keys), "positions are made for the grid, not stored"


def test_every_parameter_learns_from_a_masked_pass():
    torch.manual_seed(0)
    net = HybridEncoder(1, "nano")
    image, masked, _ = case("nano")
    weights = torch.rand(48, generator=torch.Generator().manual_seed(1))
    (net(image, masked=masked).square() * weights).sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_parameters_of_base():
    net = encoder("base")
    stage_outputs = sum(p.numel() for p in net.stage_outputs.parameters())
    everything = sum(p.numel() for p in net.parameters())
    # 48 * 8^3 * 384 + 96 * 4^3 * 384 + 192 * 2^3 * 384, and three biases of 384
    assert stage_outputs == (48 * 512 + 96 * 64 + 192 * 8) * 384 + 3 * 384
    # before the transformer: 384 inputs and a bias for each of 384 outputs
    assert sum(p.numel() for p in net.projection.parameters()) == 385 * 384
    assert everything - stage_outputs == pytest.approx(21.5e6, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [HybridEncoder, ViTEncoder])
def test_other_precisions(make, dtype):
    net = make(1, "nano").to(dtype)
    image, masked = torch.rand(1, 1, 48, 32, 32), torch.arange(6 * 4 * 4) % 2 == 0
    exact = make(1, "nano")
    exact.load_state_dict(net.state_dict())
    for mask in (None, masked[None]):
        have, want = (each(image.to(kind), mask) for each, kind in ((net, dtype), (exact, torch.float32)))
        have, want = (each[-1] if mask is None else each for each in (have, want))
        assert have.dtype == dtype and (have - want).abs().mean() < 0.05 * want.abs().mean()


def test_bfloat16_autocast_is_close():
    image, masked, _ = case("nano")
    with torch.no_grad():
        exact = encoder()(image, masked=masked)
        with torch.autocast("cpu", torch.bfloat16):
            rough = encoder()(image, masked=masked)
    assert (exact - rough).abs().mean() < 0.05 * exact.abs().mean()


def test_dense_only_leaves_out_what_masked_input_uses():
    torch.manual_seed(0)
    net, full = HybridEncoder(2, "nano", dense_only=True), HybridEncoder(2, "nano")
    kept = [key for key in full.state_dict() if not key.startswith(HybridEncoder.MASKED_ONLY)]
    assert list(net.state_dict()) == kept
    assert sorted(full.state_dict().keys() - set(kept))[:2] == ["norm.bias", "norm.weight"]
    net.load_state_dict({key: full.state_dict()[key] for key in kept})
    image = torch.rand(1, 2, 16, 16, 16)
    maps = net(image)
    assert all(torch.equal(a, b) for a, b in zip(maps, full(image), strict=True))
    weights = torch.rand(48, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    (maps[-1].square() * weights).sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
    with pytest.raises(ValueError, match="an encoder with dense_only=True cannot take masked input"):
        net(image, masked=torch.arange(8).unsqueeze(0) < 4)
