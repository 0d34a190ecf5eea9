"""Damaged scans, as from hospitals, downloads and disks: how a good scan is changed, and the cause expected."""

from __future__ import annotations

import gzip
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from tests.faults.dicom_series import (
    series_cut_short,
    series_with_a_copy,
    series_with_a_gap,
    voxels_of,
    write_series,
)
from tests.nifti_bytes import patch

AFFINE = np.diag([1.5, 1.5, 3.0, 1.0])
HTML = b"<!DOCTYPE html><html><body>Please log in</body></html>" * 20
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
# bytes of a NIfTI header
DIM, DATATYPE, PIXDIM, VOX_OFFSET, SLOPE, CODES, SROW = 40, 70, 80, 108, 112, 252, 280


@dataclass(frozen=True)
class Damage:
    """A bad file.

    Args:
        id: id of the row.
        name: name of the file.
        fault: what is wrong with the file.
        injection: how the fault is made.
        cause: part of the cause that must be reported.
        make: writes the file; receives its path and that of a good scan beside it.
    """

    id: str
    name: str
    fault: str
    injection: str
    cause: str
    make: Callable[[Path, Path], Any]


def affine_of(scan: Path) -> np.ndarray:
    """4x4 affine of a NIfTI file."""
    return np.array(nib.load(scan).affine)  # type: ignore[attr-defined]


def write(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE, kind: Any = nib.Nifti1Image) -> Path:
    """Write a NIfTI file."""
    nib.save(kind(voxels, affine, dtype=voxels.dtype), path)
    return path


def with_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path, Path], Any]:
    """A copy of the good file with other bytes."""
    return lambda path, good: path.write_bytes(change(good.read_bytes()))


def with_header(*changes: tuple[int, bytes]) -> Callable[[Path, Path], Any]:
    """A copy of the good file with a patched header."""

    def make(path: Path, good: Path) -> None:
        shutil.copy(good, path)
        patch(path, *changes)

    return make


def with_voxels(change: Callable[[np.ndarray], np.ndarray], **options: Any) -> Callable[[Path, Path], Any]:
    """The good scan with other voxels; `change` receives a copy in float32."""
    return lambda path, good: write(path, change(voxels_of(good).astype(np.float32)), **options)


def with_voxel(value: float) -> Callable[[Path, Path], Any]:
    """The good scan with another value in one voxel."""

    def change(voxels: np.ndarray) -> np.ndarray:
        voxels[20, 20, 20] = value
        return voxels

    return with_voxels(change)


def flip(content: bytes, position: int) -> bytes:
    """The bytes with one bit flipped."""
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def dims(*sizes: int) -> tuple[int, bytes]:
    """A patch of `dim`: number of axes and their lengths."""
    return DIM, struct.pack(f"<{len(sizes)}h", *sizes)


def floats(offset: int, *values: float) -> tuple[int, bytes]:
    """A patch of floats."""
    return offset, struct.pack(f"<{len(values)}f", *values)


def only_qform() -> tuple[int, bytes]:
    """A patch that removes the sform."""
    return CODES, struct.pack("<2h", 1, 0)


def colours(voxels: np.ndarray) -> np.ndarray:
    """RGB of a scan's size."""
    return np.zeros(voxels.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])


def metaimage_without_voxels(path: Path, good: Path) -> None:
    """The header of a pair without the other file."""
    path.write_text(
        "ObjectType = Image\nNDims = 3\nDimSize = 44 42 36\nElementType = MET_SHORT\nElementDataFile = gone.raw\n"
    )


LARGE = dims(3, 1200, 1200, 973), (DATATYPE, struct.pack("<2h", 16, 32))  # float32


def uncompressed_claim(path: Path, good: Path) -> None:
    """The good scan without compression, and a header that claims 5.6 GB."""
    packed = path.with_suffix(".gz")
    with_header(*LARGE)(packed, good)
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()


