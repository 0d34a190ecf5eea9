"""A saved label map lies on its scan in world coordinates, whatever axes, tilt, spacing and format the scan has.

A block at a known position is segmented by a threshold in place of a network, through the transforms of the bundles.
"""

import gzip
import itertools
import logging

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.transforms import (
    Compose,
    CropForegroundd,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    ScaleIntensityRanged,
    Spacingd,
    SpatialPadd,
)

from mim_components.data import CheckedLoadImaged, NativeScans, ScanDataset, scan_items
from mim_components.handlers.saving.label_maps import SaveSegmentation
from mim_components.inferers import ClassMapInferer
from mim_components.labels import LabelSet
from mim_components.transforms.regions import LabelToRegions

ORGAN = LabelSet(("background", "organ"), {}, {})
BRATS = LabelSet(("background", "edema", "core", "enhancing"), {}, {"TC": (2, 3), "WT": (1, 2, 3), "ET": (3,)})
ROI = (32, 32, 32)
SHAPE, SPACING = (50, 44, 20), (0.8, 1.1, 2.5)
BLOCK = (slice(18, 33), slice(9, 21), slice(6, 13))  # centre at voxel (25, 14.5, 9)
CENTRE = (25.0, 14.5, 9.0)
CT = ScaleIntensityRanged("image", -175, 250, 0.0, 1.0, clip=True)


def grid(axes="RAS", tilt=(0.0, 0.0)):
    """Affine whose voxel axes point to `axes`, turned by `tilt` radians about x and z."""
    directions = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    (cx, sx), (cz, sz) = ((np.cos(angle), np.sin(angle)) for angle in tilt)
    turn = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([directions[axis] for axis in axes]).T @ np.diag(SPACING)
    affine[:3, 3] = (-31.0, 17.0, 240.5)
    return affine


GRIDS = {
    "RAS": grid(),
    "LPS": grid("LPS"),
    "PIR": grid("PIR"),
    "oblique": grid("LPS", (0.35, -0.2)),
    "oblique PIR": grid("PIR", (-0.15, 0.3)),
}


def block_scan():
    """A body of 0 HU in air, with a block of 200 HU in it."""
    voxels = np.full(SHAPE, -1000, dtype=np.int16)
    voxels[4:46, 3:40, 1:19] = 0
    voxels[BLOCK] = 200
    return voxels


class Threshold(torch.nn.Module):
    """Class 1 above a value between body (0.41 after scaling) and block (0.88)."""

    def forward(self, image):
        return torch.cat([torch.full_like(image, 0.65), image], 1)


class Regions(torch.nn.Module):
    """WT where the first channel is positive, TC the second, ET the third."""

    def forward(self, image):
        return image[:, [1, 0, 2]] - 0.5


def preprocessing(loader, intensity=CT, pixdim=(1.5, 1.5, 2.0)):
    labelled = {"keys": ["image", "label"], "allow_missing_keys": True}
    return Compose(
        [
            loader,
            EnsureChannelFirstd(**labelled),
            Orientationd(**labelled, axcodes="RAS", labels=None),
            Spacingd(**labelled, pixdim=pixdim, mode=["bilinear", "nearest"], dtype="float32"),
            intensity,
            CropForegroundd(**labelled, source_key="image", allow_smaller=True),
            SpatialPadd(**labelled, spatial_size=ROI),
        ]
    )


def segment(folder, output, network, labels=ORGAN, in_channels=1, loader=None, on_bad="stop", **options):
    modality = "CT" if in_channels == 1 else "MR"
    channels = ("flair", "t1", "t1ce", "t2") if in_channels == 4 else ()
    scans = NativeScans(in_channels, channels, modality)
    steps = preprocessing(loader or CheckedLoadImaged("image", scans), **options)
    items = scan_items(folder, scans, output, on_bad)
    if loader:
        items = [{**item, "image": item["source"]} for item in items]
    saver = SaveSegmentation(output, labels)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(ScanDataset(items, steps, on_bad), batch_size=1),
        network=network,
        inferer=ClassMapInferer(ROI, regions=labels.is_regions),
        postprocessing=Invertd("pred", steps, orig_keys="image", nearest_interp=True, to_tensor=True),
        val_handlers=[saver],
    )
    evaluator.run()
    return saver


