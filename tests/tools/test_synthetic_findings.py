import numpy as np
import pytest

from mim_tools.synthetic import SYNTHETIC_LABELS, synthetic_ct
from mim_tools.synthetic.brain import synthetic_brain
from mim_tools.synthetic.tissue import FINE_LABELS, LABEL_NUMBERS, PARENTS, TO_COARSE

CHEST = {"spatial_size": (44, 36, 40), "spacing": (8.0, 8.0, 8.0), "center": (0, 0, 160)}


def number(name):
    return LABEL_NUMBERS[name]


def test_finer_labels_come_after_the_others_and_belong_to_one_of_them():
    assert list(FINE_LABELS.items())[: len(SYNTHETIC_LABELS)] == list(SYNTHETIC_LABELS.items())
    assert set(PARENTS.values()) <= set(SYNTHETIC_LABELS.values())
    assert TO_COARSE.max() < len(SYNTHETIC_LABELS) and TO_COARSE[number("duodenum")] == number("bowel")


def test_finer_labels_change_neither_image_nor_the_labels_they_belong_to():
    coarse, fine = (synthetic_ct(6, **CHEST, phase="arterial", fine_labels=flag) for flag in (False, True))
    assert np.array_equal(coarse.image, fine.image)
    assert np.array_equal(coarse.label, TO_COARSE[fine.label])
    assert not np.array_equal(coarse.label, fine.label)


def test_chambers_lie_in_the_heart_as_they_should():
    ct = synthetic_ct(6, (50, 50, 50), (4.0, 4.0, 4.0), (-8, 22, 150), "arterial", (), True)
    names = ("left_ventricle", "right_ventricle", "left_atrium", "right_atrium", "left_myocardium", "ascending_aorta")
    center = {name: ct.affine[:3, :3] @ np.argwhere(ct.label == number(name)).mean(0) for name in names}
    assert center["right_atrium"][0] > center["left_ventricle"][0] + 30  # x to the patient's right
    assert center["right_ventricle"][1] > center["left_atrium"][1] + 20  # y to the front
    assert center["ascending_aorta"][2] > center["left_ventricle"][2] + 30  # z to the head
    hu = {name: ct.image[ct.label == number(name)].mean() for name in names}
    assert hu["left_ventricle"] > hu["left_myocardium"] + 80
    cavity = ct.label == number("left_ventricle")
    wall = ct.label == number("left_myocardium")
    assert 0.5 < wall.sum() / cavity.sum() < 4


@pytest.fixture(scope="module")
def healthy():
    return synthetic_ct(3, **CHEST, findings=(), fine_labels=True)


@pytest.mark.parametrize(
    ("finding", "label"),
    [("lung_tumour", "lung_tumour"), ("covid", "covid_lesion"), ("pneumonia", "pneumonia")],
)
def test_lungs_have_the_finding_asked_for_and_no_other(finding, label, healthy):
    ill = synthetic_ct(3, **CHEST, findings=(finding,), fine_labels=True)
    lesion = ill.label == number(label)
    assert lesion.sum() >= 5
    assert not np.isin(healthy.label, [number(name) for name in (label, "lung_lesion")]).any()
    assert ill.image[lesion].mean() > healthy.image[lesion].mean() + 100
    assert np.array_equal(healthy.label[~lesion], ill.label[~lesion])


def test_unknown_findings_are_named():
    with pytest.raises(ValueError, match=r"findings must be among \('lung_tumour', .*\), got \['stroke'\]"):
        synthetic_ct(0, (4, 4, 4), (9.0, 9.0, 9.0), findings=("stroke", "covid"))


@pytest.fixture(scope="module")
def brain():
    return synthetic_brain(2, (48, 56, 44), (3.8, 3.8, 3.8))


def test_brain_is_stripped_and_fills_its_field(brain):
    head = (brain.image > 0).all(-1)
    assert np.array_equal(head, (brain.image > 0).any(-1)) and brain.image.min() == 0
    assert 900 < head.sum() * 3.8**3 / 1000 < 1500  # ml, that of an adult
    for axis in range(3):
        ends = np.moveaxis(head, axis, 0)[[0, -1]]
        assert ends.mean() < 0.2
    assert (brain.label[~head] == 0).all()
    np.testing.assert_allclose(brain.affine @ [23.5, 27.5, 21.5, 1], [0, 0, 0, 1], atol=1e-9)


def test_contrasts_of_the_tumour(brain):
    flair, t1, gd, t2 = np.moveaxis(brain.image.astype(float), -1, 0)
    head = brain.image[..., 0] > 0
    edema, core, rim, rest = (brain.label == value for value in (1, 2, 3, 0))
    rest &= head
    assert min(edema.sum(), core.sum(), rim.sum()) > 20
    assert flair[edema].mean() > 1.4 * flair[rest].mean()
    assert gd[rim].mean() > 1.3 * gd[rest].mean() and gd[rim].mean() > 2 * gd[core].mean()
    assert t1[core].mean() < 0.7 * t1[rest].mean()
    assert t2[edema].mean() > 1.3 * t2[rest].mean() < 1.1 * t2[core].mean()


def test_core_lies_in_the_rim_and_the_rim_in_the_edema(brain):
    core, rim, edema = (brain.label == value for value in (2, 3, 1))
    for axis in range(3):
        next_to_core = np.roll(core, 1, axis) & ~core
        assert (rim[next_to_core]).mean() > 0.9
    places = [np.argwhere(part) for part in (core, rim, edema)]
    extents = [np.ptp(voxels, axis=0) for voxels in places]
    assert (extents[0] < extents[1]).all() and (extents[1] < extents[2]).all()


def test_brains_repeat_by_seed_and_differ_between_seeds():
    grid = ((24, 28, 22), (8.0, 8.0, 8.0))
    first, same, other = (synthetic_brain(seed, *grid) for seed in (4, 4, 5))
    assert np.array_equal(first.image, same.image) and np.array_equal(first.label, same.label)
    assert not np.array_equal(first.image, other.image)
