"""Input scans of a segmentation: which are found, which are refused, and what is read."""

import logging
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from monai.transforms import EnsureChannelFirst, LoadImage
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from mim_components.data import (
    BadVolumesError,
    CheckedLoadImaged,
    CTScans,
    DataError,
    NativeScans,
    NoVolumesError,
    ScanDataset,
    VolumeSource,
    scan_items,
)
from mim_components.handlers.saving.label_maps import SaveSegmentation
from mim_components.labels import LabelSet

SHAPE = (10, 12, 14)
AFFINE = np.array([[0, -2.0, 0, 5], [-3.0, 0, 0, 6], [0, 0, 4.0, 7], [0, 0, 0, 1]])  # PLS axes
CHANNELS = ("flair", "t1", "t1ce", "t2")


def scan(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)


def write(path, voxels=None, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(scan() if voxels is None else voxels, affine), path)
    return path


def write_case(folder, channels=CHANNELS, **changes):
    for number, channel in enumerate(channels):
        write(folder / f"{folder.name}_{channel}.nii.gz", **{"voxels": scan(number), **changes.get(channel, {})})


def write_series(folder, volume, uid="1.2.3"):
    folder.mkdir(parents=True, exist_ok=True)
    for z in range(volume.shape[2]):
        data = pydicom.Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
        data.SeriesInstanceUID, data.Modality, data.ImageType = uid, "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.Rows, data.Columns = volume.shape[1], volume.shape[0]
        data.PixelSpacing, data.ImageOrientationPatient = [1.5, 2.5], [1, 0, 0, 0, 1, 0]
        data.ImagePositionPatient = [-20.0, -30.0, 10.0 + 3.0 * z]
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
        data.RescaleSlope, data.RescaleIntercept = 1, -1024
        data.PixelData = (volume[:, :, z].T + 1024).astype(np.uint16).tobytes()
        # neither names nor order of the files give the order of the slices
        data.save_as(folder / f"{uid}_{(7 * z) % 31:02d}.dcm", enforce_file_format=True)


def scans(in_channels=1, modality="CT"):
    return NativeScans(in_channels, CHANNELS if in_channels == 4 else (), modality)


def items(root, in_channels=1, **options):
    return scan_items(root, scans(in_channels), Path(root) / "out", **options)


def load(source, **options):
    return CheckedLoadImaged("image", scans(**options))({"image": source, "name": "x"})


# finding


def test_all_formats_at_any_depth(tmp_path):
    write(tmp_path / "a" / "ct.nii.gz")
    write(tmp_path / "b" / "c" / "ct.nii")
    for suffix in ("mha", "nrrd"):
        itk.imwrite(itk.image_from_array(scan()), str(tmp_path / f"{suffix}.{suffix}"))
    for uid in ("1.2.3", "1.2.4"):
        write_series(tmp_path / "dicom", scan(), uid)
    found = items(tmp_path)
    assert [item["name"] for item in found] == ["a_ct", "b_c_ct", "1.2.3", "1.2.4", "mha", "nrrd"]
    assert found[0]["source"] == str(tmp_path / "a" / "ct.nii.gz")
    assert [len(item["image"].files) for item in found] == [1, 1, 14, 14, 1, 1]
    assert [item["name"] for item in items(tmp_path / "a" / "ct.nii.gz")] == ["ct"]


def test_saved_label_maps_are_no_scans(tmp_path, caplog):
    path = write(tmp_path / "ct.nii.gz")
    pred = torch.ones_like(load(path)["image"])
    SaveSegmentation(tmp_path / "earlier", LabelSet(("background", "x"), {}, {})).save({"name": "ct", "pred": pred})
    with caplog.at_level(logging.INFO):
        assert [item["name"] for item in items(tmp_path)] == ["ct"]
    assert "1 label map saved by an earlier run skipped" in caplog.text
    with pytest.raises(NoVolumesError, match="holds no volumes"):
        items(tmp_path / "earlier" / "ct_seg.nii.gz")


def test_all_bad_headers_are_named_before_the_start(tmp_path):
    write(tmp_path / "good.nii.gz")
    write(tmp_path / "four.nii.gz", scan(shape=(4, 4, 4, 2)))
    (tmp_path / "page.nii.gz").write_text("<html>")
    (tmp_path / "empty.nii").touch()
    with pytest.raises(BadVolumesError) as caught:
        items(tmp_path)
    causes = {Path(bad.path).name: bad.cause for bad in caught.value.bad}
    assert set(causes) == {"four.nii.gz", "page.nii.gz", "empty.nii"}
    assert causes["four.nii.gz"] == "4D, shape (4, 4, 4, 2); expected one 3D volume per file"
    assert [item["name"] for item in items(tmp_path, on_bad="exclude")] == ["good"]


