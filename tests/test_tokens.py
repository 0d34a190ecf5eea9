"""Tokens by hand: order, inverse, masks, positions."""

import math

import numpy as np
import pytest
import torch
from monai.networks.blocks.pos_embed_utils import build_sincos_position_embedding

from mim_components.tokens import (
    POSITIONS,
    axis_coordinates,
    check_positions,
    gather_tokens,
    patchify,
    restore_tokens,
    sincos_positions,
    standardize_tokens,
    token_grid,
    unpatchify,
    upsample_mask,
    visible_and_masked_ids,
)


def test_token_grid_by_hand():
    assert token_grid((96, 96, 96), 16) == (6, 6, 6)
    assert token_grid((192, 192, 32), 16) == (12, 12, 2)


@pytest.mark.parametrize(
    ("size", "below", "above"),
    [
        ((100, 96, 40), "96, 96, 32", "112, 96, 48"),
        ((10, 16, 16), "16, 16, 16", "16, 16, 16"),
        ((0, 16, 16), "16, 16, 16", "16, 16, 16"),
    ],
)
def test_token_grid_names_the_nearest_sizes(size, below, above):
    with pytest.raises(ValueError, match="multiple of patch_size=16") as caught:
        token_grid(size, 16)
    assert f"got {size}" in str(caught.value)
    assert f"nearest valid sizes: ({below}), ({above})." in str(caught.value)


def test_patchify_by_hand():
    # voxel (h, w, d) of a 2x2x4 image holds 100h + 10w + d; tokens of 2 voxels an edge: (0, 0, 0) and (0, 0, 1)
    h, w, d = np.indices((2, 2, 4))
    image = torch.from_numpy(100 * h + 10 * w + d).float()[None, None]
    assert patchify(image, 2)[0].tolist() == [
        [0, 1, 10, 11, 100, 101, 110, 111],
        [2, 3, 12, 13, 102, 103, 112, 113],
    ]


def test_patchify_is_row_major_with_channels_first():
    # grid (2, 3, 4): token number n is at (n // 12, n // 4 % 3, n % 4)
    h, w, d = np.indices((4, 6, 8)) // 2
    number = torch.from_numpy(12 * h + 4 * w + d).float()
    tokens = patchify(torch.stack([number, -number])[None], 2)
    assert tokens.shape == (1, 24, 16)
    for n in range(24):
        assert tokens[0, n].tolist() == [n] * 8 + [-n] * 8


@pytest.mark.parametrize(("size", "patch", "channels"), [((4, 6, 8), 2, 3), ((16, 8, 24), 8, 1), ((3, 4, 5), 1, 2)])
def test_unpatchify_is_the_inverse(size, patch, channels):
    image = torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(unpatchify(patchify(image, patch), token_grid(size, patch), patch), image)


def test_upsample_mask_is_the_tokens_voxels():
    masked = torch.rand(3, 24, generator=torch.Generator().manual_seed(0)) < 0.5
    fine = upsample_mask(masked, (2, 3, 4), 5)
    assert fine.shape == (3, 10, 15, 20) and fine.dtype == torch.bool
    tokens = patchify(fine.unsqueeze(1), 5)  # (3, 24, 125)
    assert torch.equal(tokens, masked.unsqueeze(-1).expand_as(tokens))


def test_upsample_mask_by_one_is_the_grid():
    masked = torch.tensor([[True, False, False, True, True, False]])
    assert torch.equal(upsample_mask(masked, (1, 2, 3), 1), masked.view(1, 1, 2, 3))


def test_ids_are_ascending_and_complete():
    masked = torch.tensor([[True, False, True, False, False], [False, True, False, False, True]])
    visible, hidden = visible_and_masked_ids(masked)
    assert visible.tolist() == [[1, 3, 4], [0, 2, 3]]
    assert hidden.tolist() == [[0, 2], [1, 4]]