def save_scan(path, affine, voxels=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(block_scan() if voxels is None else voxels, affine), path)
    return path


def world_centre(image):
    """Centre of the labelled voxels, mm RAS."""
    return nib.affines.apply_affine(image.affine, np.argwhere(np.asanyarray(image.dataobj)).mean(0))


def check_place(saved, affine):
    """Check that the centre, mm RAS, is that of the block within half a voxel of the scan."""
    away = np.linalg.inv(affine[:3, :3]) @ (world_centre(saved) - nib.affines.apply_affine(affine, CENTRE))
    assert np.abs(away).max() < 0.5, f"{away} voxels away"


@pytest.mark.parametrize("loader", [None, LoadImaged("image")], ids=["ours", "monai"])
@pytest.mark.parametrize("name", GRIDS)
def test_label_map_overlays_its_scan_in_the_world(tmp_path, name, loader):
    scan = nib.load(save_scan(tmp_path / "scan.nii.gz", GRIDS[name]))
    # finer than the scan, so that nothing is lost by rounding to the network's grid and back
    segment(tmp_path, tmp_path / "out", Threshold(), loader=loader, pixdim=(0.7, 0.7, 0.7))
    saved = nib.load(tmp_path / "out" / "scan_seg.nii.gz")
    assert saved.shape == scan.shape and saved.get_data_dtype() == np.uint8
    assert np.array_equal(saved.affine, scan.affine)
    check_place(saved, GRIDS[name])
    assert dice(saved) > 0.95


@pytest.mark.parametrize("name", GRIDS)
def test_coarser_grids_lose_no_more_than_half_of_their_voxel(tmp_path, name):
    save_scan(tmp_path / "scan.nii.gz", GRIDS[name])
    segment(tmp_path, tmp_path / "out", Threshold())
    saved = nib.load(tmp_path / "out" / "scan_seg.nii.gz")
    away = world_centre(saved) - nib.affines.apply_affine(GRIDS[name], CENTRE)
    # 1.5 mm of the network's grid, and what the scan's voxels round to
    assert np.linalg.norm(away) < 1.5 / 2 + max(SPACING[:2]) / 2
    assert dice(saved) > 0.85


def dice(saved):
    found, true = np.asanyarray(saved.dataobj) > 0, block_scan() == 200
    return 2 * (found & true).sum() / (found.sum() + true.sum())


