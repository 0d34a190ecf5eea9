"""Read the header of a volume without its voxels: NIfTI with nibabel, MetaImage and NRRD as text.

Also computes how large scans will be after resampling.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data.utils import correct_nifti_header_if_necessary
from nibabel.imageglobals import LoggingOutputSuppressor
from nibabel.spatialimages import HeaderDataError

from mim_components.data.read.stream import Payload
from mim_components.data.read.text_headers import TextHeader, read_metaimage, read_nrrd
from mim_components.data.volumes import VolumeError, VolumeSource, per_axis, suffix_of

_NIFTI_HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
_GZIP_MAGIC = b"\x1f\x8b"
# fraction of a voxel's shortest edge
_FORM_TOLERANCE = 0.05
# mm per unit of length, by the three lowest bits of xyzt_units; unknown is read as mm
_UNITS = {1: ("metres", 1e3), 3: ("micrometres", 1e-3)}


@dataclass(frozen=True)
class VolumeHeader:
    """What is known about a volume before its voxels are read.

    Attributes:
        shape: voxels per axis in the order of the file, without trailing axes of length 1 after the third.
        dtype: type of the stored voxels.
        files: every file that belongs to the volume.
        payload: where the voxels lie; None for DICOM.
        affine: 4x4, voxel index to RAS world in mm; None if ITK computes it.
        scale: slope and intercept from stored value to HU that are still to be applied.
        notes: oddities.
        placed: whether the file says where its voxels lie; otherwise `affine` is a guess.
        mirrored: for each slice of a MONOCHROME1 series, the HU from which to subtract ITK's value; else empty.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    files: tuple[Path, ...]
    payload: Payload | None = None
    affine: np.ndarray | None = None
    scale: tuple[float, float] = (1.0, 0.0)
    notes: tuple[str, ...] = ()
    placed: bool = True
    mirrored: tuple[float, ...] = ()


def read_header(source: VolumeSource) -> VolumeHeader:
    """Read the header of one volume.

    Args:
        source: a file whose extension is one of `VOLUME_SUFFIXES`, or a DICOM series.

    Raises:
        VolumeError: the header is damaged or the format is not supported.
        OSError: the file cannot be read.
    """
    if source.series_uid is not None:
        return _dicom_header(source)
    suffix = suffix_of(source.path).lower()
    if suffix in (".nii", ".nii.gz"):
        return _nifti_header(source.path)
    if suffix in (".mha", ".mhd"):
        return _text_header(source.path, read_metaimage(source.path))
    if suffix in (".nrrd", ".nhdr"):
        return _text_header(source.path, read_nrrd(source.path))
    from mim_components.data.read.dicom import is_dicom, read_slice

    if is_dicom(source.path):
        read_slice(source.path)  # raises, and names the reason, if the header is unreadable
        raise VolumeError("a single DICOM file, expected the folder of a series")
    raise VolumeError("not a volume: expected .nii, .nii.gz, .mha, .mhd, .nrrd, .nhdr or DICOM")


def _dicom_header(source: VolumeSource) -> VolumeHeader:
    from mim_components.data.read.dicom import read_slice, sums_of

    first = read_slice(source.files[0])
    for path in source.files:
        first.check_claimed_size(path)
    mirrored = sums_of([read_slice(path) for path in source.files]) if first.inverted else ()
    return VolumeHeader((*first.size, len(source.files)), np.dtype(np.int16), source.files, mirrored=mirrored)


def _text_header(path: Path, text: TextHeader) -> VolumeHeader:
    shape = _squeezed(text.shape)
    size = int(np.prod(shape, dtype=object)) * text.dtype.itemsize
    payload = Payload(text.data_file, text.start, 0, size, text.compressed)
    if text.start < 0:  # the voxels are the last bytes of the file
        payload = Payload(text.data_file, max(text.data_file.stat().st_size - size, 0), 0, size, False)
    files = (path,) if text.data_file == path else (path, text.data_file)
    return VolumeHeader(shape, text.dtype, files, payload, notes=text.notes)


def _nifti_header(path: Path) -> VolumeHeader:
    stored, compressed = stored_nifti_header(path)
    try:
        with LoggingOutputSuppressor():
            header = stored.copy()
            header.check_fix()
            return _from_nifti(path, header, compressed, stored)
    except (HeaderDataError, ValueError, OverflowError) as error:
        if isinstance(error, VolumeError):
            raise
        raise VolumeError(f"damaged NIfTI header: {error}") from error


def stored_nifti_header(path: Path) -> tuple[nib.Nifti1Header, bool]:
    """The header of a NIfTI file as stored, valid or not, and whether the file is compressed.

    Raises:
        VolumeError: truncated, or not a NIfTI file.
        OSError: the file cannot be read.
    """
    block, compressed = first_bytes(path)
    order, length = next(
        ((order, n) for order in ("little", "big") for n in _NIFTI_HEADERS if int.from_bytes(block[:4], order) == n),
        ("", 0),
    )
    if not length:
        raise VolumeError(f"not a NIfTI file: {_what_begins_with(block)}")
    if len(block) < length:
        raise VolumeError(f"truncated: {len(block)} bytes, the header alone has {length}")
    return _NIFTI_HEADERS[length](block[:length], "<" if order == "little" else ">", check=False), compressed


