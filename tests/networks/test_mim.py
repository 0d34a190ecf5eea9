"""The pre-training network: shapes, gradients, no leaks, reconstruction, and learning."""

import itertools

import pytest
import torch
from monai.data import list_data_collate

from mim_components.losses import MiMLoss
from mim_components.networks import MiM
from mim_components.networks.mim import Decoder
from mim_components.networks.presets import TransformerSizes
from mim_components.tokens import (
    gather_tokens,
    patchify,
    sincos_positions,
    standardize_tokens,
    upsample_mask,
    visible_and_masked_ids,
)
from mim_components.transforms.crop import MultiLevelCropMaskd
from mim_components.transforms.levels import level_batch

ENCODERS = ["hybrid", "vit"]
SIZE, GRID, TOKENS = (16, 32, 24), (2, 4, 3), 24  # nano: patch 8


def network(encoder="hybrid", num_levels=3, **options):
    torch.manual_seed(0)
    return MiM(1, SIZE, "nano", encoder, num_levels, projection_dim=16, **options)


def levels(num_levels=3, children=2, ratio=0.6, seed=0):
    """Images and masks of every level; all rows of a mask differ, and hide equally many tokens."""
    generator = torch.Generator().manual_seed(seed)
    volumes = [children**level for level in range(num_levels)]
    images = [torch.rand(v, 1, *SIZE, generator=generator) for v in volumes]
    visible = int(TOKENS * (1 - ratio) + 1e-9)
    masked = [torch.stack([torch.randperm(TOKENS, generator=generator) >= visible for _ in range(v)]) for v in volumes]
    return images, masked


# --- shapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("num_levels", [1, 2, 3, 4])
def test_shapes(encoder, num_levels):
    images, masked = levels(num_levels)
    output = network(encoder, num_levels)(images, masked)
    # 24 tokens, floor(9.6) = 9 visible, 15 masked, 8^3 voxels each
    assert [tuple(p.shape) for p in output.prediction] == [(2**level, 15, 512) for level in range(num_levels)]
    assert [tuple(c.shape) for c in output.context] == [(2 ** (level + 1), 16) for level in range(num_levels - 1)]
    assert [tuple(p.shape) for p in output.patches] == [(2**level, 24, 16) for level in range(num_levels - 1)]


def test_channels():
    torch.manual_seed(0)
    net = MiM(2, (16, 16, 16), "nano", num_levels=1)
    masked = torch.arange(8).unsqueeze(0) >= 3
    assert net([torch.rand(1, 2, 16, 16, 16)], [masked]).prediction[0].shape == (1, 5, 1024)
    assert net.reconstruct(torch.rand(1, 2, 16, 16, 16), masked).shape == (1, 2, 16, 16, 16)


def test_levels_do_not_mix():
    net = network()
    images, masked = levels()
    single = network(num_levels=1)
    single.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("alignment_heads")})
    with torch.no_grad():
        output = net(images, masked)
        for level in range(3):
            alone = single(images[level : level + 1], masked[level : level + 1]).prediction[0]
            torch.testing.assert_close(output.prediction[level], alone, rtol=1e-4, atol=1e-5)


