import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mim_tools.synthetic import (
    DESCRIPTION,
    SYNTHETIC_LABELS,
    SYNTHETIC_VERSION,
    synthetic_ct,
    write_synthetic_dataset,
)
from mim_tools.synthetic.__main__ import main
from mim_tools.synthetic.grid import Pose, RandomField
from mim_tools.synthetic.scanner import Scanner
from mim_tools.synthetic.shapes import Points, capsule, ellipsoid

NUMBER = {name: number for number, name in SYNTHETIC_LABELS.items()}
LESIONS = {"lung_lesion", "liver_lesion", "kidney_lesion"}
SIZE, SPACING, CENTER = (74, 56, 88), (5.5, 5.4, 7.6), (0.0, 0.0, 10.0)  # thorax to pelvis in 0.36 million voxels
SMALL = {"spatial_size": (20, 18, 12), "spacing": (16.0, 16.0, 30.0)}


@pytest.fixture(scope="module")
def bodies():
    return {phase: synthetic_ct(5, SIZE, SPACING, CENTER, phase) for phase in ("none", "portal")}


def digest(ct):
    return hashlib.sha256(ct.image.tobytes() + ct.label.tobytes() + ct.affine.tobytes()).hexdigest()


def volume_ml(ct, name):
    return float((ct.label == NUMBER[name]).sum() * np.prod(ct.spacing) / 1000)


def centroid_mm(ct, name):
    voxels = np.argwhere(ct.label == NUMBER[name])
    return ct.affine[:3, :3] @ voxels.mean(0) + ct.affine[:3, 3]


def values(ct, *names):
    return ct.image[np.isin(ct.label, [NUMBER[name] for name in names])].astype(float)


def at(*points):
    x, y, z = np.array(points, dtype=np.float32).T
    return Points(x, y, z, {})


def test_distance_to_a_tube_is_exact():
    tube = capsule((0, 0, 0), (0, 0, 10), 2.0, 2.0)
    got = tube.distance(at((0, 0, 5), (5, 0, 5), (0, 0, 13), (3, 4, 10)))
    np.testing.assert_allclose(got, [-2, 3, 1, 3], atol=1e-5)  # inside, beside, above the end, beside the end: 5 - 2
    np.testing.assert_array_equal(tube.bounds, [[-2, -2, -2], [2, 2, 12]])


def test_ellipsoid_turned_by_90_degrees_swaps_its_axes():
    turned = ellipsoid((1, 0, 0), (10, 2, 3), (0, 0, 90))
    np.testing.assert_allclose(turned.bounds, [[-1, -10, -3], [3, 10, 3]], atol=1e-9)
    on_surface = turned.distance(at((1, 10, 0), (3, 0, 0), (1, 0, -3)))
    np.testing.assert_allclose(on_surface, 0, atol=1e-4)


def test_random_field_depends_on_the_place_alone():
    field = RandomField(np.random.default_rng(0), pitch=7.0, count=12)
    coarse, fine = np.arange(0, 30, 6.0), np.arange(0, 30, 2.0)
    on_fine = field.on_grid([field.weights(axis) for axis in (fine, fine, fine)])
    on_coarse = field.on_grid([field.weights(axis) for axis in (coarse, coarse, coarse)])
    np.testing.assert_allclose(on_coarse, on_fine[::3, ::3, ::3], atol=1e-5)
    places = np.array([[6.0, 12.0, 24.0], [0.0, 18.0, 6.0]])
    np.testing.assert_allclose(field.at(places)[:, 0], [on_coarse[1, 2, 4], on_coarse[0, 3, 1]], atol=1e-5)


def test_same_seed_gives_the_same_bits_and_other_seeds_differ():
    assert digest(synthetic_ct(3, **SMALL)) == digest(synthetic_ct(3, **SMALL))
    assert len({digest(synthetic_ct(seed, **SMALL)) for seed in (3, 4, 5)}) == 3


def test_volume_in_blocks_equals_volume_at_once(monkeypatch):
    whole = synthetic_ct(1, (40, 30, 24), (9.0, 9.0, 25.0))
    monkeypatch.setattr("mim_tools.synthetic.generate._BLOCK_VOXELS", 6000)  # 8 planes a block
    blocks = synthetic_ct(1, (40, 30, 24), (9.0, 9.0, 25.0))
    assert np.mean(whole.label != blocks.label) < 1e-4  # matrix products of another shape may round differently
    assert np.mean(np.abs(whole.image.astype(int) - blocks.image) > 1) < 1e-4