def _from_nifti(path: Path, header: nib.Nifti1Header, compressed: bool, stored: nib.Nifti1Header) -> VolumeHeader:
    if bytes(header["magic"].item()) not in (b"n+1", b"n+2"):
        raise VolumeError("a NIfTI header without voxels (.hdr/.img pair), expected one .nii file")
    axes = int(header["dim"][0])
    if not 1 <= axes <= 7:
        raise VolumeError(f"damaged NIfTI header: dim[0] is {axes}, expected 3")
    shape = _squeezed(tuple(int(n) for n in header["dim"][1 : axes + 1]))
    dtype = header.get_data_dtype()
    offset = header.get_data_offset()
    if offset < header.single_vox_offset:
        raise VolumeError(f"damaged NIfTI header: voxels at byte {offset}, inside the header")
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    payload = Payload(path, 0, offset, size, True) if compressed else Payload(path, offset, 0, size, False)
    pixdim = tuple(stored["pixdim"][1:4].tolist())
    # nibabel replaces an edge of 0 by 1 mm
    if int(header["sform_code"]) == 0 and any(n > 1 and edge == 0 for n, edge in zip(shape, pixdim, strict=False)):
        raise VolumeError(f"the spacing is unknown: pixdim {per_axis(pixdim, 4)} mm, and there is no sform")
    affine = _place(header, shape)
    notes = _notes_on_place(header, affine)
    unit, mm = _UNITS.get(int(header["xyzt_units"]) & 7, ("mm", 1.0))
    if mm != 1:
        notes = (*notes, f"lengths are in {unit}, converted to mm")
        affine[:3] *= mm
    placed = int(header["sform_code"]) != 0 or int(header["qform_code"]) != 0
    return VolumeHeader(shape, dtype, (path,), payload, affine, _scale(header), notes, placed)


def _scale(header: nib.Nifti1Header) -> tuple[float, float]:
    """Slope and intercept; by the standard, slope 0 means there are none (nibabel reads NaN the same way)."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0:
        return 1.0, 0.0
    for name, value in (("scl_slope", slope), ("scl_inter", intercept)):
        if not np.isfinite(value):
            raise VolumeError(f"damaged NIfTI header: {name} is {value}, expected a number (scl_slope 0: no scaling)")
    return slope, intercept


def _place(header: nib.Nifti1Header, shape: tuple[int, ...]) -> np.ndarray:
    affine = np.array(header.get_best_affine(), dtype=np.float64)
    if not np.isfinite(affine).all() or np.linalg.det(affine[:3, :3]) == 0:
        return affine  # refused later, whatever the other form says
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    try:
        image = kind(np.broadcast_to(np.uint8(0), shape), affine, header)
        return np.array(correct_nifti_header_if_necessary(image).affine, dtype=np.float64)
    except (ValueError, HeaderDataError):  # an axis is negative, or the qform is damaged
        return affine


def _notes_on_place(header: nib.Nifti1Header, affine: np.ndarray) -> tuple[str, ...]:
    with_qform, with_sform = int(header["qform_code"]) != 0, int(header["sform_code"]) != 0
    if not (with_qform or with_sform):
        return ("neither qform nor sform is set: position and orientation are guessed, left and right may be swapped",)
    if with_qform and with_sform:
        try:
            sform, qform = header.get_sform(), header.get_qform()
        except (ValueError, HeaderDataError):
            return ("the qform is damaged; the sform is used",)
        spacing = nib.affines.voxel_sizes(sform)
        if not np.allclose(sform, qform, rtol=1e-3, atol=_FORM_TOLERANCE * spacing.min()):
            edges = per_axis(nib.affines.voxel_sizes(qform), 4)
            used = "sform" if np.allclose(affine, sform) else "qform"
            return (f"sform and qform differ: spacing {per_axis(spacing, 4)} and {edges} mm; the {used} is used",)
    return ()


def first_bytes(path: Path) -> tuple[bytes, bool]:
    """First 540 bytes of a file (the longest header) after decompression, and whether it is compressed.

    Raises:
        VolumeError: empty, or damaged compressed data.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        block = file.read(540)
    if not block:
        raise VolumeError("the file is empty (0 bytes)")
    if block[:2] != _GZIP_MAGIC:
        return block, False
    try:
        with gzip.open(path) as stream:
            return stream.read(540), True
    except EOFError as error:
        raise VolumeError("truncated: the compressed data end inside the header") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise VolumeError(f"damaged compressed data: {error}") from error


def _what_begins_with(block: bytes) -> str:
    text = block[:64].lstrip()
    if text[:5].lower() in (b"<!doc", b"<html", b"<?xml"):
        return "it is a web page (a download that asked for a login?)"
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; the file itself was not fetched"
    return f"it begins with {block[:16]!r}"


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def resampled_shapes(
    items: Sequence[Mapping[str, Any]], spacing: Sequence[float], channels: int
) -> list[tuple[int, int]]:
    """Channels and voxels of scans after resampling; upper bounds, since the foreground may be cropped.

    Args:
        items: items of prepared cases; for an image of several files the first counts.
        spacing: target spacing, mm.
        channels: channels of image and label together.

    Returns:
        `(channels, voxels)` of every scan with a readable header; loading any other names it.
    """
    shapes = []
    for item in items:
        files = item["image"] if isinstance(item["image"], list) else [item["image"]]
        path = Path(files[0])
        try:
            header = read_header(VolumeSource(path, (path,)))
        except (VolumeError, OSError):
            continue
        voxel = math.prod(spacing) if header.affine is None else abs(np.linalg.det(header.affine[:3, :3]))
        shapes.append((channels, math.ceil(math.prod(header.shape[:3]) * voxel / math.prod(spacing))))
    return shapes
