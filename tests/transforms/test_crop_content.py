"""Children with content, and random padding: what is drawn, from which tokens, and independent of rounding."""

import itertools
import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from mim_components.transforms import crop as transforms
from mim_components.transforms.crop import MultiLevelCropMask, MultiLevelCropMaskd

WINDOW = (-1000, 1000)
LEVELS = [(64, 64, 32), (24, 24, 24), (8, 8, 8)]
SIZES = {"level_sizes": LEVELS, "input_size": (32, 32, 32), "patch_size": 8, "num_children": 3, "window": WINDOW}
GRID, TOKENS, VISIBLE = (4, 4, 4), 64, 25  # floor(64 * 0.4)


def body(seed=0, size=(70, 66, 40), dtype=np.int16, edge=(30, 30, 20)):
    """Air with noise in one corner: few tokens have content."""
    image = np.full((1, *size), -1000, dtype=dtype)
    image[(slice(None), *map(slice, edge))] = np.random.RandomState(seed).randint(-200, 200, (1, *edge))
    return image


def crop_of(**changes):
    return MultiLevelCropMask(**{**SIZES, **changes})


def content_by_hand(volume, bound):
    """Which tokens of a resized volume `(C, H, W, D)` span more than `bound`, computed one by one."""
    found = []
    for h, w, d in itertools.product(*(range(n) for n in GRID)):
        token = volume[:, 8 * h : 8 * h + 8, 8 * w : 8 * w + 8, 8 * d : 8 * d + 8].flatten(1)
        found.append(bool(((token.amax(1) - token.amin(1)) * 2000 > bound).any()))
    return np.array(found)


def documented_draw(seed, source, content):
    """Random numbers as documented in docs/method.md, 2, and the tokens drawn with `content(level, parent)`."""
    random = np.random.RandomState(seed)
    start = [random.randint(0, have - want + 1) for have, want in zip((70, 66, 40), LEVELS[0], strict=True)]
    tokens, orders = [], []
    for level in range(3):
        orders.append([random.permutation(TOKENS) for _ in range(3**level)])
    for level in range(2):
        for parent, order in enumerate(orders[level]):
            candidates = order[VISIBLE:] if source == "masked" else order[:VISIBLE]
            with_content = content(level, parent)
            ordered = [t for t in candidates if with_content[t]] + [t for t in candidates if not with_content[t]]
            tokens.append((level + 2, ordered[:3]))
    return start, orders, tokens


