"""Meaning of prepared voxels: HU for CT, per mille between two percentiles for MR."""

from __future__ import annotations

import pytest
import torch

from mim_components.transforms import IntensityScale, MultiLevelCropMask


def test_ct_is_in_hu() -> None:
    scale = IntensityScale("ct", [-160, 240])
    assert (scale.window, scale.hu_range, scale.percentiles) == ((-160.0, 240.0), (-160.0, 240.0), None)
    assert (scale.unit, scale.width, scale.content_range, scale.air, scale.marker) == ("HU", 400.0, 50.0, -150.0, -1500)
    assert IntensityScale().window == (-1000.0, 1000.0)


def test_mr_is_in_per_mille() -> None:
    scale = IntensityScale("mr")
    assert (scale.window, scale.hu_range, scale.percentiles) == ((0.0, 1000.0), None, (0.5, 99.5))
    assert (scale.unit, scale.width, scale.content_range, scale.air, scale.marker) == ("‰", 1000.0, 100.0, 100.0, -500)
    assert (scale.picture_window, scale.error_range) == ((0.0, 1000.0), 300.0)


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match=r"hu_window is \[-1000, 1000\] with modality mr: .* remove --hu_window"):
        IntensityScale("mr", [-1000, 1000])
    with pytest.raises(ValueError, match="modality must be one of ct, mr, got 'MR'"):
        IntensityScale("MR")
    with pytest.raises(ValueError, match="hu_window must go from low to high"):
        IntensityScale("ct", [5, 5])


@pytest.mark.parametrize(("span", "filled"), [(100, False), (101, True)])
def test_content_of_a_token_of_mr(span: int, filled: bool) -> None:
    scale = IntensityScale("mr")
    image = torch.zeros(1, 16, 16, 16, dtype=torch.int16)
    image[:, ::2] = span  # every token holds 0 and the span; level 1 is not resized
    crop = MultiLevelCropMask(
        [(16, 16, 16), (8, 8, 8)], (16, 16, 16), 8, num_children=2, window=scale.window,
        content_range=scale.content_range,
    ).set_random_state(0)  # fmt: skip
    levels = crop(image)
    assert levels["content_level2"].tolist() == [filled, filled]
    assert levels["image_level1"].unique().tolist() == pytest.approx([0.0, span / 1000])