def test_wrong_settings():
    with pytest.raises(DataError, match="on_bad must be one of .*, got 'skip'"):
        scan_items("x", scans(), on_bad="skip")
    with pytest.raises(DataError, match="Give the scans: --dataset_dir"):
        scan_items(None, scans())
    with pytest.raises(ValueError, match=r"one name for each of in_channels=4, got \['t1', 't2'\]"):
        NativeScans(4, ("t1", "t2"))


def test_four_channels_in_one_file_or_four(tmp_path):
    write(tmp_path / "BRATS_001.nii.gz", scan(shape=(*SHAPE, 4)))
    for case in ("BraTS2021_00000", "BraTS2021_00002"):
        write_case(tmp_path / "train" / case, (*CHANNELS, "seg"))
    found = items(tmp_path, in_channels=4)
    assert [item["name"] for item in found] == ["BRATS_001", "BraTS2021_00000", "BraTS2021_00002"]
    files = [path.name for path in found[1]["image"].files]
    assert files == [f"BraTS2021_00000_{channel}.nii.gz" for channel in CHANNELS]


def test_four_channels_that_do_not_fit(tmp_path):
    write(tmp_path / "three.nii.gz")
    write(tmp_path / "five.nii.gz", scan(shape=(*SHAPE, 5)))
    write(tmp_path / "alone_seg.nii.gz")
    write_case(tmp_path / "a", ("t1", "t2"))
    write_case(tmp_path / "b", t1={"voxels": scan(shape=(4, 5, 6))})
    write_case(tmp_path / "c", t2={"voxels": scan(shape=(4, 5))})
    with pytest.raises(BadVolumesError) as caught:
        items(tmp_path, in_channels=4)
    causes = {Path(bad.path).name: bad.cause for bad in caught.value.bad}
    assert causes == {
        "three.nii.gz": "3D, shape (10, 12, 14); expected a 4D volume of 4 channels, or one file per channel: "
        "*_flair, *_t1, *_t1ce, *_t2",
        "alone_seg.nii.gz": causes["three.nii.gz"],
        "five.nii.gz": "4D, shape (10, 12, 14, 5); expected one 4D volume of 4 channels",
        "a": "the files of channels flair, t1ce are missing",
        "b": "b_t1.nii.gz: shape (4, 5, 6), b_flair.nii.gz has (10, 12, 14)",
        "c": "c_t2.nii.gz: 2D, shape (4, 5); expected a 3D volume",
    }


def test_channels_that_have_no_names_are_in_one_file(tmp_path):
    write(tmp_path / "two.nii.gz", scan(shape=(*SHAPE, 4)))
    write(tmp_path / "x_t1.nii.gz")
    with pytest.raises(BadVolumesError, match=r"x_t1.nii.gz: 3D, .*; expected a 4D volume of 4 channels\n"):
        scan_items(tmp_path, NativeScans(in_channels=4))


# reading


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_reads_what_monai_reads(tmp_path, dtype):
    image = nib.Nifti1Image(scan().astype(dtype), AFFINE)
    image.header.set_slope_inter(2.0, -5.0)
    nib.save(image, tmp_path / "x.nii.gz")
    ours, monai = load(tmp_path / "x.nii.gz")["image"], EnsureChannelFirst()(LoadImage()(tmp_path / "x.nii.gz"))
    assert ours.dtype == monai.dtype == torch.float32 and torch.equal(ours.as_tensor(), monai.as_tensor())
    torch.testing.assert_close(ours.affine, monai.affine, rtol=0, atol=0)
    assert EnsureChannelFirst()(ours).shape == ours.shape == (1, *SHAPE)
    assert ours.meta["scan_file"] == str(tmp_path / "x.nii.gz")


def test_series_keeps_its_own_axes(tmp_path):
    voxels = scan()
    for uid in ("1.2.3", "1.2.4"):
        write_series(tmp_path, voxels if uid == "1.2.4" else voxels[::-1], uid)
    image = load(items(tmp_path)[1]["image"])["image"]
    assert torch.equal(image[0].as_tensor(), torch.from_numpy(voxels.astype(np.float32)))
    # LPS becomes RAS: x and y change sign
    expected = [[-2.5, 0, 0, 20], [0, -1.5, 0, 30], [0, 0, 3, 10], [0, 0, 0, 1]]
    np.testing.assert_allclose(image.affine, expected, atol=1e-9)


