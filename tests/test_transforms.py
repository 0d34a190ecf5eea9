"""Crops proved on intensities: every voxel holds its own coordinate, so a crop tells where it was cut.

One image per axis, `image[0, i, j, k] = i` (or j, or k), held as a broadcast view, so that it takes no memory.
"""

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, list_data_collate
from monai.transforms import Compose, SpatialPadd

from mim_components.transforms import MultiLevelCropMask, MultiLevelCropMaskd, resize_volumes

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

    Growing repeats the outermost voxels at the corners; shrinking puts there the mean of the first (last)
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


def test_shapes_and_types():
    out = MultiLevelCropMask(**SMALL).set_random_state(0)(torch.zeros(2, 40, 36, 33, dtype=torch.int16))
    assert {name: (tuple(value.shape), value.dtype) for name, value in out.items()} == {
        "image_level1": ((1, 2, 16, 16, 16), torch.float32),
        "masked_level1": ((1, 64), torch.bool),
        "start_level1": ((1, 3), torch.int64),
        "image_level2": ((3, 2, 16, 16, 16), torch.float32),
        "masked_level2": ((3, 64), torch.bool),
        "start_level2": ((3, 3), torch.int64),
        "parent_token_level2": ((3,), torch.int64),
        "parent_overlap_level2": ((3, 64), torch.bool),
    }


def test_visible_source_draws_from_visible_tokens():
    crop = MultiLevelCropMask(**SMALL, child_source="visible").set_random_state(0)
    for _ in range(5):
        out = crop(torch.zeros(1, 40, 40, 40))
        assert not out["masked_level1"][0, out["parent_token_level2"]].any()
        assert len(set(out["parent_token_level2"].tolist())) == 3


def test_visible_source_counts_visible_tokens():
    sizes = {"level_sizes": [(8, 8, 8), (4, 4, 4)], "input_size": (8, 8, 8), "patch_size": 4}  # 8 tokens, 2 visible
    MultiLevelCropMask(**sizes, mask_ratio=0.75, num_children=6)
    with pytest.raises(ValueError, match="visible tokens, got num_children=3, visible tokens: 2"):
        MultiLevelCropMask(**sizes, mask_ratio=0.75, num_children=3, child_source="visible")


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


# --- resize -----------------------------------------------------------------------------------------------------------


def test_area_is_the_block_mean_by_hand():
    volume = torch.zeros(1, 1, 4, 2, 2)
    volume[0, 0, :, 0, 0] = torch.tensor([8.0, 16.0, 0.0, 4.0])
    # blocks of 2x2x2: (8 + 16) / 8 and (0 + 4) / 8
    assert resize_volumes(volume, (2, 1, 1)).flatten().tolist() == [3.0, 0.5]


def test_area_is_the_block_mean_of_the_papers_level_1():
    volume = torch.randint(0, 1000, (1, 1, 16, 16, 8), generator=torch.Generator().manual_seed(0), dtype=torch.int16)
    blocks = volume.float().view(4, 4, 4, 4, 4, 2).mean(dim=(1, 3, 5))  # factors 4, 4, 2
    torch.testing.assert_close(resize_volumes(volume, (4, 4, 4))[0, 0], blocks)


def test_trilinear_reads_the_central_2x2x2_only():
    volume = torch.zeros(1, 1, 4, 4, 4)
    volume[0, 0, 1:3, 1:3, 1:3] = torch.arange(8.0).view(2, 2, 2)  # mean 3.5
    volume[0, 0, 0] = 1000.0  # a shell that area sees and trilinear does not
    assert resize_volumes(volume, (1, 1, 1), "trilinear").item() == 3.5
    assert resize_volumes(volume, (1, 1, 1), "area").item() == pytest.approx((16 * 1000 + 28) / 64)


def test_one_axis_shrinks_while_another_grows():
    volume = torch.tensor([[1.0, 3.0], [5.0, 7.0]]).view(1, 1, 2, 2, 1)
    # H shrinks to the means 3, 5; W 2 -> 4 reads at -0.25 (clamped), 0.25, 0.75, 1.25 (clamped); D grows by copies
    out = resize_volumes(volume, (1, 4, 2))
    assert out[0, 0, 0, :, 0].tolist() == [3.0, 3.5, 4.5, 5.0]
    assert torch.equal(out[..., 0], out[..., 1])


@pytest.mark.parametrize("mode", ["area", "trilinear"])
def test_resize_to_the_same_size_changes_nothing(mode):
    volume = torch.rand(2, 1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resize_volumes(volume, (3, 4, 5), mode), volume)


def test_resize_option_reaches_the_crop():
    image = torch.rand(1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    sizes = {"level_sizes": [(32, 32, 32)], "input_size": (8, 8, 8), "patch_size": 4}
    area = MultiLevelCropMask(**sizes)(image)["image_level1"][0, 0]
    trilinear = MultiLevelCropMask(**sizes, resize="trilinear")(image)["image_level1"][0, 0]
    blocks = image[0].view(8, 4, 8, 4, 8, 4)
    torch.testing.assert_close(area, blocks.mean(dim=(1, 3, 5)))
    torch.testing.assert_close(trilinear, blocks[:, 1:3, :, 1:3, :, 1:3].mean(dim=(1, 3, 5)))


# --- randomness -------------------------------------------------------------------------------------------------------


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name].cpu(), second[name].cpu()), name


