"""Objects of the data path: sources found, volumes prepared, and errors that name bad volumes.

Axis order is (H, W, D) = (x, y, z) of a RAS grid after preparation. Spacing is mm, intensities are HU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from mim_components.utils.files import text_digest
from mim_components.utils.text import counted, printable

GIB = 2**30


class DataError(ValueError):
    """Something about the data is wrong; the message names the file or folder and the cause."""


class NoVolumesError(DataError):
    """No volume was found in a folder, list or collection."""


class CacheError(DataError):
    """The cache folder cannot be used: it is not writable, or too little space is left."""


class VolumeError(DataError):
    """A volume is not fit for training; the message is the cause, without the file."""


class LabelMapError(VolumeError):
    """The voxels are those of a label map."""


class ItemError(RuntimeError):
    """An item cannot be made; names the volume and the cause."""


@dataclass(frozen=True)
class BadVolume:
    """A volume that failed a check.

    Attributes:
        path: the file, or `folder [SeriesInstanceUID]` of a DICOM series; a digest if paths are hidden.
        cause: what was found and, where it helps, what was expected.
        digest: sha256 of the concatenated bytes of all its files; None if they cannot be read.
        state: number, bytes and time of the files when they were read; None if one is missing.
        permanent: the cause lies in the bytes alone: it is bad until a file changes.
        label_map: the voxels are those of a label map.
    """

    path: str
    cause: str
    digest: str | None = field(default=None, compare=False)
    state: Mapping[str, int] | None = field(default=None, compare=False)
    permanent: bool = field(default=False, compare=False)
    label_map: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        return printable(f"{self.path}: {self.cause}")


class BadVolumesError(DataError):
    """Some volumes failed; lists all of them.

    Args:
        bad: bad volumes and their causes.
        total: number of volumes checked.
        max_bad_fraction: share of them that may be left out, if exceeding it is the reason for the error.
    """

    def __init__(self, bad: Sequence[BadVolume], total: int, max_bad_fraction: float | None = None) -> None:
        self.bad = list(bad)
        self.total = total
        self.max_bad_fraction = max_bad_fraction
        lines = "\n".join(f"  {item}" for item in self.bad)
        advice, limit = "Repair or remove them, or leave them out with on_bad='exclude'.", ""
        if max_bad_fraction is not None:
            allowed = int(max_bad_fraction * total + 1e-9)
            limit = f"; max_bad_fraction={max_bad_fraction:g} allows leaving out {allowed}"
            advice = "Repair or remove them, or raise --prepared::max_bad_fraction."
        super().__init__(f"{len(self.bad)} of {total} volumes cannot be used{limit}:\n{lines}\n{advice}")

    def __reduce__(self) -> tuple[type[BadVolumesError], tuple[list[BadVolume], int, float | None]]:
        return type(self), (self.bad, self.total, self.max_bad_fraction)


@dataclass(frozen=True)
class VolumeSource:
    """Location of a volume.

    Attributes:
        path: the file, or the folder of a DICOM series.
        files: files to read; for DICOM the slices in order of position, otherwise the file itself.
        series_uid: SeriesInstanceUID of a DICOM series, else None.
        alias: name that replaces its path if this must not be shown, see `mim_components.data.names`.
    """

    path: Path
    files: tuple[Path, ...]
    series_uid: str | None = None
    alias: str = ""

    @property
    def name(self) -> str:
        """Short name for logs: the alias, SeriesInstanceUID, or the file name without its format extension."""
        if self.alias:
            return self.alias
        if self.series_uid is not None:
            return self.series_uid
        return self.path.name[: -len(suffix_of(self.path))] if suffix_of(self.path) else self.path.name

    def __str__(self) -> str:
        if self.alias:
            return self.alias
        return str(self.path) if self.series_uid is None else f"{self.path} [{self.series_uid}]"


VOLUME_SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr")


def suffix_of(path: Path) -> str:
    """Volume extension of a file name as written there, or "" if there is none."""
    lower = path.name.lower()
    return next((path.name[-len(suffix) :] for suffix in VOLUME_SUFFIXES if lower.endswith(suffix)), "")


@dataclass(frozen=True)
class PassedOver:
    """A file or DICOM series among the scans that is not a scan.

    Args:
        source: where it is.
        how: how it was recognised: "name", "content" or "DICOM".
        reason: why it is not a scan.
    """

    source: VolumeSource
    how: str
    reason: str

    def __str__(self) -> str:
        return printable(f"{self.source}: {self.reason}")


@dataclass
class FoundVolumes:
    """Volumes found, in a fixed order, and remarks on the search.

    Attributes:
        sources: the volumes.
        notes: lines for the log, such as a series that is not a CT volume.
        root: the data folder.
        passed: DICOM segmentations and structure sets, which were passed over.
        searched: a folder was searched, so label maps may be among the volumes; a list names its scans.
    """

    sources: list[VolumeSource]
    notes: list[str] = field(default_factory=list)
    root: Path = Path()
    passed: list[PassedOver] = field(default_factory=list)
    searched: bool = False

    def __len__(self) -> int:
        return len(self.sources)

    def __iter__(self) -> Iterator[VolumeSource]:
        return iter(self.sources)


@dataclass(frozen=True, eq=False)
class PreparedVolume:
    """A volume in the cache.

    Attributes:
        name: short name of the source.
        source: source as given.
        cache_file: int16 `.npy` file (H, W, D), RAS, HU, or per mille of an MR.
        shape: (H, W, D) in voxels.
        spacing: mm per axis.
        affine: 4x4, voxel index to RAS world in mm.
        digest: sha256 of the bytes of the source.
        source_bytes: size of the source in bytes.
        intensity_range: lowest and highest voxel.
        notes: oddities that do not make the volume unfit.
        content: equal for volumes with equal voxels, whatever their file format.
        origin: source from which the cache file can be regenerated.
        resampled_to: requested spacing, of which `spacing` is the result; None = native voxels.
        num_values: number of different intensities before resampling; 0 = not counted.
        modality: "ct" or "mr".
    """

    name: str
    source: str
    cache_file: Path
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    affine: np.ndarray
    digest: str
    source_bytes: int
    intensity_range: tuple[int, int] = (0, 0)
    notes: tuple[str, ...] = ()
    content: str = ""
    origin: VolumeSource | None = None
    resampled_to: tuple[float, float, float] | None = None
    num_values: int = 0
    modality: str = "ct"


@dataclass
class PreparedDataset:
    """Everything training needs to know about its volumes.

    Attributes:
        volumes: volumes in the order of their sources.
        bad: what was left out.
        notes: warnings and remarks.
        passed: what was passed over as it is not a scan.
    """

    volumes: list[PreparedVolume]
    bad: list[BadVolume] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    passed: list[PassedOver] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.volumes)

    @property
    def items(self) -> list[dict[str, Any]]:
        """One item per volume: `image` (the prepared volume) and `name` (its source, for messages)."""
        return [{"image": volume, "name": volume.source} for volume in self.volumes]

    @property
    def digest(self) -> str:
        """The sha256 over the sorted digests of the volumes: equal for the same data in another place."""
        return text_digest("\n".join(sorted(volume.digest for volume in self.volumes)))

    @property
    def contents(self) -> dict[str, str]:
        """Digest of every volume by name, which `digest` covers."""
        return {volume.source: volume.digest for volume in self.volumes}

    def count_smaller_than(self, size: Sequence[int]) -> int:
        """Number of volumes that are shorter than `size`, in voxels (H, W, D), along at least one axis."""
        return sum(any(have < want for have, want in zip(v.shape, size, strict=True)) for v in self.volumes)

    def summary(self) -> str:
        """A few lines: number of volumes, bytes, median and range of size and spacing, and what was left out."""
        gib = sum(v.source_bytes for v in self.volumes) / GIB
        lines = [f"{counted(len(self.volumes), 'volume')}, {gib:.2f} GiB of files"]
        if self.volumes:
            cached = sum(2 * int(np.prod(v.shape)) for v in self.volumes)
            lines[0] += f", {cached / GIB:.2f} GiB of cache"
            lines.append("size    " + _spread([v.shape for v in self.volumes], "voxels", 0))
            wanted = self.volumes[0].resampled_to
            made = "" if wanted is None else f", resampled to {per_axis(wanted)} mm"
            lines.append("spacing " + _spread([v.spacing for v in self.volumes], "mm", 2) + made)
        if self.bad:
            lines.append(f"{len(self.bad)} left out:")
            lines.extend(f"  {item}" for item in self.bad)
        return "\n".join(lines)


def a_volume(modality: str) -> str:
    """A volume of a modality in messages: `a CT volume`, `an MR volume`."""
    return {"ct": "a CT volume", "mr": "an MR volume"}[modality]


def per_axis(values: Iterable[float], digits: int = 6) -> str:
    """Numbers as `1.5 x 1.5 x 2`, each rounded to so many significant digits."""
    return " x ".join(f"{value:.{digits}g}" for value in values)


def _spread(rows: Sequence[Sequence[float]], unit: str, digits: int) -> str:
    def text(values: list[float]) -> str:
        return " x ".join(f"{value:.{digits}f}" for value in values)

    axes = list(zip(*rows, strict=True))
    return (
        f"median {text([median(axis) for axis in axes])} {unit}, "
        f"from {text([min(axis) for axis in axes])} to {text([max(axis) for axis in axes])}"
    )
