"""Sort DICOM files into series and tell which of them are CT or MR volumes.

Only the tags named here are parsed: names, dates and other personal data are never read. One of the tags is an
identifier, SeriesInstanceUID: it names a series in logs and files and tells series in one folder apart. The pixels are
read later by ITK, slice by slice, in the order found here. ITK spaces slices evenly along their normal, so a
series whose slices are spaced otherwise is refused.
"""

from __future__ import annotations

import re
import struct
import warnings
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mim_components.data.read.stream import Payload, check_claimed_size
from mim_components.data.volumes import DataError, FoundVolumes, PassedOver, VolumeError, VolumeSource, a_volume
from mim_components.transforms.intensity import MODALITIES
from mim_components.utils.files import text_digest
from mim_components.utils.text import counted

MIN_SLICES = 3
# contours and masks that belong to a scan
SEGMENTATIONS = {"SEG": "DICOM segmentation", "RTSTRUCT": "DICOM structure set"}
_BLOCK = 1024  # bytes; the first elements of a file are short
_TAGS = (
    "Modality",
    "SeriesInstanceUID",
    "ImageType",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "NumberOfFrames",
    "PixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "RescaleSlope",
    "RescaleIntercept",
)
_DEFLATED = "1.2.840.10008.1.2.1.99"  # its whole data set is inflated to read one tag
# transfer syntaxes that store uncompressed pixels
_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
# fraction of a voxel that a slice may lie off the straight, even grid; a missing slice causes up to 1
_GRID_TOLERANCE = 0.25
_STRAIGHTEN = "convert the series with dcm2niix, which resamples it to a straight, even grid"
# Cosines of the slice axes that differ by less count as equal.
_DIRECTION_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Slice:
    """Geometry of one DICOM file; lengths in mm, LPS axes.

    Attributes:
        path: the file.
        series_uid: SeriesInstanceUID, or a digest of it if it is not a valid UID.
        modality: such as CT.
        image_type: values of ImageType.
        size: (columns, rows) in voxels.
        samples: values per pixel, 1 for grey.
        frames: images in the file.
        pixel_spacing: mm between rows and between columns.
        orientation: cosines of the row and the column axis, 6 numbers.
        position: centre of the first pixel.
        inverted: MONOCHROME1: low values are displayed bright; the HU are not inverted.
        bits: bits used per pixel.
        signed: whether pixel values are signed.
        scale: slope and intercept from stored value to HU.
        pixel_bytes: bytes per stored pixel.
        compressed: whether pixels are compressed.
    """

    path: Path
    series_uid: str
    modality: str
    image_type: tuple[str, ...]
    size: tuple[int, int]
    samples: int
    frames: int
    pixel_spacing: tuple[float, ...]
    orientation: tuple[float, ...]
    position: tuple[float, ...]
    inverted: bool = False
    bits: int = 16
    signed: bool = False
    scale: tuple[float, float] = (1.0, 0.0)
    pixel_bytes: int = 2
    compressed: bool = False

    def check_claimed_size(self, path: Path) -> None:
        """Compare the claimed size with that of a file whose slice is like this one, before ITK allocates memory.

        Raises:
            VolumeError: the file is too small for the claim.
        """
        claimed = self.size[0] * self.size[1] * self.pixel_bytes
        check_claimed_size(Payload(path, 0, 0, claimed, self.compressed))


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its first bytes; the extension says nothing.

    That is, the letters DICM follow the first 128 bytes, or both are missing, as before the 1993 standard and in
    many archives: then the file begins with two elements of groups 2 or 8, in order.
    """
    try:
        with open(path, "rb") as file:
            block = file.read(_BLOCK)
    except OSError:
        return False
    return block[128:132] == b"DICM" or _begins_with_elements(block)


def _begins_with_elements(block: bytes) -> bool:
    first = _element(block, 0)
    if first is None or first[0][0] not in (2, 8):
        return False
    second = _element(block, first[1])
    return second is not None and second[0] > first[0] and second[0][0] in (2, 8)


def _element(block: bytes, start: int) -> tuple[tuple[int, int], int] | None:
    """Group and number of the little-endian element at `start`, and the start of the next; None: no element."""
    head = block[start : start + 12]
    if len(head) < 12:
        return None
    group, number = struct.unpack("<2H", head[:4])
    if head[4:6] in (b"OB", b"OW", b"SQ", b"UN", b"UT", b"UC"):
        size, length = 12, struct.unpack("<I", head[8:])[0]
    elif head[4:6].isalpha() and head[4:6].isupper():
        size, length = 8, struct.unpack("<H", head[6:8])[0]
    else:  # implicit value representation
        size, length = 8, struct.unpack("<I", head[4:8])[0]
    return ((group, number), start + size + length) if length < _BLOCK else None


def read_slice(path: Path) -> Slice:
    """Read the geometry of one DICOM file, without its pixels.

    Raises:
        DataError: the header cannot be read.
    """
    import pydicom

    try:
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            # pydicom warns about values that violate the standard, and logs them; what matters is checked below
            warnings.simplefilter("ignore")
            syntax = _transfer_syntax(path)
            # force: the letters DICM may be missing
            tags = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS), force=is_dicom(path))
            return Slice(
                path=path,
                series_uid=_uid(str(tags.get("SeriesInstanceUID") or "")),
                modality=str(tags.get("Modality") or ""),
                image_type=tuple(str(value).upper() for value in _several(tags.get("ImageType"))),
                size=(int(tags.get("Columns") or 0), int(tags.get("Rows") or 0)),
                samples=int(tags.get("SamplesPerPixel") or 1),
                frames=int(tags.get("NumberOfFrames") or 1),
                pixel_spacing=_numbers(tags.get("PixelSpacing")),
                orientation=_numbers(tags.get("ImageOrientationPatient")),
                position=_numbers(tags.get("ImagePositionPatient")),
                inverted=str(tags.get("PhotometricInterpretation") or "") == "MONOCHROME1",
                bits=int(tags.get("BitsStored") or 16),
                signed=bool(tags.get("PixelRepresentation")),
                scale=(_number(tags.get("RescaleSlope"), 1.0), _number(tags.get("RescaleIntercept"), 0.0)),
                pixel_bytes=int(tags.get("BitsAllocated") or 16) // 8,
                compressed=syntax not in _NATIVE,
            )
    except Exception as error:  # pydicom raises many types on damaged files
        raise DataError(f"{path}: the DICOM header cannot be read: {type(error).__name__}: {error}") from error


def _transfer_syntax(path: Path) -> str:
    """Transfer syntax UID; the default one if the file does not name any.

    Raises:
        VolumeError: the data set is deflated as a whole.
    """
    import pydicom

    try:
        syntax = str(pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID", _NATIVE[0]))
    except pydicom.errors.InvalidDicomError:  # without the first 128 bytes
        syntax = _NATIVE[0]
    if syntax == _DEFLATED:
        raise VolumeError("the data set is deflated as a whole (unsupported); convert it with dcmconv or gdcmconv")
    return syntax


def _uid(text: str) -> str:
    """The text if it is a valid UID, else a digest of it, since it may contain anything."""
    if not text or re.fullmatch(r"[0-9.]{1,64}", text):
        return text
    return "uid_" + text_digest(text)[:16]


def find_series(files: list[Path], min_slices: int = MIN_SLICES, modality: str = "ct") -> FoundVolumes:
    """Group DICOM files into one volume per folder and SeriesInstanceUID.

    Args:
        files: DICOM files of any kind.
        min_slices: series with fewer slices are left out.
        modality: "ct" or "mr".

    Returns:
        The volumes of the modality, slices in order of position. Segmentations and structure sets are passed over; the
        notes name every other series and why it is not one. Files with an unreadable header are returned as volumes of
        their own, for the checks to refuse.

    Raises:
        DataError: there are files, but pydicom is not installed.
    """
    if files and find_spec("pydicom") is None:
        raise DataError(f"{files[0]}: reading DICOM needs the package pydicom (pip install pydicom).")
    found = FoundVolumes([])
    series: dict[tuple[Path, str], list[Slice]] = {}
    for path in files:
        if path.name.upper() == "DICOMDIR":
            continue
        try:
            image = read_slice(path)
        except DataError:
            found.sources.append(VolumeSource(path, (path,)))
            continue
        series.setdefault((path.parent, image.series_uid), []).append(image)
    for (folder, uid), slices in series.items():
        if all(image.modality in SEGMENTATIONS for image in slices):
            source = VolumeSource(folder, tuple(image.path for image in slices), uid)
            found.passed.append(PassedOver(source, "DICOM", SEGMENTATIONS[slices[0].modality]))
            continue
        images = [image for image in slices if "LOCALIZER" not in image.image_type]
        reason = why_no_volume(images, min_slices, modality) if images else "ImageType LOCALIZER"
        if reason:
            found.notes.append(f"{folder} [{uid}]: not {a_volume(modality)}: {reason}")
        else:
            found.sources.append(VolumeSource(folder, tuple(image.path for image in in_order(images)), uid))
    repeated = [uid for uid, count in Counter(uid for _, uid in series).items() if uid and count > 1]
    found.notes.extend(f"series {uid} lies in more than one folder; each folder is one volume" for uid in repeated)
    return found


def why_no_volume(slices: list[Slice], min_slices: int, modality: str = "ct") -> str:
    """Why the slices of a series do not make a volume of a modality; "" if they do."""
    first, wanted = slices[0], modality.upper()
    if any(image.modality != wanted for image in slices):
        other = first.modality.lower()
        advice = f" (--modality {other} takes it)" if other in MODALITIES and other != modality else ""
        return f"Modality {first.modality or 'missing'}, expected {wanted}{advice}"
    if not first.series_uid:
        return "SeriesInstanceUID is missing"
    if any(image.frames > 1 for image in slices):
        return f"a multi-frame file with {first.frames} frames, expected one file per slice"
    if any(image.samples != 1 for image in slices):
        return f"colour pictures with {first.samples} values per pixel"
    if len(slices) < min_slices:
        return f"{counted(len(slices), 'slice')}, expected at least {min_slices}"
    if any((len(s.position), len(s.orientation), len(s.pixel_spacing)) != (3, 6, 2) for s in slices):
        return "ImagePositionPatient, ImageOrientationPatient or PixelSpacing is missing in at least one slice"
    if len({image.size for image in slices}) > 1:
        return f"slices of several sizes: {sorted({image.size for image in slices})}"
    if any(image.inverted != first.inverted for image in slices):
        return "slices of both MONOCHROME1 and MONOCHROME2"
    if first.inverted and any(image.signed for image in slices):
        return "MONOCHROME1 with signed pixels, which ITK does not read; convert the series with dcm2niix"
    if any(not np.isfinite(image.scale).all() or image.scale[0] == 0 for image in slices):
        return "RescaleSlope or RescaleIntercept is not a number, or RescaleSlope is 0, in at least one slice"
    if not _all_near([image.orientation for image in slices], _DIRECTION_TOLERANCE):
        return "slices of several orientations"
    if not _all_near([image.pixel_spacing for image in slices], 1e-3 * first.pixel_spacing[0]):
        return "slices of several pixel spacings"
    return _why_uneven(in_order(slices))


def in_order(slices: list[Slice]) -> list[Slice]:
    """Slices sorted along the normal of the first; file names and instance numbers need not follow positions."""
    normal = _normal(slices[0])
    return sorted(slices, key=lambda image: float(normal @ np.array(image.position)))


def sums_of(slices: list[Slice]) -> tuple[float, ...]:
    """For each slice of a MONOCHROME1 series, the sum of its HU and the values that ITK reads; empty for other series.

    ITK inverts the stored value v to M - v, with M the largest value that its bits can hold, and then scales: it reads
    slope * (M - v) + intercept, where HU = slope * v + intercept.
    """
    if not slices[0].inverted:
        return ()
    return tuple(image.scale[0] * (2**image.bits - 1) + 2 * image.scale[1] for image in slices)


def _why_uneven(slices: list[Slice]) -> str:
    """Why the slices do not lie where ITK puts them: evenly spaced along their normal, from the first one on.

    What counts is how far a slice lies from its place, not how one step differs from the next: small differences add
    up.
    """
    first, normal = slices[0], _normal(slices[0])
    positions = np.array([image.position for image in slices])
    gaps = np.diff(positions, axis=0) @ normal
    if not np.isfinite(positions).all() or gaps.min() <= 1e-3:
        return f"{int((gaps <= 1e-3).sum()) + 1} slices share one position"
    step = float(np.linalg.norm(positions[-1] - positions[0])) / (len(slices) - 1)
    axes = np.array([first.orientation[:3], first.orientation[3:], normal])
    placed = positions[0] + np.arange(len(slices))[:, None] * step * normal
    off = (positions - placed) @ axes.T  # along the rows, along the columns, across the slices
    far = np.abs(off).max(axis=0)
    rows, columns = first.pixel_spacing
    if far[0] > _GRID_TOLERANCE * columns or far[1] > _GRID_TOLERANCE * rows:
        sideways = positions[-1] - positions[0] - normal * (normal @ (positions[-1] - positions[0]))
        tilt = np.degrees(np.arctan2(np.linalg.norm(sideways), gaps.sum()))
        return f"gantry tilt of {tilt:.1f} degrees: slices lie up to {far[:2].max():.1f} mm sideways; {_STRAIGHTEN}"
    if far[2] > _GRID_TOLERANCE * step:
        return (
            f"uneven slice distances from {gaps.min():.2f} to {gaps.max():.2f} mm (a slice missing?): slices lie up to "
            f"{far[2]:.1f} mm from an even grid; {_STRAIGHTEN}"
        )
    return ""


def _normal(image: Slice) -> np.ndarray:
    # a series without orientation is refused later; here it only needs some order
    cosines = np.array(image.orientation if len(image.orientation) == 6 else (1, 0, 0, 0, 1, 0), dtype=float)
    return np.cross(cosines[:3], cosines[3:])


def _all_near(rows: list[tuple[float, ...]], tolerance: float) -> bool:
    values = np.array(rows)
    return bool(np.isfinite(values).all() and np.ptp(values, axis=0).max() <= tolerance)


def _several(value: object) -> tuple[object, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)  # type: ignore[arg-type]


def _number(value: object, default: float) -> float:
    return default if value is None or str(value) == "" else float(str(value))


def _numbers(value: object) -> tuple[float, ...]:
    return tuple(float(number) for number in _several(value))  # type: ignore[arg-type]
