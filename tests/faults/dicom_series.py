"""DICOM series made from a NIfTI scan, intact and damaged."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian


def voxels_of(scan: Path) -> np.ndarray:
    """Stored voxels (H, W, D) of a NIfTI file."""
    return np.asanyarray(nib.load(scan).dataobj)  # type: ignore[attr-defined]


def write_series(folder: Path, scan: Path, uid: str = "1.2.3", **changes: Any) -> list[Path]:
    """Write a scan as a DICOM series, one file per slice; `changes` replaces tags. Returns the files by position."""
    voxels, files = voxels_of(scan), []
    folder.mkdir(exist_ok=True)
    for number in range(voxels.shape[2]):
        data = pydicom.Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = CTImageStorage
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"{uid}.{number}"
        data.StudyInstanceUID, data.SeriesInstanceUID, data.Modality = "1.2", uid, "CT"
        data.Columns, data.Rows = voxels.shape[:2]
        data.PixelSpacing, data.ImageOrientationPatient = [1.5, 1.5], [1, 0, 0, 0, 1, 0]
        data.ImagePositionPatient = [0, 0, 3 * number]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.RescaleSlope, data.RescaleIntercept = 1, 0
        data.PixelData = voxels[..., number].T.astype("<i2").tobytes()
        for name, value in changes.items():
            setattr(data, name, value)
        files.append(folder / f"{uid}.{number}")
        data.save_as(files[-1], enforce_file_format=True)
    return files


def series_cut_short(path: Path, good: Path) -> None:
    """A series with one truncated slice."""
    cut = write_series(path.with_name("cut_short"), good)[18]
    cut.write_bytes(cut.read_bytes()[:-20])


def series_with_a_gap(folder: Path, good: Path) -> None:
    """A series with one missing slice."""
    write_series(folder, good, "1.3.1")[18].unlink()


def series_with_a_copy(folder: Path, good: Path) -> None:
    """A series with one duplicated slice."""
    shutil.copy(write_series(folder, good, "1.3.2")[18], folder / "copy")