def test_every_pair_has_heads_of_its_own_on_child_and_parent():
    net = network()
    images, masked = levels()
    with torch.no_grad():
        output = net(images, masked)
        q = [net._latent(image, mask, None)[0] for image, mask in zip(images, masked, strict=True)]
        for pair, heads in enumerate(net.alignment_heads):
            torch.testing.assert_close(output.context[pair], heads.context(q[pair + 1].mean(1)), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(output.patches[pair], heads.patch(q[pair]), rtol=1e-4, atol=1e-5)


def test_number_of_visible_tokens_may_be_given():
    net = network()
    images, masked = levels()
    with torch.no_grad():
        for counted, given in zip(net(images, masked), net(images, masked, num_visible=9), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(counted, given, strict=True))


# --- decoder ----------------------------------------------------------------------------------------------------------


def test_decoder_puts_every_token_in_its_place():
    torch.manual_seed(0)
    decoder = Decoder(6, TransformerSizes(12, 0, 2))  # no blocks: nothing mixes
    visible, ids = torch.rand(2, 2, 6), torch.tensor([[1, 3], [0, 2]])
    q = decoder(visible, ids, (1, 2, 2))
    positions = sincos_positions((1, 2, 2), 12, visible)[0]
    for row, number in itertools.product(range(2), range(4)):
        where = ids[row].tolist()
        token = decoder.embed(visible[row, where.index(number)]) if number in where else decoder.mask_token[0, 0]
        torch.testing.assert_close(q[row, number], decoder.norm(token + positions[number]))


# --- leak -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("value", ["other", "nan"])
def test_nothing_the_network_returns_depends_on_masked_voxels(encoder, value):
    net = network(encoder)
    images, masked = levels()
    hidden = [upsample_mask(mask, GRID, 8).unsqueeze(1) for mask in masked]
    fill = [torch.rand_like(image) if value == "other" else torch.tensor(torch.nan) for image in images]
    changed = [torch.where(h, f, image) for h, f, image in zip(hidden, fill, images, strict=True)]
    with torch.no_grad():
        for before, after in zip(net(images, masked), net(changed, masked), strict=True):
            assert all(a.isfinite().all() and torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_control_visible_voxels_reach_everything(encoder):
    net = network(encoder)
    images, masked = levels()
    changed = [torch.rand_like(image) for image in images]
    with torch.no_grad():
        for before, after in zip(net(images, masked), net(changed, masked), strict=True):
            assert all((a != b).any(-1).all() for a, b in zip(before, after, strict=True))


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("num_levels", [1, 2, 3, 4])
@pytest.mark.parametrize("stop_gradient", [True, False])
def test_every_parameter_learns(encoder, num_levels, stop_gradient):
    net = network(encoder, num_levels, stop_gradient=stop_gradient)
    crop = MultiLevelCropMaskd(
        "image", [(64, 64, 64), (32, 32, 32), (16, 16, 16), (8, 8, 8)][:num_levels], SIZE, 8, 0.6, 2
    )
    image = torch.rand(1, 64, 64, 64, generator=torch.Generator().manual_seed(0))
    batch = level_batch(list_data_collate([crop.set_random_state(s)({"image": image}) for s in (0, 1)]), num_levels)
    loss = MiMLoss(8, (1.0,) * num_levels, (0.1,) * (num_levels - 1))
    loss(net(batch.images, batch.masked), batch)["loss"].backward()
    silent = {name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()}
    frozen = {f"encoder.blocks.{i}.norm_cross_attn.{kind}" for i in range(4) for kind in ("weight", "bias")}
    frozen.add("encoder.patch_embedding.position_embeddings")
    assert silent == (frozen if encoder == "vit" else set())
    assert silent == {name for name, p in net.named_parameters() if not p.requires_grad}


# --- reconstruction ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("standardized", [False, True])
def test_reconstruct_keeps_visible_voxels_bit_for_bit(encoder, standardized):
    net = network(encoder, 1)
    (image, *_), (masked, *_) = levels(2)
    image, masked = image.repeat(2, 1, 1, 1, 1), torch.cat([masked, masked.roll(1, 1)])
    before = image.clone()
    with torch.no_grad():
        filled = net.reconstruct(image, masked, standardized)
    hidden = upsample_mask(masked, GRID, 8).unsqueeze(1)
    assert torch.equal(image, before), "the image given is not changed"
    assert torch.equal(filled[~hidden], image[~hidden])
    assert (filled[hidden] != image[hidden]).float().mean() > 0.99


def test_reconstruct_puts_the_prediction_in_the_masked_tokens():
    net = network(num_levels=1)
    images, masked = levels(1)
    _, ids = visible_and_masked_ids(masked[0])
    with torch.no_grad():
        filled = net.reconstruct(images[0], masked[0])
        prediction = net(images, masked).prediction[0]
    assert torch.equal(gather_tokens(patchify(filled, 8), ids), prediction)


def test_reconstruct_restores_the_scale_of_standardised_tokens():
    net = network(num_levels=1)
    images, masked = levels(1)
    image = 100 + 20 * images[0]
    _, ids = visible_and_masked_ids(masked[0])
    with torch.no_grad():
        filled = gather_tokens(patchify(net.reconstruct(image, masked[0], standardized=True), 8), ids)
        prediction = net([image], masked).prediction[0]
    truth = gather_tokens(patchify(image, 8), ids)
    expected = prediction * truth.std(-1, correction=0, keepdim=True) + truth.mean(-1, keepdim=True)
    torch.testing.assert_close(filled, expected, rtol=1e-4, atol=1e-3)
    # a perfect prediction of standardised tokens comes back as the image itself
    torch.testing.assert_close(
        standardize_tokens(truth) * truth.std(-1, correction=0, keepdim=True) + truth.mean(-1, keepdim=True), truth
    )


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "mini"}, "preset must be one of nano, tiny, small, base, got 'mini'"),
        ({"encoder": "swin"}, "encoder must be one of hybrid, vit, got 'swin'"),
        ({"num_levels": 0}, "num_levels must be at least 1, got 0"),
        ({"input_size": (16, 20, 16)}, r"got \(16, 20, 16\); nearest valid sizes: \(16, 16, 16\), \(16, 24, 16\)"),
    ],
)
def test_configuration_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        MiM(**{"in_channels": 1, "input_size": (16, 16, 16), "preset": "nano", **arguments})


