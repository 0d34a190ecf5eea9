"""Computing only visible tokens equals computing the whole grid: same tokens and gradients, no masked voxels."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mim_components.networks import PRESETS, HybridEncoder, MiM
from mim_components.networks.depthwise import depthwise
from mim_components.networks.hybrid import conv_blocks, cut_blocks, neighbour_rows
from mim_components.tokens import upsample_mask, visible_and_masked_ids

SIZES = {"nano": (32, 16, 40), "tiny": (48, 32, 32), "small": (48, 32, 32), "base": (32, 32, 48)}  # no cubes
RATIOS = (0.25, 0.6, 0.9)


def random_masks(batch, tokens, ratio, seed=0):
    """Masks `(batch, tokens)` that hide equally many tokens in every row, but different ones."""
    generator = torch.Generator().manual_seed(seed)
    visible = max(int(tokens * (1 - ratio) + 1e-9), 1)
    masked = torch.stack([torch.randperm(tokens, generator=generator) >= visible for _ in range(batch)])
    assert len({row.numpy().tobytes() for row in masked}) == batch, "rows must have different masks"
    return masked


def case(preset, ratio, batch=2, in_channels=1, dtype=torch.float32):
    """Both forms of an encoder with the same random weights, an image, and masks."""
    torch.manual_seed(0)
    sparse = HybridEncoder(in_channels, preset).to(dtype)
    for parameter in sparse.parameters():  # biases and norms other than 0 and 1
        nn.init.normal_(parameter, std=0.05 if parameter.dim() > 1 else 0.3)
    dense = copy.deepcopy(sparse)
    dense.sparse = False
    image = torch.rand(batch, in_channels, *SIZES[preset], dtype=dtype)
    tokens = image[0, 0].numel() // PRESETS[preset].patch_size ** 3
    return sparse, dense, image, random_masks(batch, tokens, ratio)


def difference(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def gradients(network, image, masked):
    """Tokens, and gradients of the image and all parameters for a sum in which every number has a different weight."""
    image = image.clone().requires_grad_()
    tokens = network(image, masked=masked)
    weights = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(tokens)
    (tokens * weights).sum().backward()
    named = {name: parameter.grad for name, parameter in network.named_parameters()}
    return {"tokens": tokens.detach(), "image": image.grad, **named}


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("preset", PRESETS)
def test_same_tokens(preset, ratio):
    sparse, dense, image, masked = case(preset, ratio)
    with torch.no_grad():
        assert difference(sparse(image, masked=masked), dense(image, masked=masked)) < 1e-5


@pytest.mark.parametrize(
    ("preset", "ratio"),
    [
        *itertools.product(("nano",), RATIOS),
        ("tiny", 0.6),
        *[pytest.param(*each, marks=pytest.mark.slow) for each in itertools.product(("tiny", "small"), RATIOS)],
        pytest.param("base", 0.6, marks=pytest.mark.slow),
    ],
)
def test_same_tokens_and_gradients_in_double_precision(preset, ratio):
    sparse, dense, image, masked = case(preset, ratio, dtype=torch.float64)
    got, expected = gradients(sparse, image, masked), gradients(dense, image, masked)
    assert got.keys() == expected.keys() and len(got) == 2 + len(list(sparse.parameters()))
    assert {name: d for name in got if not (d := difference(got[name], expected[name])) < 1e-11} == {}
    assert difference(got["tokens"], expected["tokens"]) < 1e-12


@pytest.mark.parametrize("preset", ["nano", "tiny", "small", pytest.param("base", marks=pytest.mark.slow)])
def test_same_gradients_in_single_precision(preset):
    sparse, dense, image, masked = case(preset, 0.6)
    got, expected = gradients(sparse, image, masked), gradients(dense, image, masked)
    assert {name: d for name in got if not (d := difference(got[name], expected[name])) < 1e-4} == {}


def test_several_channels():
    sparse, dense, image, masked = case("nano", 0.6, in_channels=3, dtype=torch.float64)
    got, expected = gradients(sparse, image, masked), gradients(dense, image, masked)
    assert {name: d for name in got if not (d := difference(got[name], expected[name])) < 1e-11} == {}


@pytest.mark.parametrize("ratio", [0.0, 0.975])
def test_everything_and_one_token_visible(ratio):
    sparse, dense, image, _ = case("nano", 0.6)
    masked = torch.arange(40).expand(2, -1) >= round(40 * (1 - ratio))
    with torch.no_grad():
        assert difference(sparse(image, masked=masked), dense(image, masked=masked)) < 1e-5


@pytest.mark.parametrize("value", [1e6, float("nan"), float("inf")])
def test_nothing_of_what_is_masked_arrives(value):
    sparse, _, image, masked = case("tiny", 0.6)
    hidden = upsample_mask(masked, (3, 2, 2), 16).unsqueeze(1)
    before = gradients(sparse, image, masked)
    sparse.zero_grad()
    after = gradients(sparse, image.masked_fill(hidden, value), masked)
    assert all(torch.equal(before[name], after[name]) for name in before)  # bit for bit
    assert (before["image"][hidden] == 0).all() and (before["image"][~hidden] != 0).all()


def test_bfloat16_autocast():
    sparse, dense, image, masked = case("nano", 0.6)
    exact = gradients(sparse, image, masked)
    sparse.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        tokens = sparse(image, masked=masked)
        reference = dense(image, masked=masked)
    tokens.float().square().sum().backward()
    assert (tokens - exact["tokens"]).abs().mean() < 0.05 * exact["tokens"].abs().mean()
    assert (tokens - reference).abs().mean() < 0.05 * reference.abs().mean()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in sparse.parameters())


def test_the_state_dict_is_the_same():
    torch.manual_seed(0)
    sparse = HybridEncoder(1, "nano")
    torch.manual_seed(0)
    dense = HybridEncoder(1, "nano", sparse=False)
    assert list(sparse.state_dict()) == list(dense.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(sparse.parameters(), dense.parameters(), strict=True))


def test_mim_passes_the_form_on():
    assert MiM(1, (32, 32, 32), "nano").encoder.sparse
    assert not MiM(1, (32, 32, 32), "nano", sparse=False).encoder.sparse


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # PyTorch's compiler to itself
def test_compiled_without_a_break():
    sparse, _, image, masked = case("nano", 0.6)
    compiled = torch.compile(lambda x, m: sparse(x, masked=m, num_visible=16), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(image, masked), sparse(image, masked=masked))


# --- the parts --------------------------------------------------------------------------------------------------------


def test_blocks_by_hand():
    # voxel (h, w, d) of a 4x4x4 image holds 100h + 10w + d; token 6 of the 2x2x2 grid is (1, 1, 0)
    h, w, d = (each.float() for each in torch.meshgrid(*[torch.arange(4)] * 3, indexing="ij"))
    blocks = cut_blocks((100 * h + 10 * w + d)[None, None], torch.tensor([[6]]), 2)
    assert blocks.shape == (1, 1, 2, 2, 2, 1)
    assert blocks.flatten().tolist() == [220, 221, 230, 231, 320, 321, 330, 331]


def test_rows_by_hand():
    # tokens of edge 2 in a row of three, the one in the middle masked; margin 1 along the last axis: the row through
    # the middle of block 0 is [outside, row 0, row 1, masked]; block 1 starts at row 8
    rows = neighbour_rows(torch.tensor([[0, 2]]), (1, 1, 3), edge=2, margin=1).view(2, 4, 4, 4)
    assert rows[:, 1, 1].tolist() == [[16, 0, 1, 16], [16, 8, 9, 16]]
    assert rows[0, 1:3, 1:3, 1:3].flatten().tolist() == list(range(8))
    assert (rows[:, 0] == 16).all() and (rows[:, :, 3] == 16).all()
    # margin 3 reaches over a whole token: from block 0 past the masked one to the first voxel of block 1, row 8
    far = neighbour_rows(torch.tensor([[0, 2]]), (1, 1, 3), edge=2, margin=3).view(2, 8, 8, 8)
    assert far[0, 3, 3].tolist() == [16, 16, 16, 0, 1, 16, 16, 8]


@pytest.mark.parametrize("edge", [1, 2, 4])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_depthwise_is_the_convolution_of_the_volume_with_zeros(edge, kernel_size):
    torch.manual_seed(0)
    grid, channels = (3, 2, 4), 3
    ids, _ = visible_and_masked_ids(random_masks(2, 24, 0.5))
    conv = nn.Conv3d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels).double()
    volume = torch.rand(2, channels, *(edge * side for side in grid), dtype=torch.float64, requires_grad=True)
    hidden = torch.ones(2, 24, dtype=torch.bool).scatter(1, ids, False)
    expected = cut_blocks(conv(volume.masked_fill(upsample_mask(hidden, grid, edge).unsqueeze(1), 0)), ids, edge)
    rows = neighbour_rows(ids, grid, edge, kernel_size // 2)
    got = depthwise(conv, cut_blocks(volume, ids, edge), rows)
    torch.testing.assert_close(got, expected)
    weights = torch.rand_like(got)
    wanted = [volume, *conv.parameters()]
    for a, b in zip(*(torch.autograd.grad((y * weights).sum(), wanted) for y in (got, expected)), strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_in_many_chunks_and_of_one_input_alone():
    torch.manual_seed(0)
    conv = nn.Conv3d(2, 2, 3, padding=1, groups=2).double()
    x = torch.rand(1, 20, 2, 2, 2, 2, dtype=torch.float64, requires_grad=True)  # 20 blocks: 8 + 8 + 4
    rows = neighbour_rows(torch.arange(20).unsqueeze(0), (4, 5, 1), 2, 1)

    def operation(x, weight, bias):
        return depthwise(_Weights(weight, bias), x, rows)

    assert torch.autograd.gradcheck(operation, (x, conv.weight, conv.bias), fast_mode=True)
    for wanted in (x, conv.weight, conv.bias):
        inputs = [each if each is wanted else each.detach() for each in (x, conv.weight, conv.bias)]
        assert torch.autograd.grad(operation(*inputs).sum(), wanted)[0].shape == wanted.shape


class _Weights:
    """The attributes of a convolution that the operation reads."""

    def __init__(self, weight, bias):
        self.weight, self.bias = weight, bias


@pytest.mark.parametrize("f", [2, 4])
def test_strided_convolution_of_blocks(f):
    torch.manual_seed(0)
    conv = nn.Conv3d(3, 5, kernel_size=f, stride=f).double()
    x = torch.rand(2, 3, 4, 4, 4, 3, dtype=torch.float64)
    expected = F.conv3d(x.flatten(0, 1).permute(0, 4, 1, 2, 3), conv.weight, conv.bias, stride=f)
    torch.testing.assert_close(conv_blocks(conv, x).flatten(0, 1), expected.permute(0, 2, 3, 4, 1))


def test_the_weights_of_stage_outputs_lie_as_they_are_used():
    net = HybridEncoder(1, "nano")
    image, masked = torch.rand(1, 1, 16, 16, 16), torch.arange(8).unsqueeze(0) >= 3
    net(image, masked=masked).sum().backward()
    for conv in net.stage_outputs:
        for weight in (conv.weight, conv.weight.grad):
            assert weight.is_contiguous(memory_format=torch.channels_last_3d)
