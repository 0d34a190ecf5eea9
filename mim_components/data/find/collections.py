"""The paper's pre-training sets (Table 1), found as unpacked from their archives, below any top folder."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from mim_components.data.find.walk import describe_files, is_regular, walk
from mim_components.data.read.dicom import find_series, is_dicom
from mim_components.data.volumes import DataError, FoundVolumes, NoVolumesError, VolumeSource

# The authors do not explain their list of DICOM volumes; 32 slices leave out scouts and short series.
MIN_DICOM_SLICES = 32


@dataclass(frozen=True)
class PaperSet:
    """A set of Table 1.

    Attributes:
        name: as in the paper.
        expected: number of volumes in the paper.
        pattern: pattern of paths below the data root, ignoring case; its groups identify a volume.
        looks_like: the pattern in words.
        excluded: pattern of paths that are not volumes of the set.
        remark: explanation of a different count.
        dicom: whether the set consists of DICOM series.
    """

    name: str
    expected: int
    pattern: str
    looks_like: str
    excluded: str | None = None
    remark: str = ""
    dicom: bool = False

    def matches(self, relative: str) -> tuple[str, ...] | None:
        """Identifiers of the volume at a path below the data root; None if it is not in this set."""
        if self.excluded and re.search(self.excluded, relative, re.IGNORECASE):
            return None
        match = re.search(self.pattern, relative, re.IGNORECASE)
        return tuple(group or "" for group in match.groups()) if match else None


SETS = (
    PaperSet(
        "BTCV",
        24,
        r"(?:^|/)img(00(?:0[1-9]|10|2[1-9]|3[0-4]))\.nii(?:\.gz)?$",
        "img0001.nii.gz",
        remark="the 24 training ids; 0035-0040 validate and are never used",
    ),
    PaperSet(
        "TCIA Covid19",
        722,
        r"(?:^|/)volume-covid19-A-(\d{4}(?:_\d+)?(?:_day\d+)?)\.nii(?:\.gz)?$",
        "volume-covid19-A-0000.nii.gz",
        remark="771 in full, the paper holds 49 out",
    ),
    PaperSet(
        "LUNA16",
        843,
        r"(?:^|/)(\d+(?:\.\d+){5,})\.mhd$",
        "subset0/<SeriesInstanceUID>.mhd",
        excluded=r"(?:^|/)seg-lungs",
        remark="888 in full, the paper holds 45 out",
    ),
    PaperSet("STOIC 2021", 2000, r"(?:^|/)(?:mha|stoic[^/]*)/(?:[^/]+/)*(\d+)\.mha$", "data/mha/1.mha"),
    PaperSet(
        "FLARE23",
        4000,
        r"(?:^|/)FLARE23_([0-3]\d{3}|4000)(?:_0000)?\.nii(?:\.gz)?$",
        "imagesTr2200/FLARE23_0001_0000.nii.gz",
        excluded=r"(?:^|/)(?:labels|pseudo)[^/]*/|FLARE23_0000(?:_0000)?\.nii",
    ),
    PaperSet(
        "LIDC-IDRI",
        589,
        r"(?:^|/)(LIDC-IDRI-\d{4})/",
        "LIDC-IDRI-0001/<study>/<series>/*.dcm",
        remark="1,018 in full; repeats of LUNA16 are left out",
        dicom=True,
    ),
    PaperSet(
        "HNSCC",
        1071,
        r"(?:^|/)(HNSCC-\d{2}-\d{4})/",
        "HNSCC-01-0001/<study>/<series>/*.dcm",
        remark="CT series only; the paper's choice is not explained",
        dicom=True,
    ),
    PaperSet(
        "TotalSegmentator",
        1203,
        r"(?:^|/)(s\d{4})/ct\.nii(?:\.gz)?$",
        "s0000/ct.nii.gz",
        excluded=r"(?:^|/)s0864/",
        remark="without the corrupt s0864",
    ),
)
COLLECTIONS = {"1k": SETS[:2], "10k": SETS}


@dataclass
class CollectionVolumes(FoundVolumes):
    """Volumes of a collection.

    Attributes:
        rows: (set, number found) in the order of the paper.
    """

    rows: list[tuple[PaperSet, int]] = field(default_factory=list)

    def table(self) -> str:
        """Table of found and expected counts, one line per set."""
        lines = [f"{'set':<17} {'found':>6} {'expected':>9}  remark"]
        lines += [f"{each.name:<17} {count:>6} {each.expected:>9}  {each.remark}".rstrip() for each, count in self.rows]
        total, expected = sum(count for _, count in self.rows), sum(each.expected for each, _ in self.rows)
        lines.append(
            f"{'sum':<17} {total:>6} {expected:>9}" + ("" if total >= expected else "  a subset of the paper's")
        )
        return "\n".join(lines)


def list_collection(name: str, data_root: str | Path) -> CollectionVolumes:
    """List the existing volumes of a collection of the paper.

    Args:
        name: "1k" (BTCV and TCIA Covid19) or "10k" (all eight sets).
        data_root: folder that holds the unpacked sets, at any depth.

    Returns:
        The volumes set by set, and how many of each were found; a part of a collection is fine.

    Raises:
        DataError: unknown collection.
        NoVolumesError: nothing was found; says what was looked for.
    """
    if name not in COLLECTIONS:
        raise DataError(f"collection must be one of {sorted(COLLECTIONS)}, got {name!r}.")
    root = Path(data_root)
    tree = walk(root)
    relative = {path: path.relative_to(root).as_posix() for path in tree.files}
    volumes = CollectionVolumes([], list(tree.notes), root)
    for each in COLLECTIONS[name]:
        sources = _dicom_set(each, relative, volumes) if each.dicom else _file_set(each, relative, volumes)
        volumes.sources.extend(sources)
        volumes.rows.append((each, len(sources)))
    if not volumes.sources:
        looked_for = "\n".join(f"  {each.name}: .../{each.looks_like}" for each in COLLECTIONS[name])
        raise NoVolumesError(
            f"{root}: no set of the collection '{name}' found in {describe_files(tree.files)}. "
            f"Looked for:\n{looked_for}"
        )
    return volumes


def _file_set(each: PaperSet, relative: dict[Path, str], volumes: CollectionVolumes) -> list[VolumeSource]:
    chosen: dict[tuple[str, ...], Path] = {}
    for path, text in relative.items():
        volume = each.matches(text)
        if volume is not None and chosen.setdefault(volume, path) is not path:
            volumes.notes.append(f"{path}: {each.name} volume {volume[0]} is there twice, {chosen[volume]} is used")
    return [VolumeSource(path, (path,)) for _, path in sorted(chosen.items())]


def _dicom_set(each: PaperSet, relative: dict[Path, str], volumes: CollectionVolumes) -> list[VolumeSource]:
    files = [path for path, text in relative.items() if each.matches(text) and is_regular(path) and is_dicom(path)]
    series = find_series(files, MIN_DICOM_SLICES)
    volumes.notes.extend(series.notes)
    volumes.passed.extend(series.passed)
    # LUNA16 names its files by the SeriesInstanceUID of the LIDC-IDRI series they were made from
    known = {source.name for source in volumes.sources if source.path.suffix.lower() == ".mhd"}
    kept = [source for source in series.sources if source.series_uid not in known]
    if len(kept) < len(series.sources):
        volumes.notes.append(f"{each.name}: {len(series.sources) - len(kept)} series left out, they are in LUNA16")
    return sorted(kept, key=str)
