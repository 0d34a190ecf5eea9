"""Small CT files of every format, folders of datasets and of slices, made in a temporary folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from mim_components.data.read import stream

SHAPE = (10, 12, 14)
AFFINE = np.diag([2.0, 3.0, 4.0, 1.0])


@pytest.fixture(params=["isal", "zlib"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> stream.Decoder:
    """Read deflated files with each installed implementation."""
    installed = {each.name: each for each in stream.installed_decoders()}
    if request.param not in installed:
        pytest.skip(f"{request.param} is not installed")
    monkeypatch.setattr(stream, "DECODER", installed[request.param])
    return installed[request.param]


@pytest.fixture
def lock(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Function that makes folders of a name unreadable, even for the administrator."""

    def lock_folders(name: str) -> None:
        for function in ("scandir", "listdir"):
            monkeypatch.setattr(os, function, _refusing(getattr(os, function), name))

    return lock_folders


def _refusing(function: Callable[[Any], Any], name: str) -> Callable[[Any], Any]:
    def call(folder: Any = ".") -> Any:
        if os.path.basename(folder) == name:
            raise PermissionError(13, "Permission denied", str(folder))
        return function(folder)

    return call


@pytest.fixture
def ct() -> np.ndarray:
    """int16 (10, 12, 14) in HU, with no two equal neighbours, so that a swapped axis is noticed."""
    return np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)


@pytest.fixture
def write_nifti(tmp_path: Path, ct: np.ndarray) -> Callable[..., Path]:
    """Write a NIfTI file below `tmp_path`; the CT if no array is given."""

    def write(name: str, array: np.ndarray | None = None, affine: np.ndarray | None = AFFINE) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(ct if array is None else array, affine), path)
        return path

    return write


def _dataset(uid: str, values: np.ndarray, position: Sequence[float], changes: dict[str, object]) -> pydicom.Dataset:
    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = CTImageStorage
    data.SOPClassUID = CTImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.3", uid
    data.PatientName, data.PatientID = "SECRET^NAME", "SECRET-ID"
    data.Modality, data.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.Rows, data.Columns = values.shape
    data.PixelSpacing = [1.5, 2.5]  # between rows (y), between columns (x)
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data.ImagePositionPatient = list(position)
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    data.PixelData = (values + 1024).astype(np.uint16).tobytes()
    for name, value in changes.items():
        setattr(data, name, value)
    return data


@pytest.fixture
def write_dicom(tmp_path: Path) -> Callable[..., list[Path]]:
    """Write an axial series: `volume` (x, y, z) in LPS, 3 mm slices, files in shuffled order; returns them by position.

    `changes` replaces tags of every slice.
    """

    def write(
        folder: str,
        volume: np.ndarray,
        uid: str = "1.2.3.4",
        suffix: str = ".dcm",
        positions: Sequence[float] | None = None,
        **changes: object,
    ) -> list[Path]:
        target = tmp_path / folder
        target.mkdir(parents=True, exist_ok=True)
        order = np.random.default_rng(1).permutation(volume.shape[2])
        heights = [10.0 + 3.0 * z for z in range(volume.shape[2])] if positions is None else positions
        paths = []
        for z in range(volume.shape[2]):
            path = target / f"{uid}_{order[z]:03d}{suffix}"
            position = (-20.0, -30.0, heights[z])
            _dataset(uid, volume[:, :, z].T, position, changes).save_as(path, enforce_file_format=True)
            paths.append(path)
        return paths

    return write


BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
CASE_AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


@pytest.fixture
def touch(tmp_path: Path) -> Callable[[Iterable[str]], Path]:
    """Create empty files below `tmp_path`, and return `tmp_path`."""

    def make(names: Iterable[str]) -> Path:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path

    return make


@pytest.fixture
def metadata() -> Callable[[str], dict[str, Any]]:
    """Section `dataset` of a bundle's metadata, by the middle of the bundle's name."""

    def read(name: str) -> dict[str, Any]:
        path = BUNDLES / f"mim_{name}_segmentation" / "configs" / "metadata.json"
        return json.loads(path.read_text())["dataset"]

    return read


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a NIfTI file below `tmp_path`: an array, or one made of a seed: an int the CT, "label" values 0 to 2."""

    def make(name: str, content: Any = 0, affine: np.ndarray = CASE_AFFINE) -> Path:
        if isinstance(content, int):
            content = random_ct(content)
        elif isinstance(content, str):
            content = np.arange(60).reshape(3, 4, 5).astype(np.uint8) % 3
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(content, affine), path)
        return path

    return make


def random_ct(seed: int = 0) -> np.ndarray:
    """int16 (3, 4, 5) in HU."""
    return np.random.default_rng(seed).integers(-1000, 1000, (3, 4, 5)).astype(np.int16)


SIZE = (24, 20)  # rows, columns


@pytest.fixture
def write_scan(tmp_path: Path) -> Callable[..., Path]:
    """Write a scan of noise below `tmp_path`, `0000.png` and so on; returns its folder."""

    def write(
        folder: str,
        count: int = 4,
        suffix: str = ".png",
        size: tuple[int, int] = SIZE,
        level: int = 0,
        seed: int = 0,
    ) -> Path:
        path = tmp_path / folder
        path.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([seed, count, *folder.encode()])
        for number in range(count):
            pixels = np.clip(rng.integers(0, 60, size) + level, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(path / f"{number:04d}{suffix}")
        return path

    return write