def test_header_is_that_of_the_scan(tmp_path):
    image = nib.Nifti1Image(block_scan(), GRIDS["oblique"])
    image.set_qform(GRIDS["oblique"], 1)
    image.set_sform(GRIDS["oblique"], 4)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "both.nii")
    image.set_sform(None, 0)
    nib.save(image, tmp_path / "qform.nii")
    nib.save(nib.Nifti2Image(block_scan(), GRIDS["LPS"]), tmp_path / "two.nii.gz")
    image.set_qform(None, 0)
    nib.save(image, tmp_path / "neither.nii")
    segment(tmp_path, tmp_path / "out", Threshold())
    for path in tmp_path.glob("*.nii*"):
        scan = nib.load(path).header
        saved = nib.load(tmp_path / "out" / f"{path.name.split('.')[0]}_seg.nii.gz").header
        assert type(saved) is type(scan)
        for key in ("dim", "pixdim", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"):
            assert np.array_equal(saved[key], scan[key]), (path.name, key)
        for key in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"):
            assert saved[key] == scan[key], (path.name, key)
        assert saved["bitpix"] == 8 and saved.get_intent()[0] == "label"


@pytest.mark.parametrize("suffix", ["mha", "nrrd"])
def test_other_formats_get_both_forms(tmp_path, suffix):
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ GRIDS["oblique"]  # ITK's world is LPS
    image = itk.image_from_array(np.ascontiguousarray(block_scan().T))
    image.SetSpacing(SPACING)
    image.SetOrigin(affine[:3, 3])
    image.SetDirection(affine[:3, :3] / SPACING)
    itk.imwrite(image, str(tmp_path / f"scan.{suffix}"))
    segment(tmp_path, tmp_path / "out", Threshold(), pixdim=(0.7, 0.7, 0.7))
    saved = nib.load(tmp_path / "out" / "scan_seg.nii.gz")
    for form, code in (saved.get_qform(coded=True), saved.get_sform(coded=True)):
        np.testing.assert_allclose(form, GRIDS["oblique"], atol=1e-4)
        assert code == 1
    check_place(saved, GRIDS["oblique"])


def test_what_lies_beside_the_maps(tmp_path, caplog):
    save_scan(tmp_path / "a" / "scan.nii.gz", GRIDS["LPS"])
    save_scan(tmp_path / "b" / "scan.nii.gz", GRIDS["RAS"], np.where(block_scan() > 100, 0, block_scan()))
    save_scan(tmp_path / "air.nii.gz", GRIDS["RAS"], np.where(block_scan() > 100, -1000, -1024).astype(np.int16))
    with caplog.at_level(logging.INFO):
        segment(tmp_path, tmp_path / "out", Threshold())
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == [
        "a_scan_seg.nii.gz",
        "air_seg.nii.gz",
        "b_scan_seg.nii.gz",
        "labels.ctbl",
        "labels.txt",
        "results.csv",
        "volumes.csv",
    ]
    head, *rows = [line.split(",") for line in (tmp_path / "out" / "volumes.csv").read_text().splitlines()]
    assert head == ["case", "organ"] and [row[0] for row in rows] == ["a_scan", "air", "b_scan"]
    saved = np.asanyarray(nib.load(tmp_path / "out" / "a_scan_seg.nii.gz").dataobj)
    # a voxel has 0.8 x 1.1 x 2.5 = 2.2 cubic mm
    assert [float(row[1]) for row in rows] == [pytest.approx(saved.sum() * 2.2 / 1000, abs=1e-3), 0, 0]
    assert "1/3 " in caplog.text and "a_scan_seg.nii.gz: organ " in caplog.text
    for name in ("air.nii.gz", "b/scan.nii.gz"):
        assert f"{tmp_path / name}: nothing but background was found" in caplog.text
    assert "3 label maps: " in caplog.text


def test_results_are_equal_bytes_without_time(tmp_path):
    save_scan(tmp_path / "scan.nii.gz", GRIDS["RAS"])
    for output in ("one", "two"):
        segment(tmp_path / "scan.nii.gz", tmp_path / output, Threshold())
    first, second = ((tmp_path / output / "scan_seg.nii.gz").read_bytes() for output in ("one", "two"))
    assert first == second and gzip.decompress(first)[148:172].startswith(b"mim_components label map")


def test_four_channels_and_regions(tmp_path):
    voxels = np.zeros((*SHAPE, 4), dtype=np.float32)
    boxes = [(slice(10, 40), slice(6, 36), slice(3, 17)), (slice(16, 34), slice(9, 24), slice(6, 14)), BLOCK]
    for channel, box in enumerate(boxes):  # one inside the other
        voxels[(*box, channel)] = 1
    nib.save(nib.Nifti1Image(voxels, GRIDS["PIR"]), tmp_path / "BRATS_001.nii.gz")
    scaled = NormalizeIntensityd("image", subtrahend=0.0, divisor=1.0, channel_wise=False)
    segment(tmp_path, tmp_path / "out", Regions(), BRATS, 4, intensity=scaled, pixdim=SPACING)
    saved = nib.load(tmp_path / "out" / "BRATS_001_seg.nii.gz")
    expected = np.zeros(SHAPE, dtype=np.uint8)
    for number, box in enumerate(boxes, start=1):
        expected[box] = number
    # PIR's spacings are in another order, so the grid of the network is another one
    assert (np.asanyarray(saved.dataobj) == expected).mean() > 0.97
    head, row = [line.split(",") for line in (tmp_path / "out" / "volumes.csv").read_text().splitlines()]
    assert head == ["case", "edema", "core", "enhancing", "TC", "WT", "ET"]
    ml = dict(zip(head[1:], map(float, row[1:]), strict=True))
    assert ml["TC"] == pytest.approx(ml["core"] + ml["enhancing"], abs=0.002)
    assert ml["WT"] == pytest.approx(ml["TC"] + ml["edema"], abs=0.002) and ml["ET"] == ml["enhancing"]


@pytest.mark.parametrize("in_channels", [1, 4])
def test_unreadable_scans_are_left_out(tmp_path, caplog, in_channels):
    voxels = block_scan() if in_channels == 1 else np.stack([block_scan()] * 4, -1)
    good, bad = (save_scan(tmp_path / f"{name}.nii.gz", GRIDS["RAS"], voxels) for name in ("good", "bad"))
    bad.write_bytes(bad.read_bytes()[:-8])  # the checksum is missing
    network, labels = (Threshold(), ORGAN) if in_channels == 1 else (Regions(), BRATS)
    intensity = CT if in_channels == 1 else NormalizeIntensityd("image", nonzero=True, channel_wise=True)
    saver = segment(tmp_path, tmp_path / "out", network, labels, in_channels, on_bad="exclude", intensity=intensity)
    assert [each.path for each in saver.results.bad] == [str(bad)] and "truncated" in saver.results.bad[0].cause
    assert (tmp_path / "out" / "good_seg.nii.gz").exists() and not (tmp_path / "out" / "bad_seg.nii.gz").exists()
    assert "1 scan left out:\n  " in caplog.text and good.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"crop": 1}, r"x: pred has \(3, 5, 6\) voxels, its scan \(4, 5, 6\); use Invertd"),
        ({"move": 2.0}, "x: pred does not lie on its scan, its position differs by 2 x 0 x 0 mm"),
        ({"plain": True}, r"x: pred must be a MetaTensor \(C, H, W, D\) on the grid of its scan"),
    ],
)
def test_predictions_elsewhere_are_refused(tmp_path, change, message):
    path = save_scan(tmp_path / "x.nii.gz", np.eye(4), np.arange(120, dtype=np.int16).reshape(4, 5, 6))
    pred = torch.zeros_like(CheckedLoadImaged("image", NativeScans())({"image": path})["image"])
    pred.affine[0, 3] += change.get("move", 0)
    pred = pred[:, change.get("crop", 0) :]
    scan = {"name": "x", "pred": pred.as_tensor() if change.get("plain") else pred}
    if message is None:
        assert SaveSegmentation(tmp_path, ORGAN).save(scan) == (tmp_path / "x_seg.nii.gz", {"organ": 0.0})
        return
    with pytest.raises(ValueError, match=message):
        SaveSegmentation(tmp_path, ORGAN).save(scan)


def test_regions_of_every_class_come_back(tmp_path):
    path = save_scan(tmp_path / "x.nii.gz", np.eye(4), np.arange(120, dtype=np.int16).reshape(4, 5, 6))
    scan = CheckedLoadImaged("image", NativeScans())({"image": path})["image"]
    label = MetaTensor(scan % 4, meta=scan.meta)
    saved, ml = SaveSegmentation(tmp_path, BRATS).save({"name": "x", "pred": LabelToRegions(BRATS.regions)(label)})
    assert np.array_equal(np.asanyarray(nib.load(saved).dataobj), label[0].numpy())
    assert ml == pytest.approx({"edema": 0.03, "core": 0.03, "enhancing": 0.03, "TC": 0.06, "WT": 0.09, "ET": 0.03})


def test_grids_differ():
    codes = ["".join(nib.aff2axcodes(affine)) for affine in GRIDS.values()]
    assert codes == ["RAS", "LPS", "PIR", "LPS", "PIR"]
    assert all(not np.allclose(a, b) for a, b in itertools.combinations(GRIDS.values(), 2))