# --- which children ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["masked", "visible"])
@pytest.mark.parametrize("child_content", ["prefer", "any"])
def test_draws_are_as_documented(source, child_content):
    mixed = 0
    for seed, edge in itertools.product(range(4), [(30, 30, 20), (14, 14, 7)]):
        crop = crop_of(child_source=source, child_content=child_content).set_random_state(seed)
        out = crop(body(edge=edge))
        filled = [[content_by_hand(v, 50) for v in out[f"image_level{level}"]] for level in (1, 2)]

        def content(level, parent, filled=filled):
            return filled[level][parent] if child_content == "prefer" else np.ones(TOKENS, dtype=bool)

        start, orders, tokens = documented_draw(seed, source, content)
        assert out["start_level1"][0].tolist() == start
        for level in (1, 2, 3):
            masked = np.ones((3 ** (level - 1), TOKENS), dtype=bool)
            for row, order in zip(masked, orders[level - 1], strict=True):
                row[order[:VISIBLE]] = False
            assert np.array_equal(out[f"masked_level{level}"].numpy(), masked)
        for level in (2, 3):
            expected = [t for at, chosen in tokens if at == level for t in chosen]
            assert out[f"parent_token_level{level}"].tolist() == expected
            flags = [filled[level - 2][i // 3][t] for i, t in enumerate(expected)]
            assert out[f"content_level{level}"].tolist() == flags
            mixed += 0 < sum(flags) < len(flags)
    assert mixed > 0, "the image must be one that has both kinds"


def test_prefer_takes_all_that_have_content_before_any_other():
    for seed in range(10):
        out = crop_of().set_random_state(seed)(body())
        for level in (2, 3):
            parents = out[f"image_level{level - 1}"]
            flags = out[f"content_level{level}"].view(-1, 3)
            for volume, masked, row in zip(parents, out[f"masked_level{level - 1}"], flags, strict=True):
                available = int((content_by_hand(volume, 50) & masked.numpy()).sum())
                assert int(row.sum()) == min(available, 3)
                assert row.tolist() == sorted(row.tolist(), reverse=True)


def test_every_token_with_content_is_drawn_equally_often():
    image = np.full((1, 32, 32, 32), -1000, dtype=np.int16)
    image[:, 4, 4, 4] = 0  # tokens 0, 1, 4 and 5 of 4 x 4 x 4 get one bright voxel each, of 8^3
    image[:, 4, 4, 12] = image[:, 4, 12, 4] = image[:, 4, 12, 12] = 0
    crop = crop_of(level_sizes=[(32, 32, 32), (8, 8, 8)], num_children=1).set_random_state(0)
    counts = np.zeros(TOKENS, dtype=int)
    for _ in range(1000):
        out = crop(image)
        counts[out["parent_token_level2"]] += 1
        assert bool(out["content_level2"]) == bool(out["masked_level1"][0, [0, 1, 4, 5]].any())
    # at least one of the four is masked with p = 1 - (25 24 23 22) / (64 63 62 61) = 0.980; each then with p = 0.245:
    # standard deviation sqrt(1000 0.245 0.755) = 13.6
    assert np.abs(counts[[0, 1, 4, 5]] - 245).max() < 4.5 * 13.6
    assert counts.sum() == 1000


def test_any_channel_gives_content():
    air = np.full((1, 70, 66, 40), -1000, dtype=np.int16)
    two = crop_of().set_random_state(1)(np.concatenate([air, body()]))
    one = crop_of().set_random_state(1)(body())
    for name in ("parent_token_level2", "parent_token_level3", "content_level2", "content_level3", "start_level3"):
        assert torch.equal(two[name], one[name])
    assert one["content_level2"].any() and not crop_of()(air)["content_level2"].any()


def test_repeating_keeps_boxes_and_content():
    crop = crop_of().set_random_state(2)
    first = crop(body())
    other = crop(np.full((1, 70, 66, 40), -1000, dtype=np.int16), randomize=False)
    for name in first:
        assert name.startswith("image") or torch.equal(first[name], other[name])


# --- rounding and devices ---------------------------------------------------------------------------------------------


def steps(native):
    """Integers whose 4 x 4 x 4 tokens span 49, 50, 51 HU once they are averaged to 8^3 voxels, or 50 and a step."""
    image = torch.zeros(1, *native, dtype=torch.int16)
    edge = [n // 4 for n in native]
    for number, place in enumerate(itertools.product(*(range(n) for n in GRID))):
        first = [p * n for p, n in zip(place, edge, strict=True)]
        image[(0, *(slice(f, f + n) for f, n in zip(first, edge, strict=True)))] = 7 * number - 300
        image[(0, *(slice(f, f + n // 8) for f, n in zip(first, edge, strict=True)))] += (49, 50, 51)[number % 3]
        if number % 6 == 4:  # one of the q voxels of a mean is one brighter: 50 + 1 / q
            image[(0, *first)] += 1
    return image


STEPS_WITH_CONTENT = [number % 3 == 2 or number % 6 == 4 for number in range(TOKENS)]
NATIVE = [
    (64, 64, 32),
    (32, 32, 32),
    (64, 64, 64),
    (128, 128, 64),
    (128, 128, 128),
]  # means of 4, 1, 8, 32, 64 integers


def resized(image, native):
    crop = crop_of(level_sizes=[native, (8, 8, 8)])
    return crop, crop._volumes(image, np.zeros((1, 3), dtype=np.int64), native)


@pytest.mark.parametrize("native", NATIVE)
def test_more_than_the_range_is_exact_for_integers(native):
    crop, volumes = resized(steps(native), native)
    assert crop._token_content(volumes)[0].tolist() == STEPS_WITH_CONTENT


def perturbed(volumes, seed, size=1e-6):
    noise = torch.rand(volumes.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return volumes * (1 + size * noise.sign())


@pytest.mark.parametrize("native", NATIVE)
def test_rounding_of_a_device_changes_no_decision(native):
    random = np.random.RandomState(0)
    # 8^3 normal numbers span about 6.1 deviations, and means of q have the deviation of one through the root of q
    deviation = 50 / 6.1 * math.sqrt(math.prod(native) / 32**3)
    noise = random.normal(0, deviation, (3, *native)).round().astype(np.int16)
    for image in (steps(native), *torch.from_numpy(noise)[:, None]):
        crop, volumes = resized(image, native)
        decided = crop._token_content(volumes)
        assert 10 < decided.sum() < 54, "the image must be one where it is close"
        for seed in range(5):
            assert np.array_equal(crop._token_content(perturbed(volumes, seed)), decided)


def test_control_without_the_margin_rounding_decides(monkeypatch):
    monkeypatch.setattr(transforms, "CONTENT_MARGIN", 0.0)
    crop, volumes = resized(steps(LEVELS[0]), LEVELS[0])
    decided = crop._token_content(volumes)
    assert any(not np.array_equal(crop._token_content(perturbed(volumes, seed)), decided) for seed in range(5))


@pytest.mark.parametrize(
    "make",
    [
        lambda: body(dtype=np.float32),
        lambda: body(dtype=np.int32),
        lambda: torch.from_numpy(body()).half(),
        lambda: torch.from_numpy(body()).double(),
        lambda: MetaTensor(body(), affine=torch.diag(torch.tensor([2.0, 2.0, 3.0, 1.0]))),
        lambda: np.asfortranarray(body()),
    ],
    ids=["float32", "int32", "half", "float64", "meta", "fortran"],
)
def test_same_boxes_for_every_type(make):
    for seed in range(3):
        reference, out = (crop_of().set_random_state(seed)(image) for image in (body(), make()))
        for name in reference:
            assert name.startswith("image") or torch.equal(reference[name], out[name]), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_same_boxes_on_cuda():
    for seed in range(3):
        reference = crop_of().set_random_state(seed)(torch.from_numpy(body()))
        out = crop_of().set_random_state(seed)(torch.from_numpy(body()).cuda())
        for name in reference:
            assert name.startswith("image") or torch.equal(reference[name], out[name].cpu()), name


# --- range ------------------------------------------------------------------------------------------------------------


def test_the_range_is_in_the_units_of_the_image():
    hu = crop_of(content_range=50).set_random_state(0)(body())
    scaled = (torch.from_numpy(body()).float() + 1000) / 2000
    unit = crop_of(window=None, content_range=50 / 2000).set_random_state(0)(scaled)
    default = crop_of(window=None).set_random_state(0)(scaled)
    for name in hu:
        if not name.startswith("image"):
            assert torch.equal(hu[name], unit[name]) and torch.equal(hu[name], default[name]), name
    assert not crop_of(content_range=5000)(body())["content_level2"].any()


def test_dictionary_version_takes_content_from_its_first_key():
    crop = MultiLevelCropMaskd(["ct", "other"], **SIZES).set_random_state(0)
    out = crop({"ct": body(), "other": np.zeros_like(body())})
    array = crop_of().set_random_state(0)(body())
    for level in (2, 3):
        assert torch.equal(out[f"content_level{level}"], array[f"content_level{level}"])
        assert torch.equal(out[f"start_level{level}"], array[f"start_level{level}"])


# --- padding ----------------------------------------------------------------------------------------------------------


def test_padding_is_split_uniformly():
    levels, size = [(8, 8, 192)], (8, 8, 140)
    crop = Compose([MultiLevelCropMaskd("image", levels, (8, 8, 192), 4, window=WINDOW)])
    image = np.zeros((1, *size), dtype=np.int16)
    starts = []
    for draw in range(1500):
        out = crop.set_random_state(draw)({"image": image})  # keyed, as all draws
        starts.append(out["start_level1"][0].tolist())
    assert {tuple(start[:2]) for start in starts} == {(0, 0)}
    counts = np.bincount(-np.array(starts)[:, 2], minlength=53)
    assert len(counts) == 53 and (counts > 0).sum() >= 40  # 0 ... 52 voxels before the image
    # 52 degrees of freedom: chi-square is below 89.3 with a probability of 99.9 %
    assert ((counts - 1500 / 53) ** 2 / (1500 / 53)).sum() < 89.3
    again = crop.set_random_state(7)({"image": image})["start_level1"][0].tolist()
    assert again == starts[7]


def test_padding_lies_where_the_start_says():
    image = np.full((1, 8, 8, 5), 1000, dtype=np.int16)
    crop = MultiLevelCropMask([(8, 8, 12)], (8, 8, 12), 4, window=WINDOW).set_random_state(0)
    seen = set()
    for _ in range(40):
        out = crop(image)
        before = -int(out["start_level1"][0, 2])
        line = out["image_level1"][0, 0, 0, 0].tolist()
        assert line == [0.0] * before + [1.0] * 5 + [0.0] * (7 - before)
        seen.add(before)
    assert seen == set(range(8))