@pytest.mark.parametrize("tokens", [27, 216, 1728])
def test_ids_of_many_tokens(tokens):  # long enough to expose sorts that are stable only for short inputs
    generator = torch.Generator().manual_seed(0)
    masked = torch.stack([torch.randperm(tokens, generator=generator) >= tokens // 3 for _ in range(4)])
    for hint in (None, tokens // 3):
        visible, hidden = visible_and_masked_ids(masked, hint)
        for row in range(4):
            assert visible[row].tolist() == torch.nonzero(~masked[row]).flatten().tolist()
            assert hidden[row].tolist() == torch.nonzero(masked[row]).flatten().tolist()


def test_nothing_hidden():
    visible, hidden = visible_and_masked_ids(torch.zeros(2, 4, dtype=torch.bool))
    assert visible.tolist() == [[0, 1, 2, 3]] * 2
    assert hidden.shape == (2, 0)


def test_unequal_masks_are_refused():
    masked = torch.tensor([[True, False, False], [True, True, False]])
    with pytest.raises(ValueError, match=r"same number of visible tokens, got \[2, 1\]"):
        visible_and_masked_ids(masked)


@pytest.mark.parametrize(("hint", "found"), [(None, 0), (0, 0), (4, 4), (-1, -1)])
def test_no_visible_token_is_refused(hint, found):
    with pytest.raises(ValueError, match=f"between 1 and 3 tokens must be visible, got {found}"):
        visible_and_masked_ids(torch.ones(2, 3, dtype=torch.bool), hint)


def test_gather_tokens_by_hand():
    tokens = torch.tensor([[[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], [[6.0, 7.0], [8.0, 9.0], [10.0, 11.0]]])
    assert gather_tokens(tokens, torch.tensor([[2, 0], [1, 1]])).tolist() == [
        [[4.0, 5.0], [0.0, 1.0]],
        [[8.0, 9.0], [8.0, 9.0]],
    ]


def test_standardize_by_hand():
    # mean 4, variance ((-3)^2 + (-1)^2 + 1^2 + 3^2) / 4 = 5
    token = torch.tensor([[1.0, 3.0, 5.0, 7.0]])
    expected = torch.tensor([[-3.0, -1.0, 1.0, 3.0]]) / math.sqrt(5)
    torch.testing.assert_close(standardize_tokens(token), expected, rtol=1e-5, atol=1e-5)


def test_standardize_a_constant_token_gives_zeros():
    assert standardize_tokens(torch.full((2, 3, 8), 0.7)).abs().max() < 1e-3


def test_noise_in_air_is_no_target():
    # 10 HU of 2000 are 0.005: variance 2.5e-5, and 2.5e-5 / (2.5e-5 + 1e-4) = 0.2
    noise = 0.005 * torch.randn(20, 4096, generator=torch.Generator().manual_seed(0))
    air, tissue = standardize_tokens(noise), standardize_tokens(0.5 + 40 * noise)  # 400 HU: 0.04 / (0.04 + 0.0001)
    assert air.var(-1, correction=0).tolist() == pytest.approx([0.2] * 20, abs=0.02)
    assert tissue.var(-1, correction=0).tolist() == pytest.approx([0.9975] * 20, abs=0.001)
    torch.testing.assert_close(restore_tokens(air, noise), noise)


def test_restore_is_the_inverse_of_standardize():
    tokens = 5 + 3 * torch.rand(2, 4, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(restore_tokens(standardize_tokens(tokens), tokens), tokens)


def test_positions_by_hand():
    # width 12: two frequencies, 1 and 1/100, sine and cosine for each of (w, h, d) in MONAI's order
    positions = sincos_positions((2, 3, 4), 12, torch.zeros(1))
    assert positions.shape == (1, 24, 12)
    h, w, d = 1, 2, 3
    expected = [f(x * omega) for x in (w, h, d) for f in (math.sin, math.cos) for omega in (1, 0.01)]
    torch.testing.assert_close(positions[0, 12 * h + 4 * w + d], torch.tensor(expected))


@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")  # MONAI's
@pytest.mark.parametrize("grid", [(6, 6, 6), (12, 12, 2), (24, 24, 2), (5, 3, 7)])
def test_positions_of_the_trained_grid_are_monais_bit_for_bit(grid):
    theirs = build_sincos_position_embedding(list(grid), 384, spatial_dims=3)
    assert torch.equal(sincos_positions(grid, 384, theirs), theirs)
    assert torch.equal(sincos_positions(grid, 384, theirs, trained=grid), theirs)


def test_rescaled_coordinates_by_hand():
    # 12 tokens over the length of 6: each is half as long, with its centre a quarter off a trained one's; the ends, at
    # -0.25 and 5.25, are kept inside. 2 tokens: each covers three, the centre is that of the middle one
    fine, coarse = axis_coordinates(12, 6), axis_coordinates(2, 6)
    quarters = [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75, 4.25, 4.75, 5]
    assert fine.tolist() == quarters and coarse.tolist() == [1, 4]
    assert torch.equal(axis_coordinates(6, 6), torch.arange(6.0))


def test_rescaled_positions_by_hand():
    # on a grid 12x12x2, trained on 6x6x6: token (3, 8, 1) lies at (1.25, 3.75, 4); frequencies 1 and 1/100 as above
    positions = sincos_positions((12, 12, 2), 12, torch.zeros(1), trained=(6, 6, 6))
    expected = [f(x * omega) for x in (3.75, 1.25, 4) for f in (math.sin, math.cos) for omega in (1, 0.01)]
    torch.testing.assert_close(positions[0, 24 * 3 + 2 * 8 + 1], torch.tensor(expected))


def test_unknown_kind_of_positions():
    assert [check_positions(each) for each in POSITIONS] == ["rescaled", "index"]
    with pytest.raises(ValueError, match="positions must be one of rescaled, index, got 'numbers'"):
        check_positions("numbers")


def test_positions_are_distinct_and_need_no_gradient():
    positions = sincos_positions((12, 12, 2), 48, torch.zeros(1))
    assert not positions.requires_grad
    assert torch.pdist(positions[0]).min() > 0.1


def test_building_on_the_meta_device_leaves_nothing_behind():
    with torch.device("meta"):
        sincos_positions((7, 1, 1), 6, torch.zeros(1))
    assert sincos_positions((7, 1, 1), 6, torch.zeros(1, device="cpu")).isfinite().all()
