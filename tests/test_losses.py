"""Losses against numbers worked out by hand, each with its derivation."""

import math

import pytest
import torch

from mim_components.losses import MiMLoss, level_weights, masked_targets, reconstruction_loss
from mim_components.networks import MiMOutput
from mim_components.transforms.levels import LevelBatch, content_weights

EAST, NORTH, WEST = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]

# --- reconstruction ---------------------------------------------------------------------------------------------------


def test_masked_targets_are_the_masked_tokens_voxels():
    image = torch.arange(16.0).view(1, 1, 2, 2, 4)  # tokens (0, 0, 0) and (0, 0, 1) of 2x2x2
    target = masked_targets(image, torch.tensor([[1]]), 2)
    assert target.tolist() == [[[2.0, 3.0, 6.0, 7.0, 10.0, 11.0, 14.0, 15.0]]]


def test_normalized_targets_by_hand():
    # token of 1x1x1 with channels 1, 3, 5, 7: mean 4, variance 5
    image = torch.tensor([1.0, 3.0, 5.0, 7.0]).view(1, 4, 1, 1, 1)
    target = masked_targets(image, torch.tensor([[0]]), 1, normalize=True)
    expected = torch.tensor([[[-3.0, -1.0, 1.0, 3.0]]]) / math.sqrt(5)
    torch.testing.assert_close(target, expected, rtol=1e-5, atol=1e-5)


def test_reconstruction_by_hand():
    target = torch.tensor([[[1.0, 3.0], [0.0, 0.0]], [[2.0, 0.0], [0.0, 4.0]]])
    # means over the tokens' voxels: (1 + 9) / 2, 0, 4 / 2, 16 / 2; over the four tokens: 15 / 4
    assert reconstruction_loss(torch.zeros_like(target), target).item() == 3.75


def test_reconstruction_of_low_precision_is_computed_in_float32():
    prediction = torch.full((1, 1, 4096), 300.0, dtype=torch.float16)  # 300^2 is beyond float16
    loss = reconstruction_loss(prediction, torch.zeros(1, 1, 4096))
    assert loss.dtype == torch.float32 and loss.item() == 90000.0


# --- weights of the levels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "progress", "expected"),
    [
        ("simultaneous", 0.0, [1, 1, 1]),
        ("simultaneous", 0.7, [1, 1, 1]),
        ("coarse_to_fine", 0.0, [2, 1, 0]),
        ("coarse_to_fine", 1 / 3, [1.75, 1, 0.25]),  # (1 + cos 60 degrees) / 2 = 3/4 of the way remains
        ("coarse_to_fine", 0.5, [1.5, 1, 0.5]),
        ("coarse_to_fine", 1.0, [1, 1, 1]),
        ("fine_to_coarse", 0.0, [0, 1, 2]),
        ("fine_to_coarse", 0.5, [0.5, 1, 1.5]),
        ("fine_to_coarse", 1.0, [1, 1, 1]),
        ("coarse_to_fine", -1.0, [2, 1, 0]),
        ("coarse_to_fine", 1.5, [1, 1, 1]),
    ],
)
def test_schedules_by_hand(schedule, progress, expected):
    assert level_weights([1, 1, 1], schedule, progress) == pytest.approx(expected, abs=1e-12)


def test_schedule_multiplies_the_weights():
    assert level_weights([3, 5], "coarse_to_fine", 0.0) == [6, 0]
    assert level_weights([3, 5], "fine_to_coarse", 0.5) == pytest.approx([1.5, 7.5])
    assert level_weights([2, 1, 1, 4], "coarse_to_fine", 0.0) == pytest.approx([4, 4 / 3, 2 / 3, 0])


@pytest.mark.parametrize("schedule", ["simultaneous", "coarse_to_fine", "fine_to_coarse"])
def test_one_level_has_no_schedule(schedule):
    assert level_weights([0.7], schedule, 0.0) == [0.7]


# --- the sum ----------------------------------------------------------------------------------------------------------


