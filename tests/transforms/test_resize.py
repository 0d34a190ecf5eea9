"""Resize and scale: by hand, equal to PyTorch's resize of MONAI's scaled voxels, and without side effects."""

import pytest
import torch
import torch.nn.functional as F
from monai.transforms import ScaleIntensityRange

from mim_components.transforms.crop import MultiLevelCropMask
from mim_components.transforms.resize import resize_volumes

WINDOW = (-1000.0, 1000.0)


def plainly(volumes, size, mode="area", window=None):
    """Reference: scale every voxel in float32 with MONAI, then resize with PyTorch."""
    volumes = volumes.float()
    if window is not None:
        volumes = ScaleIntensityRange(*window, 0.0, 1.0, clip=True)(volumes)
    if mode == "area":
        shrunk = tuple(min(have, want) for have, want in zip(volumes.shape[2:], size, strict=True))
        volumes = F.interpolate(volumes, size=shrunk, mode="area")
    return F.interpolate(volumes, size=size, mode="trilinear", align_corners=False)


def hu(*shape, dtype=torch.int16, low=-1500, high=3000):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(0)).to(dtype)


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


def test_the_result_is_a_new_tensor():
    volume = torch.rand(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    copy = volume.clone()
    resize_volumes(volume, (4, 4, 4)).zero_()
    resize_volumes(volume, (4, 4, 4), window=(0.25, 0.75)).zero_()
    assert torch.equal(volume, copy)


# --- window -----------------------------------------------------------------------------------------------------------


def test_window_by_hand():
    volume = torch.tensor([-1500, -1000, 0, 250, 1000, 3000], dtype=torch.int16).view(1, 1, 6, 1, 1)
    out = resize_volumes(volume, (6, 1, 1), window=WINDOW)
    assert out.flatten().tolist() == [0, 0, 0.5, 0.625, 1, 1] and out.dtype == torch.float32
    # clipped before the mean: (-1000 - 1000 + 0) / 3, then (250 + 1000 + 1000) / 3 HU
    expected = torch.tensor([1 / 6, 0.875])
    torch.testing.assert_close(resize_volumes(volume, (2, 1, 1), window=WINDOW).flatten(), expected)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.float32])
@pytest.mark.parametrize("window", [WINDOW, (-175.0, 250.0), (-32768.0, 32767.0), (-160.5, 239.5), (-40000.0, 40000.0)])
def test_window_is_bit_for_bit_monais_on_every_int16(dtype, window):
    voxels = torch.arange(-(2**15), 2**15, dtype=torch.int32).view(1, 1, 64, 32, 32).to(dtype)
    expected = ScaleIntensityRange(*window, 0.0, 1.0, clip=True)(voxels).as_tensor()
    assert torch.equal(resize_volumes(voxels, (64, 32, 32), window=window), expected)


SIZES = {
    "level 1": ((1, 1, 96, 96, 48), (24, 24, 24)),
    "two channels, several volumes": ((3, 2, 16, 12, 8), (4, 4, 4)),
    "level 3": ((4, 1, 16, 16, 16), (96, 96, 96)),
    "shrinks by no integer": ((1, 1, 23, 17, 19), (16, 16, 12)),
    "one axis of each kind": ((2, 1, 32, 12, 5), (8, 9, 11)),
    "same size": ((2, 1, 8, 8, 8), (8, 8, 8)),
    "one voxel": ((1, 1, 1, 1, 1), (4, 4, 4)),
}


@pytest.mark.parametrize("mode", ["area", "trilinear"])
@pytest.mark.parametrize("window", [WINDOW, (-160.5, 239.5), (-1024.0, 3071.0)])
@pytest.mark.parametrize("case", SIZES)
def test_equal_to_scaling_every_voxel_and_pytorchs_resize(case, window, mode):
    shape, size = SIZES[case]
    volumes = hu(*shape)
    out = resize_volumes(volumes, size, mode, window)
    torch.testing.assert_close(out, plainly(volumes, size, mode, window), rtol=0, atol=1e-6)
    assert out.shape == (*shape[:2], *size) and out.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int64, torch.half,
                                   torch.double])  # fmt: skip
