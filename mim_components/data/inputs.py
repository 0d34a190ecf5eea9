"""Which scans an inference works on, task by task, and under which names it writes.

Axes: scan (C, H, W, D), in the order of the file.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from monai.data import Dataset

from mim_components.data.cases import Case
from mim_components.data.check.slices import SliceFolderChecker
from mim_components.data.check.volume import MAX_VOXELS, check_file
from mim_components.data.find.layouts.brats2021 import CHANNELS
from mim_components.data.find.sources import as_source
from mim_components.data.find.walk import describe_files, find_volumes, walk
from mim_components.data.load.scans import read_headers
from mim_components.data.names import natural_key, unique_names
from mim_components.data.prepare.quarantine import ON_BAD
from mim_components.data.read.headers import first_bytes
from mim_components.data.read.slices import HU_ADVICE, is_slice
from mim_components.data.read.volume import cause_of, inspect_source
from mim_components.data.volumes import (
    BadVolume,
    BadVolumesError,
    DataError,
    NoVolumesError,
    VolumeError,
    VolumeSource,
    suffix_of,
)
from mim_components.utils.text import root_cause

logger = logging.getLogger(__name__)

# "report": leave bad scans out, do the others, and fail at the end
ON_BAD_SCAN = ("report", *ON_BAD)


def inference_items(
    dataset_dir: str | Path | None, output_dir: str | Path, on_bad: str = "stop", max_voxels: int = MAX_VOXELS
) -> list[dict[str, Any]]:
    """Find the volumes and check all headers.

    Args:
        dataset_dir: folder to search, or one file.
        output_dir: where results go; volumes inside it are results of an earlier run and are passed over.
        on_bad: "stop" raises when headers are bad, naming all; "exclude" leaves those volumes out; "report" hands them
            on with their cause.
        max_voxels: larger headers are refused.

    Returns:
        Per volume `image` (where it lies), `source` (the same, as text), `name` (for files, no two alike) and `cause`
        (why it is bad, else "").

    Raises:
        DataError: nothing is given, no volume was found, or headers are bad.
    """
    root = given_path(dataset_dir, on_bad)
    sources = list(find_volumes(root)) if root.is_dir() else [as_source(root)]
    return items_of(sources, root, output_dir, lambda source: inspect_source(source, max_voxels), on_bad)


def given_path(dataset_dir: str | Path | None, on_bad: str) -> Path:
    """Where the volumes are, once the settings are known to be right.

    Raises:
        DataError: nothing is given, or `on_bad` is none of its values.
    """
    if on_bad not in ON_BAD_SCAN:
        raise DataError(f"on_bad must be one of {', '.join(ON_BAD_SCAN)}, got {on_bad!r}.")
    if not dataset_dir:
        raise DataError("Give the volumes: --dataset_dir, a folder with volumes or one file.")
    return Path(dataset_dir)


def items_of(
    sources: Sequence[VolumeSource],
    root: Path,
    output_dir: str | Path,
    check: Callable[[VolumeSource], object],
    on_bad: str,
) -> list[dict[str, Any]]:
    """Check the headers of volumes that were found, and name the volumes; see `inference_items`.

    Args:
        sources: the volumes.
        root: where they were searched.
        output_dir: volumes inside it are passed over.
        check: raises `DataError` or `OSError` for a volume that is unfit.
        on_bad: "report", "stop" or "exclude".
    """
    results = Path(output_dir).resolve()
    kept = [source for source in sources if results not in source.path.resolve().parents]
    if passed := len(sources) - len(kept):
        logger.info("%d volumes in %s are results of an earlier run and are passed over.", passed, results)
    if not kept:
        raise NoVolumesError(f"{root}: holds no volumes but the results in {results}.")
    bad = [BadVolume(str(source), cause) for source in kept if (cause := _cause(source, check))]
    if bad and (on_bad == "stop" or len(bad) == len(kept)):
        raise BadVolumesError(bad, len(kept))
    for item in bad:
        logger.warning("left out: %s", item)
    causes = {item.path: item.cause for item in bad}
    if on_bad == "exclude":
        kept = [source for source in kept if str(source) not in causes]
    names = unique_names(kept, root)
    return [
        {"image": source, "source": str(source), "name": name, "cause": causes.get(str(source), "")}
        for source, name in zip(kept, names, strict=True)
    ]


def _cause(source: VolumeSource, check: Callable[[VolumeSource], object]) -> str:
    try:
        check(source)
    except (DataError, OSError) as error:
        return cause_of(error)
    return ""


class ScanDataset(Dataset):
    """MONAI's `Dataset` of scans, which a scan that cannot be read, or not resampled, does not end.

    Its item goes through the transform again with `cause`, which makes the loader give one voxel instead.

    Args:
        data: items of `inference_items` or `segmentation_items`.
        transform: begins with a loader that knows `cause`.
        on_bad: "stop" raises instead.
    """

    def __init__(self, data: Sequence[Any], transform: Callable[..., Any], on_bad: str = "report") -> None:
        super().__init__(data, transform)
        self.on_bad = on_bad

    def _transform(self, index: int) -> Any:
        try:
            return super()._transform(index)
        except Exception as error:  # whatever a file brings about: memory, a transform of MONAI, a library
            if self.on_bad == "stop":
                raise
            logger.debug("%s", self.data[index]["source"], exc_info=error)
            cause = cause_of(root_cause(error))
        assert self.transform is not None
        return self.transform({**self.data[index], "cause": cause})


WRITTEN_BY = "mim_components label map"  # `descrip` in the header of what SaveSegmentation writes
_CHANNEL = re.compile(rf"(?P<case>.+)_(?P<channel>{'|'.join(CHANNELS)}|seg)", re.IGNORECASE)


def segmentation_items(
    dataset_dir: str | Path | None,
    output_dir: str | Path,
    in_channels: int = 1,
    on_bad: str = "stop",
    max_voxels: int = MAX_VOXELS,
) -> list[dict[str, Any]]:
    """Find the scans and check all headers.

    Label maps that were saved by an earlier run are passed over. A scan of four channels is one 4D file, or four files
    `<case>_flair`, `_t1`, `_t1ce`, `_t2` in one folder, as BraTS 2021 has them.

    Args:
        dataset_dir: folder to search to any depth, or one file.
        output_dir: where results go; nothing in it is a scan.
        in_channels: of the network.
        on_bad: "stop" raises when headers are bad, naming all; "exclude" leaves those scans out; "report" hands them on
            with their cause.
        max_voxels: larger headers are refused.

    Returns:
        Per scan `image` (a `VolumeSource`), `source` (the same, as text), `name` (for files, no two alike) and `cause`
        (why it is bad, else "").

    Raises:
        DataError: nothing is given, no scan was found, or headers are bad.
    """
    root = given_path(dataset_dir, on_bad)
    found = list(find_volumes(root)) if root.is_dir() else [as_source(root)]
    sources = [source for source in found if not is_label_map(source)]
    if passed := len(found) - len(sources):
        logger.info("%d label maps that an earlier run saved are passed over.", passed)
    if in_channels == len(CHANNELS):
        sources = join_channels(sources)
    return items_of(sources, root, output_dir, lambda source: read_headers(source, in_channels, max_voxels), on_bad)


def is_label_map(source: VolumeSource) -> bool:
    """Whether a volume is a NIfTI file that `SaveSegmentation` wrote."""
    if not suffix_of(source.path).lower().startswith(".nii"):
        return False
    try:
        check_file(source.path)
        return WRITTEN_BY.encode() in first_bytes(source.path)[0]
    except (VolumeError, OSError):
        return False  # the check of the headers says what is wrong with it


def join_channels(sources: Sequence[VolumeSource]) -> list[VolumeSource]:
    """Make one volume of the files of a case, in the order FLAIR, T1, T1 with contrast, T2.

    A case is named by what comes before the channel. Its label map `<case>_seg` is dropped. Files of other names stay.

    Example:
        >>> paths = [Path(f"a/x_{channel}.nii.gz") for channel in ("seg", "t2", "t1ce", "t1", "flair")]
        >>> case = join_channels([VolumeSource(path, (path,)) for path in paths])[0]
        >>> case.name, [path.name for path in case.files][:2]
        ('x', ['x_flair.nii.gz', 'x_t1.nii.gz'])
    """
    cases: dict[Path, dict[str, VolumeSource]] = {}
    others: list[VolumeSource] = []
    for source in sources:
        named = _CHANNEL.fullmatch(source.name) if source.series_uid is None else None
        if named:
            cases.setdefault(source.path.parent / named["case"], {})[named["channel"].lower()] = source
        else:
            others.append(source)
    joined = []
    for path, parts in cases.items():
        if set(parts) == {"seg"}:
            others.append(parts["seg"])
            continue
        files = tuple(parts[channel].path for channel in CHANNELS if channel in parts)
        joined.append(VolumeSource(path, files))
    return sorted([*joined, *others], key=str)


def scan_items(
    dataset_dir: str | Path | None, on_bad: str = "stop", hu_window: Sequence[float] | None = None
) -> list[dict[str, Any]]:
    """Find the scans and check them all.

    Args:
        dataset_dir: the folder of one scan's slices, or a folder with such folders at any depth; with `hu_window` also
            a CT volume or a folder with such.
        on_bad: "stop" raises when scans are bad, naming all; "exclude" leaves them out; "report" hands them on with
            their cause.
        hu_window: HU that become black and white; None = slices only.

    Returns:
        Per scan `image`, `source` and `name`, each its path as text, and `cause` (why it is bad, else ""); in natural
        order.

    Raises:
        DataError: nothing is given, no scan was found, or scans are bad.
    """
    if on_bad not in ON_BAD_SCAN:
        raise DataError(f"on_bad must be one of {', '.join(ON_BAD_SCAN)}, got {on_bad!r}.")
    if not dataset_dir:
        raise DataError("Give the scans: --dataset_dir, the folder of one scan's slices or a folder with such folders.")
    paths = _find(Path(dataset_dir), hu_window)
    checker = SliceFolderChecker(hu_window=hu_window)
    bad: list[BadVolume] = []
    items: list[dict[str, Any]] = []
    for path in paths:
        cause = ""
        try:
            for note in checker(Case(str(path), (path,))).notes:
                logger.warning("%s: %s", path, note)
        except (DataError, OSError) as error:
            cause = cause_of(error)
            bad.append(BadVolume(str(path), cause))
        if not cause or on_bad == "report":
            items.append({"image": str(path), "source": str(path), "name": str(path), "cause": cause})
    if bad and (on_bad == "stop" or len(bad) == len(paths)):
        raise BadVolumesError(bad, len(paths))
    for each in bad:
        logger.warning("left out: %s", each)
    return items


def _find(root: Path, hu_window: Sequence[float] | None) -> list[Path]:
    if root.is_file() or not root.exists():
        return [root]  # the check says what is wrong with it
    tree = walk(root)
    found = {path.parent for path in tree.files if is_slice(path.name)}
    volumes = [path for path in tree.files if suffix_of(path)]
    if hu_window is not None:
        found |= _volumes(root)
    elif volumes and not found:
        raise NoVolumesError(f"{root}: holds {len(volumes)} CT volumes, expected folders of slices; {HU_ADVICE}.")
    if not found:
        raise NoVolumesError(f"{root}: no slices (.png, .jpg) found in {describe_files(tree.files)}.")
    return sorted(found, key=lambda path: natural_key(str(path)))


def _volumes(root: Path) -> set[Path]:
    try:
        sources: list[VolumeSource] = find_volumes(root).sources
    except NoVolumesError:
        return set()
    return {source.path for source in sources}
