"""Which scans an inference works on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mim_components.classification.scans import HU_ADVICE
from mim_components.data.cases import Case
from mim_components.data.check.slices import SliceFolderChecker
from mim_components.data.find.walk import describe_files, find_volumes, walk
from mim_components.data.inputs import ON_BAD_SCAN
from mim_components.data.read.slices import is_slice
from mim_components.data.read.volume import cause_of
from mim_components.data.volumes import (
    BadVolume,
    BadVolumesError,
    DataError,
    NoVolumesError,
    VolumeSource,
    suffix_of,
)
from mim_components.datasets.names import natural_key

logger = logging.getLogger(__name__)


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
