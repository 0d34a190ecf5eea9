"""Of a header, only the geometry reaches logs, caches, trackers and outputs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import monai
import nibabel as nib
import numpy as np
import pydicom
import pytest
from nibabel.nifti1 import Nifti1Extension
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from mim_components.data import prepare_volumes
from mim_components.data.find.walk import find_volumes
from mim_tools.synthetic.layouts import write_synthetic_layout
from tests.personal import assert_none_in, content_of, everything_logged
from tests.small import SMALL

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
PERSON = "DOE^JANE"
NIFTI_FIELDS = ("descrip", "aux_file", "intent_name", "db_name")
DICOM_TAGS = (
    "PatientName PatientID OtherPatientIDs PatientComments ReferringPhysicianName InstitutionName StudyDescription "
    "SeriesDescription ProtocolName OperatorsName AccessionNumber StationName"
).split()
OPTIONS = SMALL | {"log_interval": 1, "global_batch_size": 1, "max_steps": 2}


def mark(path: Path) -> None:
    """Write the name into every text that a NIfTI header has."""
    image = nib.load(path)
    voxels = np.asanyarray(image.dataobj)
    marked = nib.Nifti1Image(voxels, image.affine, image.header)
    for field in NIFTI_FIELDS:
        marked.header[field] = PERSON
    marked.header.extensions.append(Nifti1Extension("comment", PERSON.encode()))
    nib.save(marked, path)
    assert PERSON.encode() in content_of(path)


def write_series(folder: Path, voxels: np.ndarray, uid: str) -> None:
    folder.mkdir(parents=True)
    for z in range(voxels.shape[2]):
        data = pydicom.Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
        for tag in DICOM_TAGS:
            setattr(data, tag, PERSON)
        data.add_new(0x00091010, "LO", PERSON)  # private
        data.SeriesInstanceUID, data.Modality, data.ImageType = uid, "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.Rows, data.Columns = voxels.shape[1], voxels.shape[0]
        data.PixelSpacing, data.ImageOrientationPatient = [1.5, 1.5], [1, 0, 0, 0, 1, 0]
        data.ImagePositionPatient = [0.0, 0.0, 3.0 * z]
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
        data.RescaleSlope, data.RescaleIntercept = 1, -1024
        data.PixelData = (voxels[:, :, z].T + 1024).astype(np.uint16).tobytes()
        data.save_as(folder / f"{z}.dcm", enforce_file_format=True)


def assert_nobody_in(folder: Path, at_least: int) -> None:
    names = [PERSON, PERSON.replace("^", "_"), "DOE", "JANE"]
    forms = [name.encode(code) for name in names[:2] for code in ("utf-8", "utf-16-le")] + [b"JANE"]
    assert_none_in(folder, at_least, forms, names)


@pytest.fixture
def said() -> Iterator[list[str]]:
    """Everything that is logged by any logger."""
    with everything_logged() as records:
        yield records
    assert records
    assert not any("JANE" in record for record in records)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A NIfTI file and two DICOM series, one of them with the name as its UID."""
    folder = tmp_path / "scans"
    folder.mkdir()
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (44, 42, 36)), indexing="ij")
    noise = np.random.default_rng(0).normal(0, 20, x.shape)
    body = (np.where(x**2 + y**2 < 0.7, 40.0, -1000.0) + np.where(z**2 < 0.1, 300.0, 0) + noise).clip(-1024)
    nib.save(nib.Nifti1Image(body.astype(np.int16), np.diag([1.5, 1.5, 3.0, 1.0])), folder / "a.nii.gz")
    mark(folder / "a.nii.gz")
    write_series(folder / "b", (body + 1).astype(np.int16), "1.2.3.4")
    with pytest.warns(UserWarning, match="Invalid value for VR UI"):
        write_series(folder / "c", (body + 2).astype(np.int16), PERSON)
    return folder


def run(bundle: str, *names: str, **options: Any) -> None:
    monai.bundle.run(
        config_file=[str(BUNDLES / bundle / "configs" / f"{name}.json") for name in names],
        logging_file=False,
        **options,
    )


def test_prepare(scans: Path, tmp_path: Path, said: list[str]) -> None:
    found = find_volumes(scans)
    dataset = prepare_volumes(found, tmp_path / "cache", progress=False)
    assert len(dataset) == 3
    assert_nobody_in(tmp_path / "cache", 6)
    assert "JANE" not in "\n".join([*found.notes, *dataset.notes, dataset.summary(), *map(str, found.sources)])


@pytest.mark.slow
def test_pretraining_and_its_inference(scans: Path, tmp_path: Path, said: list[str]) -> None:
    out = tmp_path / "out"
    levels = {"level_sizes": [[40, 40, 32], [16, 16, 16], [8, 8, 8]], "input_size": [32, 32, 32], "projection_dim": 16}
    given = {**OPTIONS, **levels, "dataset_dir": str(scans), "output_dir": str(out), "batch_size": 1}
    store = f"sqlite:///{out / 'mlruns.db'}"
    run("mim_pretrain", "train", **given, cache_dir=str(out / "cache"), tracking_uri=store, warmup_steps=1)
    inference = {name: given[name] for name in ("preset", "device", "dataset_dir", "output_dir", *levels)}
    run("mim_pretrain", "inference", **inference)
    assert len(list((out / "inference").glob("*.nii.gz"))) == 6  # masked and reconstructed
    assert_nobody_in(out, 20)


@pytest.mark.slow
def test_segmentation_and_its_inference(tmp_path: Path, said: list[str]) -> None:
    data = write_synthetic_layout(tmp_path / "data", "btcv", 5, spatial_size=(40, 40, 36))
    paths = sorted(data.rglob("*.nii.gz"))
    for path in paths:
        mark(path)
    out = tmp_path / "out"
    space = {"spacing": [9.0, 9.0, 9.0], "roi_size": [32, 32, 32], "overlap": 0.0}
    given = {**OPTIONS, **space, "dataset_dir": str(data), "output_dir": str(out)}
    training = {**given, "pretrained": "none", "num_samples": 1, "validation_steps": 2, "cache_dir": str(out / "cache")}
    training["tracking_uri"] = f"sqlite:///{out / 'mlruns.db'}"
    run("mim_btcv_segmentation", "train", **training)
    run("mim_btcv_segmentation", "train", "evaluate", **training)
    run("mim_btcv_segmentation", "inference", **{name: given[name] for name in ("preset", "device", *space)},
        dataset_dir=str(paths[0].parent), output_dir=str(out))  # fmt: skip
    assert list((out / "inference").glob("*_seg.nii.gz"))
    assert json.loads((out / "evaluation" / "metrics.json").read_text())
    assert_nobody_in(out, 20)
