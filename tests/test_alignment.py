"""Alignment of child and parent: InfoNCE and BYOL by hand, and which side learns from it."""

import math

import pytest
import torch

from mim_components.losses import MiMLoss, alignment_loss
from mim_components.networks import MiM
from mim_components.transforms.levels import LevelBatch

EAST, NORTH, WEST = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]


def test_infonce_of_one_child_by_hand():
    loss = alignment_loss(torch.tensor([EAST]), torch.tensor([[EAST, NORTH]]), torch.tensor([0]), temperature=0.5)
    torch.testing.assert_close(loss, torch.tensor(math.log(1 + math.exp(-2))))  # -log(e^2 / (e^2 + e^0))


def test_infonce_is_of_the_cosine():
    patches = torch.tensor([[EAST, NORTH]])
    loss = alignment_loss(5 * torch.tensor([EAST]), 7 * patches, torch.tensor([0]), temperature=0.5)
    torch.testing.assert_close(loss, torch.tensor(math.log(1 + math.exp(-2))))


def test_overlapping_tokens_are_neither_positive_nor_negative():
    patches = torch.tensor([[EAST, EAST, NORTH, WEST]])
    overlap = torch.tensor([[True, True, False, False]])  # token 1 overlaps and is not the parent token
    loss = alignment_loss(torch.tensor([EAST]), patches, torch.tensor([0]), overlap, temperature=0.5)
    # cosines 1, (left out), 0, -1 over 0.5
    torch.testing.assert_close(loss, torch.tensor(math.log(1 + math.exp(-2) + math.exp(-4))))
    everything = alignment_loss(torch.tensor([EAST]), patches, torch.tensor([0]), temperature=0.5)
    torch.testing.assert_close(everything, torch.tensor(math.log(2 + math.exp(-2) + math.exp(-4))))


def test_overlapping_tokens_get_no_gradient():
    patches = torch.rand(1, 4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    overlap = torch.tensor([[True, False, True, False]])
    alignment_loss(torch.tensor([[1.0, 2.0, 3.0]]), patches, torch.tensor([2]), overlap).backward()
    assert patches.grad.isfinite().all()
    assert patches.grad[0].abs().sum(-1).gt(0).tolist() == [False, True, True, True]


def test_positive_is_kept_whatever_the_overlap_says():
    args = torch.tensor([EAST]), torch.tensor([[EAST, NORTH]]), torch.tensor([0])
    nothing = torch.zeros(1, 2, dtype=torch.bool)
    torch.testing.assert_close(alignment_loss(*args, nothing), alignment_loss(*args, None))


def test_without_negatives_the_loss_is_zero():
    overlap = torch.ones(1, 2, dtype=torch.bool)
    assert alignment_loss(torch.tensor([NORTH]), torch.tensor([[EAST, NORTH]]), torch.tensor([0]), overlap).item() == 0


def test_default_temperature_is_a_tenth():
    loss = alignment_loss(torch.tensor([EAST]), torch.tensor([[WEST, NORTH]]), torch.tensor([0]))
    torch.testing.assert_close(loss, torch.tensor(10 + math.log(1 + math.exp(-10))))  # -log(e^-10 / (e^-10 + e^0))


def test_children_meet_their_own_parent():
    # parent 0 has EAST in front, parent 1 NORTH; children 0 and 1 belong to parent 0, 2 and 3 to parent 1
    patches = torch.tensor([[EAST, NORTH], [NORTH, EAST]])
    context = torch.tensor([EAST, EAST, NORTH, NORTH])
    perfect = math.log(1 + math.exp(-10))
    loss = alignment_loss(context, patches, torch.tensor([0, 0, 0, 0]))
    torch.testing.assert_close(loss, torch.tensor(perfect))
    # one child of four wrong, 10 worse: mean over children
    loss = alignment_loss(context, patches, torch.tensor([0, 0, 1, 0]))
    torch.testing.assert_close(loss, torch.tensor(perfect + 10 / 4))


def test_byol_by_hand():
    patches = torch.tensor([[EAST, NORTH, WEST]])
    context = 3 * torch.tensor([EAST, EAST, EAST])
    # 2 - 2 cos: 0, 2, 4
    for token, value in enumerate((0.0, 2.0, 4.0)):
        assert alignment_loss(context[:1], patches, torch.tensor([token]), kind="byol").item() == value
    assert alignment_loss(context, patches, torch.tensor([0, 1, 2]), kind="byol").item() == 2.0


def test_byol_has_no_negatives():
    patches = torch.rand(1, 4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    alignment_loss(torch.tensor([[1.0, 2.0, 3.0]]), patches, torch.tensor([2]), kind="byol").backward()
    assert patches.grad[0].abs().sum(-1).gt(0).tolist() == [False, False, True, False]


def test_alignment_errors():
    with pytest.raises(ValueError, match="kind must be 'infonce' or 'byol', got 'simsiam'"):
        alignment_loss(torch.zeros(1, 2), torch.zeros(1, 3, 2), torch.tensor([0]), kind="simsiam")
    with pytest.raises(ValueError, match="multiple of parents, got children=3, parents=2"):
        alignment_loss(torch.zeros(3, 2), torch.zeros(2, 3, 2), torch.tensor([0, 0, 0]))


def test_alignment_is_float32_under_autocast():
    generator = torch.Generator().manual_seed(0)
    context, patches = torch.randn(8, 64, generator=generator), torch.randn(2, 27, 64, generator=generator)
    exact = alignment_loss(context, patches, torch.arange(8))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(alignment_loss(context, patches, torch.arange(8)), exact, rtol=1e-6, atol=0)


# --- what the alignment teaches ---------------------------------------------------------------------------------------


def image_gradients(stop_gradient, alignment_weights):
    """Largest gradient at the voxels of every level, from the alignment alone."""
    torch.manual_seed(0)
    net = MiM(1, (16, 16, 16), "nano", num_levels=3, projection_dim=8, stop_gradient=stop_gradient)
    images = tuple(torch.rand(volumes, 1, 16, 16, 16, requires_grad=True) for volumes in (1, 2, 4))
    masked = tuple(torch.arange(8).expand(volumes, 8) >= 3 for volumes in (1, 2, 4))
    tokens = (torch.tensor([3, 4]), torch.tensor([3, 4, 5, 6]))
    overlap = tuple(torch.nn.functional.one_hot(token, 8).bool() for token in tokens)
    weights = tuple(torch.full((volumes,), 1 / volumes) for volumes in (2, 4))
    loss = MiMLoss(8, (0.0, 0.0, 0.0), alignment_weights)
    loss(net(images, masked), LevelBatch(images, masked, tokens, overlap, weights))["loss"].backward()
    return [image.grad.abs().max().item() > 0 for image in images]


@pytest.mark.parametrize(
    ("stop_gradient", "weights", "taught"),
    [
        (True, (1.0, 0.0), [False, True, False]),
        (True, (0.0, 1.0), [False, False, True]),
        (True, (1.0, 1.0), [False, True, True]),
        (False, (1.0, 0.0), [True, True, False]),
        (False, (0.0, 1.0), [False, True, True]),
    ],
)
def test_alignment_teaches_the_child_and_the_parent_only_without_stop_gradient(stop_gradient, weights, taught):
    assert image_gradients(stop_gradient, weights) == taught