SCANS = [
    Damage("C1", "half.nii.gz", ".nii.gz cut in half", "half of the bytes",
           "truncated: the compressed data end before", with_bytes(lambda content: content[: len(content) // 2])),
    Damage("C2", "trailer.nii.gz", ".nii.gz without its CRC trailer", "the last 8 bytes cut off",
           "truncated: the compressed data end before their end marker and checksum",
           with_bytes(lambda content: content[:-8])),
    Damage("C3", "flip.nii.gz", "bit flip in .nii.gz", "one bit of the compressed voxels turned",
           "damaged compressed data", with_bytes(lambda content: flip(content, len(content) // 2))),
    Damage("C3b", "checksum.nii.gz", "bit flip in the checksum", "one bit of the CRC turned",
           "damaged compressed data: CRC check failed", with_bytes(lambda content: flip(content, len(content) - 6))),
    Damage("C5", "empty.nii.gz", "0 byte", "an empty file", "the file is empty (0 bytes)",
           with_bytes(lambda content: b"")),
    Damage("C5b", "page.nii.gz", "HTML", "a web page under the name of a scan", "it is a web page",
           with_bytes(lambda content: HTML)),
    Damage("C5c", "pointer.nii.gz", "LFS pointer", "what git leaves when the file is not fetched",
           "it is a Git LFS pointer", with_bytes(lambda content: LFS * 8)),
    Damage("C5d", "folder.nii.gz", "directory", "a folder under the name of a scan", "is a folder, expected a file",
           lambda path, good: path.mkdir()),
    Damage("C5e", "missing.nii.gz", "missing", "a link whose file is gone", "a link to a file that does not exist",
           lambda path, good: path.symlink_to(path.with_name("gone"))),
    Damage("C5f", "loop.nii.gz", "symlink loop", "a link to itself", "a link that leads in a circle",
           lambda path, good: path.symlink_to(path)),
    Damage("C5g", "pipe.nii.gz", "FIFO", "mkfifo", "is not a regular file (FIFO, socket or device)",
           lambda path, good: os.mkfifo(path)),
    Damage("C5h", "esc\x1b[2J\nERROR faked.nii.gz", "a name made to deceive", "escape codes, line break",
           "the file is empty (0 bytes)", with_bytes(lambda content: b"")),
    Damage("C5i", "M\udcfcller.nii.gz", "a name in an old encoding", "0 byte, Latin-1 in the name",
           "the file is empty (0 bytes)", with_bytes(lambda content: b"")),
    Damage("C6", "nan.nii.gz", "all NaN", "np.nan in every voxel", "NaN or infinite values in 66,528 of 66,528 voxels",
           with_voxels(lambda voxels: np.full_like(voxels, np.nan))),
    Damage("C7", "one_nan.nii.gz", "one NaN voxel", "one voxel set", "NaN or infinite values in 1 of 66,528 voxels",
           with_voxel(np.nan)),
    Damage("C8", "one_inf.nii.gz", "one Inf voxel", "one voxel set", "NaN or infinite values in 1 of 66,528 voxels",
           with_voxel(np.inf)),
    Damage("C9", "slice.nii.gz", "2D", "a slice", "2D, shape (44, 42); expected a 3D volume",
           with_voxels(lambda voxels: voxels[..., 18])),
    Damage("C9b", "two.nii.gz", "4D of two volumes", "two volumes in a file",
           "4D, shape (44, 42, 36, 2); expected one 3D volume per file",
           with_voxels(lambda voxels: np.stack([voxels, voxels], axis=-1))),
    Damage("C9c", "colour.nii.gz", "RGB", "voxels of three bytes", "colour voxels (RGB), shape (44, 42, 36)",
           with_voxels(colours)),
    Damage("C9d", "complex.nii.gz", "complex", "complex64 voxels", "complex voxels, shape (44, 42, 36)",
           with_voxels(lambda voxels: voxels.astype(np.complex64))),
    Damage("C9e", "axis.nii.gz", "empty axis", "dim patched to 0", "shape (44, 0, 36) has an empty or negative axis",
           with_header(dims(3, 44, 0, 36))),
    Damage("C9f", "field.nii.gz", "deformation field", "5D, three numbers per voxel",
           "5D, shape (44, 42, 36, 1, 3); expected one 3D volume per file",
           with_voxels(lambda voxels: np.stack([voxels] * 3, axis=-1)[:, :, :, None])),
    Damage("C10", "singular.nii.gz", "singular affine", "a row of the sform set to 0", "the affine is singular",
           with_header(floats(SROW, 0, 0, 0, 0))),
    Damage("C10b", "affine_nan.nii.gz", "NaN affine", "NaN in the sform", "the affine is not finite",
           with_header(floats(SROW, np.nan))),
    Damage("C10c", "unplaced.nii.gz", "missing affine", "qform_code and sform_code 0", "the affine is missing",
           with_header((CODES, struct.pack("<2h", 0, 0)))),
    Damage("C10d", "far.nii.gz", "affine far away", "an origin of 1e30 mm in the sform",
           "the affine places the volume 1e+30 mm away", with_header(floats(SROW + 12, 1e30))),
    Damage("C10e", "spacing.nii.gz", "no spacing", "pixdim 0, and no sform",
           "the spacing is unknown: pixdim 0 x 0 x 0", with_header(floats(PIXDIM, 0, 0, 0), only_qform())),
    Damage("C17", "air.nii.gz", "all air", "filled with -1024", "constant: every voxel is -1024",
           with_voxels(lambda voxels: np.full_like(voxels, -1024))),
    Damage("C17b", "noise.nii.gz", "nothing but air", "noise around -1000 HU", "air only: values from",
           with_voxels(lambda voxels: voxels % 100 - 1000)),
    Damage("C18b", "unit.nii.gz", "a normalised scan", "scaled to 0..1", "not HU: values from 0 to 1 (normalised",
           with_voxels(lambda voxels: (voxels - voxels.min()) / np.ptp(voxels))),
    Damage("C18c", "sixteen.nii.gz", "uint16 beyond int16", "32768 added to every voxel", "are beyond int16",
           with_voxels(lambda voxels: (voxels + 33900).astype(np.uint16))),
    Damage("C18d", "huge.nii.gz", "a damaged float", "1e30 in one voxel", "are no intensities (damaged voxels?)",
           with_voxel(1e30)),
    Damage("C19", "garbage.nii.gz", "bytes after the end of the gzip data", "text appended",
           "damaged compressed data: Not a gzipped file", with_bytes(lambda content: content + HTML)),
    Damage("C19b", "again.nii.gz", "a download continued at the wrong place", "the file twice in a row",
           "but there are", with_bytes(lambda content: content * 2)),
    Damage("C19c", "twice.nii.gz", "compressed twice", "gzip of the .nii.gz", "not a NIfTI file: it begins with",
           with_bytes(gzip.compress)),
    Damage("C20", "offset.nii.gz", "voxels behind the end of the file", "vox_offset 1e9",
           "compressed bytes cannot hold that", with_header(floats(VOX_OFFSET, 1e9))),
    Damage("C20b", "intercept.nii.gz", "intercept NaN", "scl_inter patched", "damaged NIfTI header",
           with_header(floats(SLOPE, 1, np.nan))),
    Damage("C20c", "type.nii.gz", "unknown type of voxels", "datatype 9999", "damaged NIfTI header",
           with_header((DATATYPE, struct.pack("<h", 9999)))),
    Damage("C20d", "header.mhd", "a header whose voxels are missing", ".mhd without its .raw",
           "its data file 'gone.raw' is missing", metaimage_without_voxels),
    Damage("C21", "slice.dcm", "DICOM slice of 0 bytes", "an empty .dcm", "the file is empty (0 bytes)",
           with_bytes(lambda content: b"")),
    Damage("C21b", "text.dcm", ".dcm that is no DICOM", "no DICM mark", "not a volume: expected",
           with_bytes(lambda content: HTML)),
    Damage("C21c", "cut_short [1.2.3]", "DICOM slice cut short", "20 bytes of one slice cut off", "cannot be decoded",
           series_cut_short),
]  # fmt: skip

# series that are no volumes: they are skipped, with a note
SERIES = [
    Damage("C26", "gap", "DICOM series without a slice", "a slice removed",
           "uneven slice distances from 3.00 to 6.00 mm", series_with_a_gap),
    Damage("C26b", "copy", "DICOM slice there twice", "a file copied", "2 slices share one position",
           series_with_a_copy),
    Damage("C26c", "colour", "DICOM secondary capture", "SamplesPerPixel 3", "colour pictures with 3 values per pixel",
           lambda path, good: write_series(path, good, "1.3.3", SamplesPerPixel=3)),
    Damage("C26d", "scout", "DICOM localizer", "ImageType LOCALIZER", "ImageType LOCALIZER",
           lambda path, good: write_series(path, good, "1.3.4", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])),
    Damage("C26e", "mr", "DICOM series of another modality", "Modality MR", "Modality MR, expected CT",
           lambda path, good: write_series(path, good, "1.3.5", Modality="MR")),
    Damage("C26f", "pair.img", "formats that are not read", "an .img among the scans",
           "unsupported formats are skipped: 1 file: 1 .img", lambda path, good: shutil.copy(good, path)),
]  # fmt: skip

# label maps among the scans of a folder: they are passed over, and listed
LABEL_MAPS = [
    Damage("C18", "mask.nii.gz", "a label map among the scans", "values 0 to 3", "a label map?",
           with_voxels(lambda voxels: voxels // 500 % 4)),
    Damage("C18e", "scan_0_seg.nii.gz", "an empty label map, told by its name", "filled with 0",
           "called 'seg'; constant: every voxel is 0", with_voxels(np.zeros_like)),
]  # fmt: skip

# headers that claim more than any memory holds; the check must cost none
BOMBS = [
    Damage("C11", "bomb.nii.gz", "header 32767^3", "dim patched", "more than max_voxels=2,147,483,648",
           with_header(dims(3, 32767, 32767, 32767))),
    Damage("C11b", "bomb.nrrd", "header 1e5^3", "sizes of an NRRD", "more than max_voxels=2,147,483,648",
           lambda path, good: path.write_bytes(b"NRRD0004\ntype: short\ndimension: 3\nsizes: 100000 100000 100000\n"
                                               b"encoding: raw\nendian: little\n\n" + bytes(3000))),
    Damage("C11c", "negative.nii.gz", "negative dim", "dim patched", "has an empty or negative axis",
           with_header(dims(3, -44, 42, 36))),
    Damage("C11d", "seven.nii.gz", "32767^7", "dim patched", "7D, shape", with_header(dims(7, *[32767] * 7))),
    Damage("C12", "claim.nii.gz", "small file claiming 5.6 GB", "dim and datatype patched",
           "the header claims 5,604,480,352 bytes", with_header(*LARGE)),
    Damage("C12b", "claim.nii", "small file claiming 5.6 GB, not compressed", "dim and datatype patched",
           "the header claims 5,604,480,000 bytes, the file has 133,056", uncompressed_claim),
]  # fmt: skip