def test_bounding_boxes_cut_no_organ(monkeypatch):
    grid = dict(spatial_size=(34, 25, 44), spacing=(11.0, 11.0, 15.0), center=CENTER)
    tight = synthetic_ct(2, **grid)
    boxes = Pose.world_boxes
    monkeypatch.setattr(Pose, "world_boxes", lambda self, bounds, margin: boxes(self, bounds, margin + 60))
    loose = synthetic_ct(2, **grid)
    assert np.array_equal(tight.label, loose.label)
    assert np.array_equal(tight.image, loose.image)


@pytest.mark.parametrize("size", [(33, 40, 21), (1, 7, 3), (5, 64, 1)])
def test_any_size(size):
    ct = synthetic_ct(4, size, (7.0, 6.0, 8.0))
    assert ct.image.shape == ct.label.shape == size
    assert (ct.image.dtype, ct.label.dtype) == (np.int16, np.uint8)
    assert ct.image.min() >= -1024 and ct.image.max() <= 3071


def test_center_is_the_middle_of_the_grid():
    ct = synthetic_ct(0, (3, 4, 5), (2.0, 3.0, 4.0), center=(10, 20, 30))
    middle = ct.affine @ [1, 1.5, 2, 1]  # (size - 1) / 2
    np.testing.assert_allclose(middle, [10, 20, 30, 1])


def test_small_field_of_view_lies_in_the_body():
    for seed in range(2):
        assert np.mean(synthetic_ct(seed, (24, 24, 24), (3.0, 3.0, 3.0)).label > 0) > 0.5


def test_all_organs_are_in_a_whole_body(bodies):
    found = {SYNTHETIC_LABELS[number] for number in np.unique(bodies["portal"].label)}
    assert found | LESIONS == set(SYNTHETIC_LABELS.values())
    assert list(SYNTHETIC_LABELS) == list(range(len(SYNTHETIC_LABELS))) and SYNTHETIC_LABELS[0] == "background"


def test_number_of_lesions_depends_on_the_seed():
    counts = []
    for seed in (0, 7):
        label = synthetic_ct(seed, (66, 50, 52), (6.0, 6.0, 8.0), (0, 0, 90)).label
        counts.append(tuple(bool((label == NUMBER[name]).any()) for name in sorted(LESIONS)))
    assert len(set(counts)) > 1 and any(any(found) for found in counts)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("liver", 800, 2200),
        ("spleen", 90, 450),
        ("right_kidney", 70, 280),
        ("left_kidney", 70, 280),
        ("right_lung", 1000, 3000),
        ("left_lung", 900, 2900),
        ("heart", 350, 900),
        ("aorta", 120, 400),
        ("pancreas", 30, 140),
        ("vertebrae", 350, 1000),
    ],
)
def test_volumes_are_those_of_adults(bodies, name, low, high):
    assert low < volume_ml(bodies["none"], name) < high


def test_patient_right_is_at_positive_x(bodies):
    ct = bodies["none"]
    for organ in ("kidney", "lung", "adrenal"):
        assert centroid_mm(ct, f"right_{organ}")[0] > 10 > -10 > centroid_mm(ct, f"left_{organ}")[0]
    assert centroid_mm(ct, "liver")[0] > 20 and centroid_mm(ct, "spleen")[0] < -40
    assert centroid_mm(ct, "sternum")[1] > centroid_mm(ct, "heart")[1] > centroid_mm(ct, "vertebrae")[1]
    assert centroid_mm(ct, "heart")[2] > centroid_mm(ct, "liver")[2] > centroid_mm(ct, "bladder")[2]


def test_intensity_does_not_tell_left_from_right():
    ct = synthetic_ct(5, (100, 60, 60), (2.5, 2.5, 3.0), (0, -25, -15), "none")
    right, left = values(ct, "right_kidney"), values(ct, "left_kidney")
    assert min(len(right), len(left)) > 1000
    assert abs(right.mean() - left.mean()) < 0.5 * min(right.std(), left.std())