def hu_image(dtype=np.float32):
    return np.random.RandomState(0).randint(0, 200, (1, 40, 36, 33)).astype(dtype)


@pytest.mark.parametrize(
    "make",
    [
        lambda: hu_image(),
        lambda: hu_image(np.int16),
        lambda: hu_image(np.uint8),
        lambda: hu_image(np.uint16),
        lambda: hu_image(np.int32),
        lambda: hu_image(np.float64),
        lambda: np.asfortranarray(hu_image()),
        lambda: torch.from_numpy(hu_image()),
        lambda: torch.from_numpy(hu_image(np.int16)),
        lambda: torch.from_numpy(hu_image()).half(),
        lambda: MetaTensor(hu_image(), affine=torch.diag(torch.tensor([2.0, 2.0, 3.0, 1.0]))),
    ],
    ids=[
        "float32",
        "int16",
        "uint8",
        "uint16",
        "int32",
        "float64",
        "fortran",
        "tensor",
        "int16 tensor",
        "half",
        "meta",
    ],
)
def test_same_seed_same_result_for_every_type(make):
    reference = MultiLevelCropMask(**SMALL).set_random_state(7)(torch.from_numpy(hu_image()))
    out = MultiLevelCropMask(**SMALL).set_random_state(7)(make())
    assert_same(out, reference)
    assert not any(isinstance(value, MetaTensor) for value in out.values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_same_seed_same_result_on_cuda():
    reference = MultiLevelCropMask(**SMALL).set_random_state(7)(torch.from_numpy(hu_image()))
    out = MultiLevelCropMask(**SMALL).set_random_state(7)(torch.from_numpy(hu_image()).cuda())
    for name in reference:
        torch.testing.assert_close(out[name].cpu(), reference[name])
        assert out[name].is_cuda or name.startswith("start_")


def test_other_seed_other_result():
    first, second = (MultiLevelCropMask(**SMALL).set_random_state(seed)(hu_image()) for seed in (0, 1))
    assert not torch.equal(first["masked_level1"], second["masked_level1"])


def test_every_call_draws_anew_and_randomize_false_repeats():
    crop = MultiLevelCropMask(**SMALL).set_random_state(0)
    first = crop(hu_image())
    assert_same(crop(hu_image(), randomize=False), first)
    assert not torch.equal(crop(hu_image())["masked_level1"], first["masked_level1"])


def test_numpys_global_state_is_not_used():
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    MultiLevelCropMask(**SMALL).set_random_state(0)(hu_image())
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_the_input_is_not_changed_and_not_shared():
    image = torch.from_numpy(hu_image())
    copy = image.clone()
    out = MultiLevelCropMask([(40, 36, 33)], (40, 36, 33), 1, num_children=1)(image)["image_level1"]  # nothing to cut
    out.zero_()
    assert torch.equal(image, copy)


def test_compose_reseeds_the_dictionary_version():
    crop = MultiLevelCropMaskd("image", **SMALL)
    chain = Compose([crop])
    first = chain.set_random_state(5)({"image": hu_image()})
    moved_on = chain({"image": hu_image()})
    again = chain.set_random_state(5)({"image": hu_image()})
    assert_same(first, again)
    assert not torch.equal(first["masked_level1"], moved_on["masked_level1"])


def test_dictionary_version_is_the_array_version():
    array = MultiLevelCropMask(**SMALL).set_random_state(3)(hu_image())
    dictionary = MultiLevelCropMaskd("image", **SMALL).set_random_state(3)({"image": hu_image()})
    affine = dictionary.pop("affine_level1")
    assert_same(dictionary, array)
    assert affine.dtype == torch.float64  # the image has no affine, so: identity, moved to the crop
    assert torch.equal(affine[:3, :3], torch.eye(3, dtype=torch.float64))
    assert torch.equal(affine[:3, 3], array["start_level1"][0].double())


# --- dictionary version -----------------------------------------------------------------------------------------------


def test_keys_share_crops_and_other_entries_stay():
    image = hu_image()
    crop = MultiLevelCropMaskd(["a", "b"], **SMALL).set_random_state(0)
    data = {"a": image, "b": -image, "name": "case 1"}
    out = crop(data)
    for level in (1, 2):
        assert torch.equal(out[f"a_level{level}"], -out[f"b_level{level}"])
    assert out["name"] == "case 1"
    assert "a" not in out and "b" not in out
    assert set(data) == {"a", "b", "name"}, "the caller's dictionary is not changed"
    next_call = crop(data)
    assert not torch.equal(out["masked_level1"], next_call["masked_level1"])
    assert torch.equal(next_call["a_level1"], -next_call["b_level1"])


def test_keys_of_different_shape_are_refused():
    with pytest.raises(ValueError, match=r"equal spatial shape, got \(40, 40, 40\) and 'b'.*41"):
        MultiLevelCropMaskd(["a", "b"], **SMALL)({"a": torch.zeros(1, 40, 40, 40), "b": torch.zeros(1, 40, 40, 41)})


def test_missing_keys():
    with pytest.raises(KeyError, match="Key `b`"):
        MultiLevelCropMaskd(["a", "b"], **SMALL)({"a": hu_image()})
    out = MultiLevelCropMaskd(["b", "a"], **SMALL, allow_missing_keys=True)({"a": hu_image()})
    assert "a_level2" in out and "masked_level1" in out


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


def test_affine_is_right_after_padding():
    affine = torch.diag(torch.tensor([2.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    image = MetaTensor(torch.ones(1, 20, 20, 20), affine=affine)
    out = Compose([SpatialPadd("image", (32, 32, 32)), MultiLevelCropMaskd("image", **SMALL)])({"image": image})
    assert out["affine_level1"][:3, 3].tolist() == [-12.0, -12.0, -18.0]  # 6 voxels of padding before


def test_samples_collate():
    crop = MultiLevelCropMaskd("image", **SMALL).set_random_state(0)
    batch = list_data_collate([crop({"image": hu_image()}) for _ in range(2)])
    assert batch["image_level2"].shape == (2, 3, 1, 16, 16, 16)
    assert batch["affine_level1"].shape == (2, 4, 4)


# --- configuration errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level_sizes": []}, r"one size \(H, W, D\) per level, got \[\]"),
        ({"level_sizes": [(32, 32)]}, r"one size \(H, W, D\) per level, got \[\(32, 32\)\]"),
        ({"level_sizes": [(32, 0, 32)]}, r"one size \(H, W, D\) per level, got \[\(32, 0, 32\)\]"),
        (
            {"level_sizes": [(32, 32, 32), (16, 33, 16)]},
            r"fit in the one above, got \(16, 33, 16\) inside \(32, 32, 32\)",
        ),
        (
            {"input_size": (16, 18, 16)},
            r"multiple of patch_size=4, got \(16, 18, 16\); nearest .*\(16, 16, 16\), \(16, 20, 16\)",
        ),
        ({"mask_ratio": 0.0}, r"mask_ratio must be in \(0, 1\), got 0.0"),
        ({"mask_ratio": 1.0}, r"mask_ratio must be in \(0, 1\), got 1.0"),
        ({"mask_ratio": -0.1}, r"mask_ratio must be in \(0, 1\), got -0.1"),
        ({"mask_ratio": math.nan}, r"mask_ratio must be in \(0, 1\), got nan"),
        ({"mask_ratio": 0.99}, "leaves none of the 64 tokens visible"),
        ({"num_children": 0}, "got num_children=0, masked tokens: 39"),
        ({"num_children": 40}, "between 1 and the number of masked tokens, got num_children=40, masked tokens: 39"),
        ({"child_source": "hidden"}, r"child_source must be one of \('masked', 'visible'\), got 'hidden'"),
        ({"resize": "nearest"}, r"resize must be one of \('area', 'trilinear'\), got 'nearest'"),
    ],
)
@pytest.mark.parametrize("twin", [MultiLevelCropMask, lambda **sizes: MultiLevelCropMaskd("image", **sizes)])
def test_configuration_errors(twin, change, message):
    with pytest.raises(ValueError, match=message):
        twin(**{**SMALL, **change})


def test_largest_number_of_children_is_accepted():
    out = MultiLevelCropMask(**{**SMALL, "num_children": 39})(hu_image())  # 64 - floor(25.6) = 39
    assert sorted(out["parent_token_level2"].tolist()) == torch.nonzero(out["masked_level1"][0]).flatten().tolist()


@pytest.mark.xfail(strict=True, reason="fails inside zip(), without naming the cause")
def test_randomize_false_before_the_first_draw_says_so():
    with pytest.raises(ValueError, match="randomize"):
        MultiLevelCropMask(**SMALL)(hu_image(), randomize=False)


@pytest.mark.xfail(
    strict=True, reason="boxes drawn for a larger image are cut short at its edge, and resized all the same"
)
def test_repeating_on_a_smaller_image_is_refused():
    crop = MultiLevelCropMask([(16, 16, 16)], (16, 16, 16), 4).set_random_state(3)
    start = crop(torch.zeros(1, 20, 20, 20))["start_level1"][0]
    assert start.max() > 1, "choose a seed that cuts beyond the smaller image"
    with pytest.raises(ValueError, match="size"):
        crop(torch.zeros(1, 17, 17, 17), randomize=False)


@pytest.mark.xfail(strict=True, reason="fails inside zip(), without naming the shape")
def test_image_without_channel_is_refused_with_its_shape():
    with pytest.raises(ValueError, match=r"\(40, 40, 40\)"):
        MultiLevelCropMask(**SMALL)(torch.zeros(40, 40, 40))


@pytest.mark.xfail(strict=True, raises=ZeroDivisionError, reason="divides before it looks")
def test_patch_size_zero_is_refused():
    with pytest.raises(ValueError, match="patch_size"):
        MultiLevelCropMask(**{**SMALL, "patch_size": 0})
