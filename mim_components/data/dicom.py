"""Sort DICOM files into series and tell which of them are CT volumes.

Only the tags named here are parsed: names, dates and other personal data of a header are never read. Of these one is an
identifier, SeriesInstanceUID: it names a series in logs and files, and tells series in one folder apart. The pixels are
read later by ITK, slice by slice in the order found here.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from .volumes import DataError, FoundVolumes, VolumeSource

MIN_SLICES = 3
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
)
# Slices may lie this share of their distance off an even grid; a missing slice is off by 1.
_SPACING_TOLERANCE = 0.1
# Cosines of the slice axes that differ by less are equal.
_DIRECTION_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Slice:
    """Geometry of one DICOM file; lengths in mm, LPS axes.

    Args:
        path: the file.
        series_uid: SeriesInstanceUID, or a digest where it is none by its form.
        modality: such as CT.
        image_type: values of ImageType.
        size: (columns, rows) in voxels.
        samples: values per pixel, 1 for grey.
        frames: images in the file.
        pixel_spacing: mm between rows and between columns.
        orientation: cosines of the row and the column axis, 6 numbers.
        position: centre of the first pixel.
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


def is_dicom(path: Path) -> bool:
    """True when the letters DICM follow the first 128 bytes; the extension says nothing about DICOM."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_slice(path: Path) -> Slice:
    """Read the geometry of one DICOM file, without its pixels.

    Raises:
        DataError: the header cannot be read.
    """
    import pydicom

    try:
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            # pydicom warns of values that break the standard, and logs them; what matters here is checked below
            warnings.simplefilter("ignore")
            tags = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
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
            )
    except Exception as error:  # pydicom raises many kinds on damaged files
        raise DataError(f"{path}: the DICOM header cannot be read: {type(error).__name__}: {error}") from error


def _uid(text: str) -> str:
    """A UID as the standard has it; of any other text, which may say anything, a digest."""
    if not text or re.fullmatch(r"[0-9.]{1,64}", text):
        return text
    return "uid_" + hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def find_series(files: list[Path], min_slices: int = MIN_SLICES) -> FoundVolumes:
    """Group DICOM files into one volume per folder and SeriesInstanceUID.

    Args:
        files: DICOM files of any kind.
        min_slices: series with fewer slices are left out.

    Returns:
        The CT volumes, with slices in order of position. The notes name every other series and why it is none. Files
        with an unreadable header are handed on as volumes of their own, for the checks to refuse.

    Raises:
        DataError: there are files but pydicom is not installed.
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
        images = [image for image in slices if "LOCALIZER" not in image.image_type]
        reason = why_no_volume(images, min_slices) if images else "ImageType LOCALIZER"
        if reason:
            found.notes.append(f"{folder} [{uid}]: not a CT volume: {reason}")
        else:
            found.sources.append(VolumeSource(folder, tuple(image.path for image in in_order(images)), uid))
    repeated = [uid for uid, count in Counter(uid for _, uid in series).items() if uid and count > 1]
    found.notes.extend(f"series {uid} lies in more than one folder; each is one volume" for uid in repeated)
    return found


def why_no_volume(slices: list[Slice], min_slices: int) -> str:
    """Say why the slices of a series do not make a CT volume; "" when they do."""
    first = slices[0]
    if any(image.modality != "CT" for image in slices):
        return f"Modality {first.modality or 'missing'}, expected CT"
    if not first.series_uid:
        return "SeriesInstanceUID is missing"
    if any(image.frames > 1 for image in slices):
        return f"a multi-frame file with {first.frames} frames, expected one file per slice"
    if any(image.samples != 1 for image in slices):
        return f"colour pictures with {first.samples} values per pixel"
    if len(slices) < min_slices:
        return f"{len(slices)} slices, expected at least {min_slices}"
    if any((len(s.position), len(s.orientation), len(s.pixel_spacing)) != (3, 6, 2) for s in slices):
        return "ImagePositionPatient, ImageOrientationPatient or PixelSpacing is missing in at least one slice"
    if len({image.size for image in slices}) > 1:
        return f"slices of several sizes: {sorted({image.size for image in slices})}"
    if not _all_near([image.orientation for image in slices], _DIRECTION_TOLERANCE):
        return "slices of several orientations"
    if not _all_near([image.pixel_spacing for image in slices], 1e-3 * first.pixel_spacing[0]):
        return "slices of several pixel spacings"
    return _why_uneven(in_order(slices))


def in_order(slices: list[Slice]) -> list[Slice]:
    """Slices sorted along the normal of the first one, as file names and instance numbers need not follow space."""
    normal = _normal(slices[0])
    return sorted(slices, key=lambda image: float(normal @ np.array(image.position)))


def _why_uneven(slices: list[Slice]) -> str:
    positions = np.array([image.position for image in slices])
    steps = np.diff(positions, axis=0)
    gaps = steps @ _normal(slices[0])
    usual = float(np.median(gaps))
    if not np.isfinite(positions).all() or gaps.min() <= 1e-3:
        return f"{int((gaps <= 1e-3).sum()) + 1} slices share one position"
    if np.abs(gaps - usual).max() > _SPACING_TOLERANCE * usual:
        return f"uneven slice distances from {gaps.min():.2f} to {gaps.max():.2f} mm (a slice missing?)"
    sideways = np.linalg.norm(steps - gaps[:, None] * _normal(slices[0]), axis=1)
    if sideways.max() > _SPACING_TOLERANCE * usual:
        return f"slices are shifted sideways by {sideways.max():.2f} mm each (gantry tilt)"
    return ""


def _normal(image: Slice) -> np.ndarray:
    # a series without orientation is refused later, here it only needs some order
    cosines = np.array(image.orientation if len(image.orientation) == 6 else (1, 0, 0, 0, 1, 0), dtype=float)
    return np.cross(cosines[:3], cosines[3:])


def _all_near(rows: list[tuple[float, ...]], tolerance: float) -> bool:
    values = np.array(rows)
    return bool(np.isfinite(values).all() and np.ptp(values, axis=0).max() <= tolerance)


def _several(value: object) -> tuple[object, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)  # type: ignore[arg-type]


def _numbers(value: object) -> tuple[float, ...]:
    return tuple(float(number) for number in _several(value))  # type: ignore[arg-type]