def test_organs_overlap_in_intensity_and_lungs_are_air_like(bodies):
    for phase, ct in bodies.items():
        assert abs(values(ct, "liver").mean() - values(ct, "spleen").mean()) < 30, phase
        assert -900 < np.median(values(ct, "right_lung", "left_lung")) < -700
        assert -130 < np.median(values(ct, "subcutaneous_fat")) < -60
        assert values(ct, "vertebrae").mean() > 150
    gain = np.median(values(bodies["portal"], "aorta")) - np.median(values(bodies["none"], "aorta"))
    assert gain > 60


def test_organs_lie_inside_the_body(bodies):
    label = bodies["none"].label
    organ = label > NUMBER["muscle"]
    outside = label == NUMBER["background"]
    for axis in (0, 1):  # the body ends between any organ and the air; the trunk goes on above and below
        assert not (organ & np.roll(outside, 1, axis)).any() and not (organ & np.roll(outside, -1, axis)).any()


def test_anatomy_does_not_depend_on_spacing():
    fine = synthetic_ct(8, (140, 104, 72), (2.8, 2.8, 4.0), (0, 0, 20), "portal")
    coarse = synthetic_ct(8, (80, 56, 58), (4.9, 5.2, 5.0), (0, 0, 20), "portal")
    for name in ("liver", "spleen", "right_kidney", "left_kidney", "heart", "aorta", "stomach", "vertebrae"):
        assert volume_ml(coarse, name) == pytest.approx(volume_ml(fine, name), rel=0.05), name
        np.testing.assert_allclose(centroid_mm(coarse, name), centroid_mm(fine, name), atol=1.5, err_msg=name)


def test_phase_changes_contrast_and_no_label(bodies):
    assert np.array_equal(bodies["none"].label, bodies["portal"].label)
    assert not np.array_equal(bodies["none"].image, bodies["portal"].image)
    drawn = {synthetic_ct(seed, (4, 4, 4), (9.0, 9.0, 9.0)).phase for seed in (0, 1, 3, 4)}
    assert drawn == {"none", "arterial", "portal", "delayed"}


