"""Resize by hand: area means where it shrinks, trilinear where it grows, and what trilinear does not see."""

import pytest
import torch

from mim_components.transforms import MultiLevelCropMask, resize_volumes


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
