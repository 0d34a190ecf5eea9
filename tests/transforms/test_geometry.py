"""Geometry of the nested crops: counts, containment, overlap, and distribution of the draws.

Everything here is in integers; `transforms/test_crop_coordinates.py` verifies on intensities that crops are cut there.
"""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from mim_components.tokens import num_visible_tokens, token_numbers
from mim_components.transforms.geometry import draw_geometry, place_children

PAPER = {"image": (400, 390, 200), "levels": ((384, 384, 192), (96, 96, 96), (16, 16, 16)), "grid": (6, 6, 6)}
CASES = {
    "paper": PAPER,
    "exact fit": {"image": (32, 32, 32), "levels": ((32, 32, 32), (16, 16, 16)), "grid": (4, 4, 4)},
    "odd sizes": {"image": (61, 50, 47), "levels": ((53, 47, 41), (23, 17, 19), (7, 5, 3)), "grid": (4, 5, 3)},
    "non-cubic grid": {"image": (70, 40, 30), "levels": ((64, 32, 16), (16, 16, 16), (4, 4, 4)), "grid": (6, 2, 3)},
    "child smaller than token": {"image": (60, 60, 60), "levels": ((60, 60, 60), (7, 7, 7)), "grid": (4, 4, 4)},
    "child as large as parent": {"image": (20, 20, 20), "levels": ((16, 16, 16), (16, 16, 16)), "grid": (4, 4, 4)},
    "tokens thinner than a voxel": {"image": (9, 9, 9), "levels": ((9, 9, 9), (4, 4, 4), (1, 2, 3)), "grid": (6, 6, 6)},
    "one level": {"image": (20, 21, 22), "levels": ((16, 16, 16),), "grid": (2, 2, 2)},
    "four levels": {
        "image": (90, 90, 90),
        "levels": ((80, 80, 80), (40, 40, 40), (20, 20, 20), (10, 10, 10)),
        "grid": (4, 4, 4),
    },
}


def draw(case, seed=0, mask_ratio=0.6, children=3, source="masked"):
    visible = num_visible_tokens(int(np.prod(case["grid"])), mask_ratio)
    random = np.random.RandomState(seed)
    return draw_geometry(random, case["image"], case["levels"], case["grid"], visible, children, source)


def overlap_by_subvoxels(offset, child, parent, grid):
    """Tokens that a box overlaps, bool (N,), counted on a grid so fine that all edges fall on it.

    Along an axis of S voxels and g tokens, a voxel is cut into g parts: token n has parts n*S ... (n+1)*S - 1 and the
    box has parts offset*g ... (offset + child)*g - 1. They overlap where they share a part.
    """
    axes = []
    for o, c, s, g in zip(offset, child, parent, grid, strict=True):
        owner = np.arange(s * g) // s  # token of every part
        axes.append(np.isin(np.arange(g), owner[o * g : (o + c) * g]))
    h, w, d = axes
    return (h[:, None, None] & w[None, :, None] & d[None, None, :]).ravel()


@pytest.mark.parametrize("tokens", [8, 10, 27, 64, 216, 343, 588, 1728])
def test_visible_is_the_exact_floor(tokens):
    for hundredths in range(25, 91):  # in decimal, the way a user writes the ratio
        expected = tokens * (100 - hundredths) // 100
        assert num_visible_tokens(tokens, hundredths / 100) == expected, hundredths


def test_visible_by_hand():
    assert num_visible_tokens(216, 0.6) == 86  # 216 * 0.4 = 86.4
    assert 216 - num_visible_tokens(216, 0.6) == 130
    assert num_visible_tokens(10, 0.9) == 1  # 10 * (1 - 0.9) is 0.9999999999999998 in floats
    assert num_visible_tokens(64, 0.75) == 16


def test_token_numbers_are_row_major():
    numbers = token_numbers((2, 2, 4))
    assert numbers.shape == (16, 3)
    assert numbers[[0, 1, 4, 8, 15]].tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 1, 3]]


def test_box_of_level_2_is_centred_and_shifted_into_the_parent():
    # the paper's levels 1 -> 2: a token is 64x64x32, its centre at (64h + 32, 64w + 32, 32d + 16)
    # (2, 3, 0): (160, 224, 16), so the box begins at (112, 176, -32), which is shifted to (112, 176, 0)
    # (5, 0, 5): (352, 32, 176), so the box begins at (304, -16, 128), which is shifted to (288, 0, 96)
    grid = (6, 6, 6)
    tokens = np.ravel_multi_index(([2, 5], [3, 0], [0, 5]), grid)[None]
    start, overlap = place_children(np.array([[10, 20, 30]]), tokens, (384, 384, 192), (96, 96, 96), grid)
    assert start.tolist() == [[122, 196, 30], [298, 20, 126]]
    # 112 ... 208 touches h = 1, 2, 3; 176 ... 272 touches w = 2, 3, 4; 0 ... 96 is d = 0, 1, 2 and ends where 3 begins
    assert overlap[0].sum() == 27
    assert {tuple(np.unravel_index(n, grid)) for n in np.flatnonzero(overlap[0])} == set(
        itertools.product((1, 2, 3), (2, 3, 4), (0, 1, 2))
    )
    assert (
        overlap[1].sum() == 2 * 2 * 3
    )  # 288 ... 384 is h = 4 (half), 5; 0 ... 96 is w = 0, 1 (half); 96 ... 192 is d = 3, 4, 5