def test_wrong_number_of_levels():
    images, masked = levels(2)
    with pytest.raises(ValueError, match="this network has 3 levels, got 2 images and 2 masks"):
        network()(images, masked)
    with pytest.raises(ValueError, match="this network has 2 levels, got 2 images and 1 masks"):
        network(num_levels=2)(images, masked[:1])


def test_levels_masked_differently_are_refused():
    images, masked = levels(2)
    masked[1] = torch.arange(TOKENS).expand(2, -1) >= 5
    with pytest.raises(ValueError, match=r"same number of visible tokens, got \[9, 5, 5\]"):
        network(num_levels=2)(images, masked)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_images_of_another_size_are_refused(encoder):
    masked = torch.arange(8).unsqueeze(0) >= 4
    with pytest.raises(ValueError, match="16, 16, 16"):
        network(encoder, 1)([torch.rand(1, 1, 16, 16, 16)], [masked])


# --- it learns --------------------------------------------------------------------------------------------------------


def structured_volume(size=32):
    """A volume `(1, size, size, size)` in [0, 1]: a ramp, a wave and a dense ball."""
    h, w, d = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 3, indexing="ij")
    ball = ((h - 0.2) ** 2 + (w + 0.1) ** 2 + (d - 0.1) ** 2 < 0.3).float()
    return (0.25 + 0.2 * h + 0.15 * torch.sin(4 * w) + 0.4 * ball).clamp(0, 1).unsqueeze(0)


def error_of_the_visible_mean(images, masked):
    """Mean squared error, over masked voxels, of predicting the mean of the visible voxels of each volume."""
    hidden = upsample_mask(masked, (4, 4, 4), 8).unsqueeze(1)
    return (
        torch.stack([(x[h] - x[~h].mean()).square().mean() for x, h in zip(images, hidden, strict=True)]).mean().item()
    )


def train(net, loss, batches, rate):
    """Train one step per batch; the learning rate rises to `rate` and falls again."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=len(batches), cycle_momentum=False)
    for batch in batches:
        optimizer.zero_grad()
        loss(net(batch.images, batch.masked), batch)["loss"].backward()
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_masked_reconstruction_beats_the_mean_of_the_visible_voxels(encoder):
    torch.manual_seed(0)
    net, loss = MiM(1, (32, 32, 32), "nano", encoder, num_levels=1), MiMLoss(8, (1.0,), ())
    crop = MultiLevelCropMaskd("image", [(32, 32, 32)], (32, 32, 32), 8, 0.6).set_random_state(0)
    volume = {"image": structured_volume()}  # the same volume with a new mask in every step
    train(net, loss, [level_batch(list_data_collate([crop(volume)]), 1) for _ in range(200)], rate=1e-2)
    batch = level_batch(list_data_collate([crop(volume) for _ in range(8)]), 1)  # masks not used in training
    with torch.no_grad():
        found = loss(net(batch.images, batch.masked), batch)["loss"].item()
    assert found < error_of_the_visible_mean(batch.images[0], batch.masked[0]) / 4


@pytest.mark.parametrize("encoder", ENCODERS)
def test_all_terms_are_learned_together(encoder):
    torch.manual_seed(0)
    net = MiM(1, (32, 32, 32), "nano", encoder, num_levels=2, projection_dim=32)
    loss = MiMLoss(8, (1.0, 1.0), (0.1,))
    crop = MultiLevelCropMaskd("image", [(32, 32, 32), (16, 16, 16)], (32, 32, 32), 8, 0.6, 2).set_random_state(0)
    batch = level_batch(list_data_collate([crop({"image": structured_volume(40)})]), 2)
    before = loss(net(batch.images, batch.masked), batch)
    train(net, loss, [batch] * 150, rate=5e-3)
    with torch.no_grad():
        after = loss(net(batch.images, batch.masked), batch)
    for level in (1, 2):
        trivial = error_of_the_visible_mean(batch.images[level - 1], batch.masked[level - 1])
        assert after[f"reconstruction_level{level}"].item() < trivial
    assert after["alignment_level1_2"].item() < before["alignment_level1_2"].item() / 4