def two_levels():
    """One parent and two children of four tokens of one voxel, and the network's output for them."""
    images = (torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 1, 4), torch.full((2, 1, 1, 1, 4), 2.0))
    masked = (
        torch.tensor([[True, False, True, False]]),
        torch.tensor([[True, True, False, False], [False, False, True, True]]),
    )
    overlap = torch.tensor([[True, False, False, False], [False, False, True, True]])
    batch = LevelBatch(images, masked, (torch.tensor([0, 2]),), (overlap,), (torch.tensor([0.5, 0.5]),))
    patches = torch.tensor([[EAST, NORTH, EAST, EAST]])
    prediction = (torch.zeros(1, 2, 1), torch.full((2, 2, 1), 1.0))
    return MiMOutput(prediction, (torch.tensor([EAST, EAST]),), (patches,)), batch


# level 1: (1 + 9) / 2; level 2: (2 - 1)^2
RECONSTRUCTION = (5.0, 1.0)
# temperature 0.5, child 0: tokens 0 (positive), 1, 2, 3: -log(e^2 / (3 e^2 + 1)); child 1: token 3 left out:
# 0, 1, 2 (positive): -log(e^2 / (2 e^2 + 1))
ALIGNMENT = (math.log(3 + math.exp(-2)) + math.log(2 + math.exp(-2))) / 2


def test_total_and_terms_by_hand():
    output, batch = two_levels()
    terms = MiMLoss(1, (1.0, 2.0), (0.1,), temperature=0.5)(output, batch)
    assert list(terms) == ["loss", "reconstruction_level1", "reconstruction_level2", "alignment_level1_2"]
    assert all(term.shape == () and term.dtype == torch.float32 for term in terms.values())
    assert terms["reconstruction_level1"].item() == RECONSTRUCTION[0]
    assert terms["reconstruction_level2"].item() == RECONSTRUCTION[1]
    assert terms["alignment_level1_2"].item() == pytest.approx(ALIGNMENT)
    assert terms["loss"].item() == pytest.approx(5.0 + 2.0 * 1.0 + 0.1 * ALIGNMENT)


@pytest.mark.parametrize(
    ("reconstruction", "alignment", "expected"),
    [((0.0, 1.0), (0.0,), 1.0), ((1.0, 0.0), (0.0,), 5.0), ((0.0, 0.0), (2.0,), 2 * ALIGNMENT)],
)
def test_zero_weight_switches_a_term_off(reconstruction, alignment, expected):
    output, batch = two_levels()
    for tensor in (*output.prediction, *output.context):
        tensor.requires_grad_()
    terms = MiMLoss(1, reconstruction, alignment, temperature=0.5)(output, batch)
    assert terms["loss"].item() == pytest.approx(expected)
    assert terms["reconstruction_level1"].item() == 5.0, "it is still reported"
    terms["loss"].backward()
    switches = zip((*output.prediction, *output.context), (*reconstruction, *alignment), strict=True)
    for tensor, weight in switches:
        assert bool(tensor.grad.any()) == (weight > 0)


def test_schedule_reaches_the_sum():
    output, batch = two_levels()
    loss = MiMLoss(1, (1.0, 1.0), (0.0,), schedule="coarse_to_fine")
    for progress, expected in ((0.0, 2 * 5.0), (0.5, 1.5 * 5.0 + 0.5), (1.0, 5.0 + 1.0)):
        assert loss(output, batch, progress)["loss"].item() == pytest.approx(expected)
    assert loss(output, batch)["reconstruction_level1"].item() == 5.0, "terms are reported without weights"


def test_schedule_leaves_the_alignment():
    output, batch = two_levels()
    loss = MiMLoss(1, (0.0, 0.0), (1.0,), temperature=0.5, schedule="coarse_to_fine")
    assert loss(output, batch, 0.0)["loss"].item() == pytest.approx(ALIGNMENT)


def test_normalized_target_reaches_the_sum():
    # one voxel a token: standardised to 0, so a prediction of 0 is perfect
    output, batch = two_levels()
    terms = MiMLoss(1, (1.0, 1.0), (0.0,), normalize_target=True)(output, batch)
    assert terms["reconstruction_level1"].item() == 0.0 and terms["reconstruction_level2"].item() == 1.0


def test_byol_reaches_the_sum():
    output, batch = two_levels()
    batch = batch._replace(parent_token=(torch.tensor([0, 1]),))
    assert MiMLoss(1, (1.0, 1.0), (1.0,), kind="byol")(output, batch)["alignment_level1_2"].item() == 1.0  # (0 + 2) / 2


def with_content(*flags):
    """The batch of `two_levels` with the content of its children, and the network's output."""
    output, batch = two_levels()
    return output, batch._replace(content_weight=(content_weights(torch.tensor([flags])).flatten(),))


