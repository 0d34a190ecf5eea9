"""The scaled window: by hand, equal to MONAI's transform, and without side effects."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import ScaleIntensityRange

from mim_components.intensity import ScaleWindowd


def test_by_hand():
    image = torch.tensor([-1500, -1000, 0, 250, 1000, 3000], dtype=torch.int16)
    out = ScaleWindowd("image", [-1000, 1000])({"image": image, "name": "a"})
    assert out["image"].tolist() == [0, 0, 0.5, 0.625, 1, 1] and out["image"].dtype == torch.float32
    assert out["name"] == "a"


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
@pytest.mark.parametrize("window", [(-1000.0, 1000.0), (-175.0, 250.0)])
def test_bit_for_bit_as_monai_on_every_int16(dtype, window):
    image = torch.arange(-(2**15), 2**15, dtype=torch.int32).view(1, 64, 32, 32).to(dtype)[:, 3:60, 5:31, 2:31]
    ours = ScaleWindowd("image", window)({"image": image})["image"]
    monai = ScaleIntensityRange(*window, 0.0, 1.0, clip=True)(image)
    assert torch.equal(ours, monai.as_tensor())
    assert ours.is_contiguous()


def test_input_is_left_alone_and_the_affine_kept():
    affine = torch.diag(torch.tensor([2.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    image = MetaTensor(torch.full((1, 2, 2, 2), 500.0), affine=affine)
    out = ScaleWindowd("image", (-1000, 1000))({"image": image})["image"]
    assert torch.equal(out.affine, affine) and np.unique(out.numpy()) == 0.75
    assert np.unique(image.numpy()) == 500.0


def test_missing_keys_and_empty_windows():
    with pytest.raises(KeyError, match="image"):
        ScaleWindowd("image", (0, 1))({})
    assert ScaleWindowd("image", (0, 1), allow_missing_keys=True)({}) == {}
    with pytest.raises(ValueError, match=r"low < high, got \(5, 5\)"):
        ScaleWindowd("image", (5, 5))
