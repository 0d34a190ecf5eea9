"""Class maps and regions, by hand."""

import pytest
import torch
from monai.data import MetaTensor

from mim_components.transforms.regions import LabelToRegions, LabelToRegionsd, RegionsToLabel

BRATS = {"TC": [2, 3], "WT": [1, 2, 3], "ET": [3]}
WRONG_ET = {"TC": [2, 3], "WT": [1, 2, 3], "ET": [2]}  # et_label=2, as the paper's code has it


def voxels(*rows):
    return torch.tensor(rows).reshape(len(rows), -1, 1, 1)


@pytest.mark.parametrize(("regions", "et"), [(BRATS, [0, 0, 0, 1]), (WRONG_ET, [0, 0, 1, 0])])
def test_regions_of_brats(regions, et):
    label = voxels([0, 1, 2, 3])
    found = LabelToRegions(regions)(label)
    assert found.dtype == torch.uint8
    assert found.flatten(1).tolist() == [[0, 0, 1, 1], [0, 1, 1, 1], et]
    back = RegionsToLabel(regions)(found)
    assert back.dtype == torch.uint8 and back.flatten().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("regions", "membership", "classes"),
    [
        # columns: voxels in TC only, in ET only, in ET and WT, in WT and TC
        (BRATS, voxels([1, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 0]), [2, 3, 3, 2]),
        (WRONG_ET, voxels([1, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 0]), [3, 2, 2, 3]),
        # regions that only touch: each has its own class, the one named later wins
        ({"a": [1], "b": [2]}, voxels([1, 0, 1], [0, 1, 1]), [1, 2, 2]),
        # overlap without nesting: no inner region, so the lowest class
        ({"a": [1, 2], "b": [2, 3]}, voxels([1, 0, 1], [0, 1, 1]), [1, 2, 2]),
        # the inner regions cover everything: the lowest class
        ({"all": [1, 2], "a": [1], "b": [2]}, voxels([1, 1, 1], [0, 1, 0], [0, 0, 1]), [1, 1, 2]),
    ],
)
def test_class_of_a_voxel(regions, membership, classes):
    assert RegionsToLabel(regions)(membership).flatten().tolist() == classes


def test_dictionary_version_keeps_meta_and_passes_over_what_is_missing():
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    label = MetaTensor(voxels([0, 3]), affine=affine, meta={"filename_or_obj": "x.nii"})
    out = LabelToRegionsd(["label", "pred"], BRATS)({"label": label, "name": "x"})
    assert set(out) == {"label", "name"}
    assert out["label"].meta["filename_or_obj"] == "x.nii" and torch.equal(out["label"].affine, affine)
    back = RegionsToLabel(BRATS)(out["label"])
    assert torch.equal(back.affine, affine) and back.flatten().tolist() == [0, 3]


def test_without_regions_nothing_changes():
    label = voxels([0, 1])
    assert LabelToRegions({})(label) is label and RegionsToLabel({})(label) is label


def test_wrong_number_of_channels():
    with pytest.raises(ValueError, match=r"must be \(1, H, W, D\), got \(2, 1, 1, 1\)"):
        LabelToRegions(BRATS)(torch.zeros(2, 1, 1, 1))
    with pytest.raises(ValueError, match="expected the 3 regions TC, WT, ET, got 2"):
        RegionsToLabel(BRATS)(torch.zeros(2, 1, 1, 1))