CHILDREN = math.log(3 + math.exp(-2)), math.log(2 + math.exp(-2))  # the two of ALIGNMENT


@pytest.mark.parametrize(
    ("flags", "prefer"), [((True, True), sum(CHILDREN) / 2), ((True, False), CHILDREN[0]), ((False, True), CHILDREN[1])]
)
def test_children_without_content_are_not_aligned(flags, prefer):
    output, batch = with_content(*flags)
    for child_content, expected in (("prefer", prefer), ("any", ALIGNMENT)):
        loss = MiMLoss(1, (0.0, 0.0), (1.0,), temperature=0.5, child_content=child_content)
        assert loss(output, batch)["alignment_level1_2"].item() == pytest.approx(expected)
        assert loss(output, batch)["reconstruction_level2"].item() == RECONSTRUCTION[1], "they are reconstructed"


def test_without_any_content_the_alignment_is_zero_and_in_the_graph():
    output, batch = with_content(False, False)
    for tensor in (*output.context, *output.patches):
        tensor.requires_grad_()
    term = MiMLoss(1, (1.0, 1.0), (1.0,))(output, batch)["alignment_level1_2"]
    term.backward()
    assert term.item() == 0
    assert all(t.grad is not None and not t.grad.any() for t in (*output.context, *output.patches))


def test_alignment_is_a_mean_over_samples_of_means_over_their_children_with_content():
    # a sample with one, one with two, one without: (a + (b + c) / 2 + 0) / 3; in two batches as in one
    weights = content_weights(torch.tensor([[True, False], [True, True], [False, False]]))
    assert weights.flatten().tolist() == pytest.approx([1 / 3, 0, 1 / 6, 1 / 6, 0, 0])
    first, rest = content_weights(torch.tensor([[True, False]])), content_weights(torch.tensor([[True, True]]))
    both = content_weights(torch.tensor([[True, False], [True, True]]))
    assert torch.equal(torch.cat([first, rest]) / 2, both)


def test_one_level():
    output, batch = two_levels()
    output = MiMOutput(output.prediction[:1], (), ())
    terms = MiMLoss(1, (1.0,), ())(output, LevelBatch(batch.images[:1], batch.masked[:1], (), (), ()))
    assert {name: term.item() for name, term in terms.items()} == {"loss": 5.0, "reconstruction_level1": 5.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"alignment_weights": (0.1,), "reconstruction_weights": (1.0,) * 3},
            "one fewer than reconstruction_weights, got 1 and 3",
        ),
        ({"alpha": 0.0, "reconstruction_weights": (0, 0)}, r"not all 0, got \[0, 0, 0.0\]"),
        (
            {"reconstruction_weights": (1.0, -1.0, 1.0)},
            r"not be negative and not all 0, got \[1.0, -1.0, 1.0, 0.1, 0.1\]",
        ),
        ({"alignment_weights": (0.1, -0.1)}, "not be negative"),
        ({"reconstruction_weights": (0, 0, 0), "alignment_weights": (0, 0)}, "not all 0"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"child_content": "none"}, r"child_content must be one of \('prefer', 'any'\), got 'none'"),
        ({"kind": "simclr"}, "kind must be 'infonce' or 'byol', got 'simclr'"),
        ({"schedule": "linear"}, "schedule must be one of simultaneous, coarse_to_fine, fine_to_coarse, got 'linear'"),
    ],
)
def test_configuration_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        MiMLoss(**arguments)


def test_weights_that_are_not_given():
    assert MiMLoss(alpha=0.5).weights(3) == ([1.0, 1.0, 1.0], [0.5, 0.5])
    assert MiMLoss(alignment_weights=(0.0, 0.2)).weights(3) == ([1.0, 1.0, 1.0], [0.0, 0.2])
    assert MiMLoss(reconstruction_weights=(2.0, 0.0)).weights(2) == ([2.0, 0.0], [0.1])
    assert MiMLoss().weights(1) == ([1.0], [])


@pytest.mark.parametrize("weights", [((1.0,), ()), ((1.0, 1.0, 1.0), (0.1, 0.1)), (None, ()), ((1.0,), None)])
def test_loss_and_network_of_different_levels(weights):
    output, batch = two_levels()
    with pytest.raises(ValueError, match="levels"):
        MiMLoss(1, *weights)(output, batch)