def test_between_levels_2_and_3_box_and_token_coincide():
    level1, level2, level3 = draw(PAPER, children=4)
    in_parent = level3.start - np.repeat(level2.start, 4, axis=0)
    numbers = np.stack(np.unravel_index(level3.parent_token, (6, 6, 6)), axis=1)
    assert (in_parent == 16 * numbers).all()
    assert (level3.parent_overlap.sum(1) == 1).all()
    assert level3.parent_overlap[np.arange(16), level3.parent_token].all()
    assert [len(level.start) for level in (level1, level2, level3)] == [1, 4, 16]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("source", ["masked", "visible"])
def test_promises_hold(name, source):
    case = CASES[name]
    sizes, grid = case["levels"], case["grid"]
    tokens = int(np.prod(grid))
    for seed in range(10):
        levels = draw(case, seed, source=source)
        assert (levels[0].start >= 0).all()
        assert (levels[0].start + sizes[0] <= case["image"]).all()
        assert levels[0].parent_token.shape == (0,) and levels[0].parent_overlap.shape == (0, tokens)
        for level, geometry in enumerate(levels):
            volumes = 3**level
            assert geometry.start.shape == (volumes, 3) and geometry.start.dtype == np.int64
            assert geometry.masked.shape == (volumes, tokens) and geometry.masked.dtype == bool
            assert (geometry.masked.sum(1) == tokens - num_visible_tokens(tokens, 0.6)).all()
        for parents, children, outer, inner in zip(levels, levels[1:], sizes, sizes[1:], strict=False):
            for i, (start, token) in enumerate(zip(children.start, children.parent_token, strict=True)):
                parent = i // 3
                offset = start - parents.start[parent]
                assert parents.masked[parent, token] == (source == "masked")
                assert (offset >= 0).all() and (offset + inner <= outer).all()
                brute = overlap_by_subvoxels(offset, inner, outer, grid)
                np.testing.assert_array_equal(children.parent_overlap[i], brute)
                assert brute[token], "a child overlaps the token it was drawn from"
            drawn = children.parent_token.reshape(-1, 3)
            assert all(len(set(each)) == 3 for each in drawn.tolist()), (
                "children of one parent are drawn without replacement"
            )


@pytest.mark.parametrize(("parent", "child", "grid"), [(122, 61, 14), (244, 122, 14)])
def test_touching_is_not_overlapping(parent, child, grid):
    # a box that ends where token 7 begins, at 7 * 122 / 14 = 61, does not overlap it
    for number in range(grid):
        start, overlap = place_children(
            np.zeros((1, 3), dtype=np.int64), np.array([[number]]), (parent, 1, 1), (child, 1, 1), (grid, 1, 1)
        )
        np.testing.assert_array_equal(
            overlap[0], overlap_by_subvoxels(start[0], (child, 1, 1), (parent, 1, 1), (grid, 1, 1))
        )


def test_box_is_never_more_than_half_a_voxel_off_centre():
    for parent, child, grid in [(384, 96, 6), (53, 23, 4), (47, 8, 5), (10, 3, 7)]:
        for number in range(grid):
            start, _ = place_children(
                np.zeros((1, 3), dtype=np.int64), np.array([[number]]), (parent, 1, 1), (child, 1, 1), (grid, 1, 1)
            )
            wanted = Fraction((2 * number + 1) * parent, 2 * grid) - Fraction(child, 2)
            wanted = min(max(wanted, Fraction(0)), Fraction(parent - child))
            assert abs(int(start[0, 0]) - wanted) <= Fraction(1, 2)


def test_level_1_is_uniform_over_the_room_with_both_ends():
    random, draws = np.random.RandomState(1), 3000
    starts = [draw_geometry(random, (7, 4, 5), [(4, 4, 4)], (2, 2, 2), 3, 1)[0].start[0] for _ in range(draws)]
    counts = np.bincount(np.array(starts)[:, 0], minlength=4)
    assert len(counts) == 4  # 0, 1, 2, 3
    # binomial with p = 1/4: standard deviation sqrt(3000 * 3/16) = 23.7; 4.5 of them = 107
    assert np.abs(counts - 750).max() < 107
    assert set(np.array(starts)[:, 1]) == {0}  # no room
    assert set(np.array(starts)[:, 2]) == {0, 1}


def test_masks_and_parents_are_uniform():
    random, draws, tokens = np.random.RandomState(2), 2000, 8
    masked, parent = np.zeros(tokens), np.zeros(tokens)
    for _ in range(draws):
        level1, level2 = draw_geometry(random, (8, 8, 8), [(8, 8, 8), (4, 4, 4)], (2, 2, 2), 3, 2)
        masked += level1.masked[0]
        parent += np.bincount(level2.parent_token, minlength=tokens)
    # masked with p = 5/8: 1250 expected, standard deviation 21.7; drawn with p = 2/8: 500 expected, 19.4
    assert np.abs(masked - 1250).max() < 98
    assert np.abs(parent - 500).max() < 88


def test_volumes_of_a_level_have_masks_of_their_own():
    _, level2, level3 = draw(PAPER, children=4)
    assert len({mask.tobytes() for mask in level2.masked}) == 4
    assert len({mask.tobytes() for mask in level3.masked}) == 16


def test_same_seed_same_geometry():
    for first, again, other in zip(draw(PAPER, 5), draw(PAPER, 5), draw(PAPER, 6), strict=True):
        for name in ("start", "masked", "parent_token", "parent_overlap"):
            np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
        assert not np.array_equal(first.masked, other.masked)
