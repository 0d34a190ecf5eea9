"""Multi-level crop and mask: shapes, randomness, keys and refusals.

`transforms/test_crop_coordinates.py` proves on intensities where the crops are cut.
"""

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, list_data_collate
from monai.data.utils import set_rnd
from monai.transforms import Compose, SpatialPadd

from mim_components.transforms.crop import MultiLevelCropMask, MultiLevelCropMaskd

SMALL = {"level_sizes": [(32, 32, 32), (16, 16, 16)], "input_size": (16, 16, 16), "patch_size": 4, "num_children": 3}


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
        "content_level2": ((3,), torch.bool),
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


def test_dictionary_version_can_draw_beforehand():
    crop = MultiLevelCropMaskd("image", **SMALL).set_random_state(0)
    crop.randomize(torch.from_numpy(hu_image()))
    array = MultiLevelCropMask(**SMALL).set_random_state(0)
    assert torch.equal(torch.from_numpy(crop.crop.geometry[0].masked), array(hu_image())["masked_level1"])


def test_monais_worker_seeding_reaches_the_draws():
    first, second, again = ({"image": hu_image()} for _ in range(3))
    crop = MultiLevelCropMaskd("image", **SMALL)
    outs = []
    for seed, data in ((1, first), (2, second), (1, again)):
        set_rnd(Compose([crop]), seed)
        outs.append(crop(data))
    assert_same(outs[0], outs[2])
    assert not torch.equal(outs[0]["masked_level1"], outs[1]["masked_level1"])


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
        ({"child_content": "all"}, r"child_content must be one of \('prefer', 'any'\), got 'all'"),
        ({"content_range": -1}, "content_range must be 0 or more, got -1"),
        ({"content_range": math.nan}, "content_range must be 0 or more, got nan"),
        ({"window": (5, 5)}, r"window must be \(low, high\) with low < high, got \(5, 5\)"),
        ({"window": (1, 2, 3)}, r"window must be \(low, high\) with low < high, got \(1, 2, 3\)"),
    ],
)
@pytest.mark.parametrize("twin", [MultiLevelCropMask, lambda **sizes: MultiLevelCropMaskd("image", **sizes)])
def test_configuration_errors(twin, change, message):
    with pytest.raises(ValueError, match=message):
        twin(**{**SMALL, **change})


def test_largest_number_of_children_is_accepted():
    out = MultiLevelCropMask(**{**SMALL, "num_children": 39})(hu_image())  # 64 - floor(25.6) = 39
    assert sorted(out["parent_token_level2"].tolist()) == torch.nonzero(out["masked_level1"][0]).flatten().tolist()


def test_randomize_false_before_the_first_draw_says_so():
    with pytest.raises(ValueError, match="randomize"):
        MultiLevelCropMask(**SMALL)(hu_image(), randomize=False)


def test_repeating_on_a_smaller_image_is_refused():
    crop = MultiLevelCropMask([(16, 16, 16)], (16, 16, 16), 4).set_random_state(3)
    start = crop(torch.zeros(1, 20, 20, 20))["start_level1"][0]
    assert start.max() > 1, "choose a seed that cuts beyond the smaller image"
    with pytest.raises(ValueError, match="size"):
        crop(torch.zeros(1, 17, 17, 17), randomize=False)


def test_image_without_channel_is_refused_with_its_shape():
    with pytest.raises(ValueError, match=r"\(40, 40, 40\)"):
        MultiLevelCropMask(**SMALL)(torch.zeros(40, 40, 40))


def test_patch_size_zero_is_refused():
    with pytest.raises(ValueError, match="patch_size"):
        MultiLevelCropMask(**{**SMALL, "patch_size": 0})


def test_small_integers_are_padded_with_the_lower_end_of_the_window():
    """The lower end of the window is beyond the type of the image."""
    image = torch.full((1, 20, 20, 20), 50, dtype=torch.uint8)
    crops = [
        MultiLevelCropMask(**SMALL, window=(-1000, 1000), child_content="any").set_random_state(3)(each)
        for each in (image, image.to(torch.int16))
    ]
    for level in ("image_level1", "image_level2"):
        assert torch.equal(crops[0][level], crops[1][level])
    assert crops[0]["image_level2"].min() == 0