def test_noise_after_blur_has_the_wanted_standard_deviation():
    scanner = Scanner(0, (0.7, 0.7, 2.0), -100.0)
    image = np.zeros((40, 60, 60), dtype=np.float32)
    scanner.add_noise(image, np.full(image.shape, -60.5, dtype=np.float32), 0)
    scanner.blur(image)
    assert image[5:-5, 5:-5, 5:-5].std() == pytest.approx(scanner.noise, rel=0.03)  # 0.45 + 60.5 / 110 = 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed must be 0 or more, got seed=-1"),
        ({"spatial_size": (0, 4, 4)}, r"spatial_size must be three whole numbers of 1 or more, got .*\(0, 4, 4\)"),
        ({"spatial_size": (4, 4)}, r"spatial_size must be three .*\(4, 4\)"),
        ({"spacing": (1.0, 0.0, 1.0)}, r"spacing must be three positive numbers in mm, got .*\(1.0, 0.0, 1.0\)"),
        ({"spacing": (1.0, float("nan"), 1.0)}, "spacing must be three positive"),
        ({"center": (0, 0)}, r"center must be three finite numbers in mm, got center=\(0, 0\)"),
        ({"phase": "venous"}, "phase must be one of .* got phase='venous'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        synthetic_ct(**{"seed": 0, **arguments})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folder of two volumes."""
    folder = tmp_path_factory.mktemp("written")
    files = write_synthetic_dataset(folder, 2, seed=7, **SMALL)
    assert files == [folder / "images" / f"synthetic_ct_000{index}.nii.gz" for index in range(2)]
    return folder


def test_files_name_themselves_synthetic(written):
    image_path = written / "images" / "synthetic_ct_0001.nii.gz"
    for kind, path in (("image", image_path), ("label", written / "labels" / "synthetic_ct_0001_label.nii.gz")):
        image = nib.load(path)
        assert image.shape == SMALL["spatial_size"]
        assert image.get_data_dtype() == {"image": np.int16, "label": np.uint8}[kind]
        assert bytes(image.header["descrip"]).rstrip(b"\0").decode() == DESCRIPTION == "synthetic CT, not a patient"
        np.testing.assert_allclose(image.header.get_zooms(), SMALL["spacing"])
        assert image.header.get_xyzt_units()[0] == "mm"
        np.testing.assert_allclose(image.get_sform(), image.affine)
        np.testing.assert_allclose(image.get_qform(), image.affine, atol=1e-4)
        recipe = json.loads(image.header.extensions[0].text)
        made = synthetic_ct(recipe["seed"], recipe["spatial_size"], recipe["spacing"])
        assert recipe["version"] == SYNTHETIC_VERSION and recipe["kind"] == kind
        assert np.array_equal(np.asanyarray(image.dataobj), getattr(made, kind))
        np.testing.assert_allclose(image.affine, made.affine, atol=1e-3)


def test_list_is_in_the_decathlon_layout(written):
    content = json.loads((written / "dataset.json").read_text())
    assert content["name"] == "synthetic CT" and "not a patient" in content["description"]
    assert content["modality"] == {"0": "CT"} and content["numTraining"] == 2
    assert content["labels"] == {str(number): name for number, name in SYNTHETIC_LABELS.items()}
    for item in content["training"]:
        assert (written / item["image"]).is_file() and (written / item["label"]).is_file()
    assert not [path for path in written.rglob("*") if "partial" in path.name]


def test_without_labels_the_folder_has_images_only(tmp_path):
    write_synthetic_dataset(tmp_path, 1, with_labels=False, **SMALL)
    assert not (tmp_path / "labels").exists()
    assert json.loads((tmp_path / "dataset.json").read_text())["training"] == [
        {"image": "./images/synthetic_ct_0000.nii.gz"}
    ]


def test_second_run_keeps_whole_files_and_mends_the_others(tmp_path, monkeypatch):
    files = write_synthetic_dataset(tmp_path, 3, **SMALL)
    before = [path.read_bytes() for path in files]
    files[1].write_bytes(before[1][:-4])  # as after a full disk: only the length after the checksum is missing
    files[2].write_bytes(b"<html>")
    stamps = [path.stat().st_mtime_ns for path in files]
    write_synthetic_dataset(tmp_path, 3, **SMALL)
    assert [path.read_bytes() for path in files] == before
    assert [path.stat().st_mtime_ns == stamp for path, stamp in zip(files, stamps, strict=True)] == [True, False, False]

    def refuse(*arguments):
        raise AssertionError("nothing is missing")

    monkeypatch.setattr("mim_tools.synthetic.dataset.synthetic_ct", refuse)
    write_synthetic_dataset(tmp_path, 3, **SMALL)
    with pytest.raises(AssertionError, match="nothing is missing"):
        write_synthetic_dataset(tmp_path, 1, spatial_size=SMALL["spatial_size"], spacing=(16.0, 16.0, 31.0))


def test_vary_changes_the_grid_within_its_limits(tmp_path):
    files = write_synthetic_dataset(
        tmp_path, 4, spatial_size=(20, 20, 10), spacing=(16.0, 16.0, 30.0), with_labels=False, vary=True
    )
    images = [nib.load(path) for path in files]
    assert len({image.shape for image in images}) > 1
    for image in images:
        assert all(0.9 * side <= got <= 1.1 * side for side, got in zip((20, 20, 10), image.shape, strict=True))
        ratio = np.array(image.header.get_zooms()) / (16.0, 16.0, 30.0)
        assert ratio.min() >= 0.8 - 1e-3 and ratio.max() <= 1.2 + 1e-3 and ratio[0] == pytest.approx(ratio[1])


def test_command(tmp_path, capsys):
    grid = ["--spatial_size", "12", "10", "8", "--spacing", "30", "30", "60"]
    assert main([str(tmp_path / "out"), "--num_volumes", "1", "--seed", "2", *grid]) == 0
    assert "not a patient" in capsys.readouterr().out
    assert (tmp_path / "out" / "images" / "synthetic_ct_0000.nii.gz").is_file()
    assert main([str(tmp_path / "out"), "--num_volumes", "0"]) == 1
    assert "num_volumes must be 1 or more, got num_volumes=0" in capsys.readouterr().err


def test_processes_may_write_the_same_dataset_at_once(tmp_path, monkeypatch):
    replace, waiting = Path.replace, [True]

    def overtaken(beside, path):
        if waiting:  # before the first file gets its name, another process writes all of them
            waiting.clear()
            write_synthetic_dataset(tmp_path, 1, **SMALL)
        replace(beside, path)

    monkeypatch.setattr(Path, "replace", overtaken)
    (image,) = write_synthetic_dataset(tmp_path, 1, **SMALL)
    assert nib.load(image).shape == (20, 18, 12)
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]
