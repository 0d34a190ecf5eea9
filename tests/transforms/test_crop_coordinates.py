"""Positions of crops, read from intensities: every voxel contains its coordinate, so a crop shows where it was cut.

One image per axis, `image[0, i, j, k] = i` (or j, or k), held as a broadcast view, so that it takes no memory.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import BorderPadd, Compose, SpatialPadd

from mim_components.transforms.crop import MultiLevelCropMask, MultiLevelCropMaskd

AXES = ("h", "w", "d")
SMALL = {"level_sizes": [(32, 32, 32), (16, 16, 16)], "input_size": (16, 16, 16), "patch_size": 4, "num_children": 3}
CASES = {
    "paper": ((390, 384, 200), [(384, 384, 192), (96, 96, 96), (16, 16, 16)], (96, 96, 96), 16, 4),
    "odd sizes": ((61, 50, 47), [(53, 47, 41), (23, 17, 19), (7, 5, 3)], (16, 20, 12), 4, 3),
    "non-cubic input": ((70, 40, 40), [(64, 32, 32), (32, 16, 16)], (32, 16, 8), 8, 4),
    "child as large as its parent": ((20, 20, 20), [(16, 16, 16), (16, 16, 16)], (16, 16, 16), 8, 2),
    "tokens thinner than a voxel": ((12, 12, 12), [(10, 10, 10), (5, 5, 5), (2, 1, 1)], (32, 32, 32), 4, 2),
    "one level": ((20, 21, 22), [(16, 17, 18)], (16, 16, 16), 8, 1),
    "four levels": ((50, 50, 50), [(48, 48, 48), (24, 24, 24), (12, 12, 12), (6, 6, 6)], (16, 16, 16), 4, 2),
}


def coordinates(size, dtype=torch.int16):
    """One image `(1, H, W, D)` per axis, whose voxels hold their coordinate along it."""
    images = {}
    for axis, (name, length) in enumerate(zip(AXES, size, strict=True)):
        shape = [1, 1, 1, 1]
        shape[axis + 1] = length
        images[name] = torch.arange(length, dtype=dtype).view(shape).expand(1, *size)
    return images


def cut(case, seed=0):
    size, levels, input_size, patch, children = case
    crop = MultiLevelCropMaskd(AXES, levels, input_size, patch, 0.6, children)
    return crop.set_random_state(seed)(coordinates(size))


def box_along(volume, axis, native, wanted):
    """First and last voxel of a crop along an axis, read from its corners after the resize.

    Growing repeats the outermost voxels at the corners; after shrinking, a corner holds the mean of the first (last)
    ceil(native / wanted) voxels, which lies (ceil(native / wanted) - 1) / 2 inside.
    """
    inset = (math.ceil(native / wanted) - 1) / 2
    return volume.select(axis, 0) - inset, volume.select(axis, -1) + inset


def starts_from_intensities(out, level, native, input_size):
    """First voxel `(V, 3)` of every volume of a level, after checking that its size is exactly `native`."""
    starts = []
    for axis, name in enumerate(AXES):
        volumes = out[f"{name}_level{level}"][:, 0]
        first, last = box_along(volumes, axis + 1, native[axis], input_size[axis])
        for face in (first, last):  # the coordinate changes along its own axis only
            torch.testing.assert_close(face, face[:, :1, :1].expand_as(face), rtol=0, atol=1e-3)
        torch.testing.assert_close((last - first + 1)[:, 0, 0], torch.full((len(volumes),), float(native[axis])))
        starts.append(first[:, 0, 0].round().long())
    return torch.stack(starts, dim=1)


@pytest.mark.parametrize("name", CASES)
def test_boxes_read_from_intensities(name):
    size, levels, input_size, patch, children = CASES[name]
    out = cut(CASES[name])
    grid = tuple(n // patch for n in input_size)
    parents = None
    for level, native in enumerate(levels, start=1):
        starts = starts_from_intensities(out, level, native, input_size)
        assert torch.equal(starts, out[f"start_level{level}"])
        assert len(starts) == children ** (level - 1)
        if level == 1:
            assert (starts >= 0).all() and (starts + torch.tensor(native) <= torch.tensor(size)).all()
        else:
            outer = levels[level - 2]
            for i, (start, token) in enumerate(zip(starts, out[f"parent_token_level{level}"].tolist(), strict=True)):
                parent = i // children
                assert out[f"masked_level{level - 1}"][parent, token], "drawn from a masked token"
                number = np.unravel_index(token, grid)
                for axis in range(3):
                    offset = int(start[axis] - parents[parent, axis])
                    assert 0 <= offset and offset + native[axis] <= outer[axis], "inside its parent"
                    # the token is n*S/g ... (n+1)*S/g; both sides of the comparison are multiplied by g
                    g, s, n = grid[axis], outer[axis], int(number[axis])
                    assert offset * g < (n + 1) * s and n * s < (offset + native[axis]) * g, "overlaps its token"
        parents = starts


def test_children_of_one_parent_come_from_distinct_tokens():
    out = cut(CASES["four levels"], seed=3)
    for level in (2, 3, 4):
        assert all(a != b for a, b in out[f"parent_token_level{level}"].view(-1, 2).tolist())


def test_affine_points_to_the_same_place_in_the_world():
    affine = torch.tensor([[0, -2.0, 0, 10], [1.5, 0, 0, -20], [0, 0, 3.0, 5], [0, 0, 0, 1]], dtype=torch.float64)
    images = {name: MetaTensor(image.float(), affine=affine) for name, image in coordinates((40, 36, 34)).items()}
    sizes = {**SMALL, "input_size": (32, 32, 32), "patch_size": 8}  # level 1 is not resized
    out = MultiLevelCropMaskd(AXES, **sizes).set_random_state(0)(images)
    voxel = torch.tensor([3, 17, 29])
    original = torch.stack([out[f"{name}_level1"][0, 0, 3, 17, 29] for name in AXES]).double()
    one = torch.ones(1, dtype=torch.float64)
    torch.testing.assert_close(
        out["affine_level1"] @ torch.cat([voxel.double(), one]), affine @ torch.cat([original, one])
    )


# --- volumes smaller than level 1 -----------------------------------------------------------------------------------


def test_small_volume_is_refused_with_both_sizes():
    with pytest.raises(ValueError, match=r"at least level 1, \(32, 32, 32\) voxels, got \(40, 31, 40\); pad it"):
        MultiLevelCropMask(**SMALL)(torch.zeros(1, 40, 31, 40))


@pytest.mark.parametrize("size", [(20, 30, 10), (40, 32, 5), (1, 1, 1)])
def test_small_volume_is_padded_first(size):
    images = {name: image + 1 for name, image in coordinates(size).items()}  # 0 is padding
    pad = SpatialPadd(AXES, (32, 32, 32))
    crop = MultiLevelCropMaskd(AXES, **SMALL).set_random_state(0)
    out = Compose([pad, crop])(images)
    for axis, name in enumerate(AXES):
        before = max(32 - size[axis], 0) // 2  # SpatialPadd's symmetric padding
        for i, start in enumerate(out["start_level2"][:, axis].tolist()):
            inside = [p - before + 1 for p in range(start, start + 16) if 0 <= p - before < size[axis]]
            values = out[f"{name}_level2"][i, 0].unique().tolist()  # 16 to 16 voxels: nothing is resized
            sees_image = values != [0.0]
            assert set(values) <= {0.0, *map(float, inside)}
            assert not sees_image or set(inside) <= set(values)


@pytest.mark.parametrize("size", [(20, 30, 11), (40, 32, 5), (1, 1, 1)])
@pytest.mark.parametrize("window", [(-10, 50), (-10.5, 50.5)])
def test_with_a_window_small_volumes_are_padded_with_its_lower_end(size, window):
    affine = torch.diag(torch.tensor([2.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    images = {name: MetaTensor(image, affine=affine) for name, image in coordinates(size).items()}
    crop = MultiLevelCropMaskd(AXES, **SMALL, window=window, content_range=0)
    out = crop.set_random_state(4)(images)
    start = out["start_level1"][0]
    missing = torch.tensor([max(32 - n, 0) for n in size])
    assert ((start <= 0) | (missing == 0)).all() and (start >= -missing).all()
    # padding beforehand by the same split gives the same volumes
    ends = [
        (max(-first, 0), max(32 - n + first, 0) if n < 32 else 0) for first, n in zip(start.tolist(), size, strict=True)
    ]
    padded = BorderPadd(AXES, [side for end in ends for side in end], value=math.floor(window[0]))(images)
    repeated = MultiLevelCropMask(**SMALL, window=window, content_range=0)
    geometry = crop.crop.geometry
    before = np.array([end[0] for end in ends])
    repeated.geometry = [replace(level, start=level.start + before) for level in geometry]
    repeated._drawn_for = tuple(padded["h"].shape[1:])
    for name in AXES:
        expected = repeated(padded[name], randomize=False)
        for level in (1, 2):
            assert torch.equal(out[f"{name}_level{level}"], expected[f"image_level{level}"])
            assert torch.equal(out[f"start_level{level}"], expected[f"start_level{level}"] - torch.from_numpy(before))
    voxel = torch.cat([start.double(), torch.ones(1)])
    assert torch.equal(out["affine_level1"][:, 3], affine @ voxel)


def test_a_child_may_lie_in_padding_alone():
    levels = [(32, 32, 32), (4, 4, 4)]
    crop = MultiLevelCropMask(levels, (16, 16, 16), 4, num_children=39, window=(0, 1)).set_random_state(0)
    out = crop(torch.ones(1, 8, 8, 8))
    inside = [(start > -4).all() and (start < 8).all() for start in out["start_level2"]]
    assert torch.equal(out["content_level2"], torch.zeros(39, dtype=torch.bool)), "nothing spans 50"
    assert [bool(volume.any()) for volume in out["image_level2"]] == [bool(each) for each in inside]
    assert any(inside) and not all(inside)