def test_every_type_without_a_window(dtype):
    volumes = hu(1, 1, 12, 8, 9, dtype=dtype, low=0, high=2 if dtype == torch.bool else 100)
    torch.testing.assert_close(resize_volumes(volumes, (3, 4, 12)), plainly(volumes, (3, 4, 12)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_sums_of_the_largest_integers_do_not_overflow(dtype):
    for end in (torch.iinfo(dtype).min, torch.iinfo(dtype).max):
        volume = torch.full((1, 1, 8, 8, 8), end, dtype=dtype)
        assert resize_volumes(volume, (2, 2, 2)).unique().tolist() == [torch.tensor(end).float()]


def test_slabs_make_no_difference(monkeypatch):
    volumes = hu(2, 1, 21, 8, 8)
    whole = resize_volumes(volumes, (7, 4, 4), window=WINDOW)
    for voxels in (1, 2 * 4 * 3 * 64, 2 * 5 * 3 * 64):  # slabs of 1, of 4 + 3, of 5 + 2 rows of the result
        monkeypatch.setattr("mim_components.transforms.resize._SLAB", voxels)
        assert torch.equal(resize_volumes(volumes, (7, 4, 4), window=WINDOW), whole)


def test_views_of_a_larger_volume_need_no_copy():
    volumes = hu(2, 1, 20, 21, 22)
    box = volumes[:, :, 3:19, 5:17, 1:17]
    assert torch.equal(
        resize_volumes(box, (4, 4, 4), window=WINDOW), resize_volumes(box.clone(), (4, 4, 4), window=WINDOW)
    )


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
@pytest.mark.parametrize("window", [WINDOW, (-160.5, 239.5), None])
@pytest.mark.parametrize("mode", ["area", "trilinear"])
@pytest.mark.parametrize("voxels", [1, 2**21])
def test_padding_becomes_0(dtype, window, mode, voxels, monkeypatch):
    volumes, padding, size = hu(2, 1, 5, 9, 8, dtype=dtype), (0, 4, 2, 1, 7, 8), (5, 6, 6)  # to 20 x 12 x 12
    padded = F.pad(volumes.float(), padding, value=window[0] if window else 0)
    monkeypatch.setattr("mim_components.transforms.resize._SLAB", voxels)  # with 1, slabs of nothing but padding
    out = resize_volumes(volumes, size, mode, window, padding)
    torch.testing.assert_close(out, plainly(padded, size, mode, window), rtol=1e-6, atol=1e-6)


# --- the crop ---------------------------------------------------------------------------------------------------------


def test_every_level_of_the_crop_is_scaled():
    image = hu(1, 40, 36, 33)
    sizes = {"level_sizes": [(32, 32, 32), (16, 16, 16), (4, 4, 4)], "input_size": (16, 16, 16), "patch_size": 4}
    scaled = ScaleIntensityRange(*WINDOW, 0.0, 1.0, clip=True)(image)
    out = MultiLevelCropMask(**sizes, window=WINDOW).set_random_state(2)(image)
    expected = MultiLevelCropMask(**sizes).set_random_state(2)(scaled)
    assert out.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(out[name], value, rtol=0, atol=1e-6)


def test_resize_option_reaches_the_crop():
    image = torch.rand(1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    sizes = {"level_sizes": [(32, 32, 32)], "input_size": (8, 8, 8), "patch_size": 4}
    area = MultiLevelCropMask(**sizes)(image)["image_level1"][0, 0]
    trilinear = MultiLevelCropMask(**sizes, resize="trilinear")(image)["image_level1"][0, 0]
    blocks = image[0].view(8, 4, 8, 4, 8, 4)
    torch.testing.assert_close(area, blocks.mean(dim=(1, 3, 5)))
    torch.testing.assert_close(trilinear, blocks[:, 1:3, :, 1:3, :, 1:3].mean(dim=(1, 3, 5)))