def test_channels_are_in_the_order_of_the_network(tmp_path):
    write_case(tmp_path / "x")
    joined = load(items(tmp_path, 4)[0]["image"], in_channels=4, modality="MR")["image"]
    assert joined.shape == (4, *SHAPE)
    assert all(torch.equal(joined[n].as_tensor(), torch.from_numpy(scan(n).astype(np.float32))) for n in range(4))
    voxels = np.stack([scan(n) for n in range(4)], -1)
    single = load(write(tmp_path / "y.nii.gz", voxels), in_channels=4, modality="MR")["image"]
    assert torch.equal(single.as_tensor(), joined.as_tensor())


def test_channels_that_do_not_lie_on_each_other(tmp_path):
    moved = AFFINE.copy()
    moved[2, 3] += 4
    write_case(tmp_path / "x", t1ce={"affine": moved})
    with pytest.raises(BadVolumesError, match=r"x_t1ce.nii.gz: its position differs by 0 x 0 x 4 mm"):
        load(items(tmp_path, 4)[0]["image"], in_channels=4, modality="MR")


def damaged(path):
    data = bytearray(write(path).read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path


def test_unreadable_scans_stop_or_are_left_out(tmp_path):
    path = damaged(tmp_path / "x.nii.gz")
    with pytest.raises(BadVolumesError, match="x.nii.gz: damaged compressed data"):
        load(path)
    write(tmp_path / "y.nii.gz")
    bad, good = ScanDataset(items(tmp_path), CheckedLoadImaged("image", scans()))
    assert bad["cause"].startswith("damaged compressed data") and bad["image"].shape == (1, 1, 1, 1)
    assert good["cause"] == "" and good["image"].shape == (1, *SHAPE)
    with pytest.raises(RuntimeError, match="applying transform") as caught:  # MONAI's error, raised from ours
        ScanDataset(items(tmp_path), CheckedLoadImaged("image", scans()), on_bad="stop")[0]
    assert isinstance(caught.value.__cause__, BadVolumesError)


@pytest.mark.parametrize(
    ("voxels", "message"),
    [
        (np.where(scan() > 900, np.nan, 1.0).astype(np.float32), "NaN or infinite values in"),
        ((scan() > 0).astype(np.int16), "normalised, or a mask"),
        (np.full(SHAPE, -1000, dtype=np.int16), "constant: every voxel is -1000"),
    ],
)
def test_what_is_no_ct(tmp_path, voxels, message):
    with pytest.raises(BadVolumesError, match=message):
        load(write(tmp_path / "x.nii.gz", voxels))


def test_air_is_read_with_a_warning(tmp_path, caplog):
    voxels = scan() // 100 - 1000
    image = load(write(tmp_path / "x.nii.gz", voxels.astype(np.int16)))["image"]
    assert torch.equal(image[0].as_tensor(), torch.from_numpy(voxels.astype(np.float32)))
    assert "nothing to see" in caplog.text


def test_paths_and_sources_are_alike(tmp_path):
    path = write(tmp_path / "x.nii.gz")
    assert torch.equal(load(path)["image"].as_tensor(), load(VolumeSource(path, (path,)))["image"].as_tensor())


@pytest.mark.parametrize("scans", [NativeScans(), CTScans()], ids=["segmentation", "encoder"])
def test_scan_without_orientation_is_read_with_a_warning(tmp_path, caplog, scans):
    image = nib.Nifti1Image(scan(), None)
    image.header.set_qform(None, 0)
    image.header.set_sform(None, 0)
    image.to_filename(tmp_path / "a.nii")
    write(tmp_path / "b.nii")
    with caplog.at_level(logging.WARNING):
        items = scan_items(tmp_path, scans)
    assert [item["cause"] for item in items] == ["", ""]
    (text,) = caplog.messages
    assert text.startswith(f"{tmp_path}/a.nii: neither qform nor sform is set") and text.endswith("may be swapped")


def test_warning_about_a_channel_names_its_file(tmp_path, caplog):
    write_case(tmp_path / "x", t1={"affine": None})
    with caplog.at_level(logging.WARNING):
        scan_items(tmp_path, NativeScans(in_channels=4, channels=CHANNELS, modality="MR"))
    (text,) = caplog.messages
    assert "x_t1.nii.gz: neither qform nor sform is set" in text
