"""Names of scans in logs, reports and files: their paths or, with `anonymous_paths`, digests of them.

A digest is computed from the path below the data folder. It is written nowhere beside the path; who has the data finds
the path again by `python -m mim_components.prepare DIR --name_of scan-...`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mim_components.data.find.walk import find_volumes, walk
from mim_components.data.volumes import DataError, FoundVolumes, NoVolumesError, VolumeSource, suffix_of

SCAN, FILE, PATIENT = "scan-", "file-", "patient-"
_DIGITS = 12
# what a message quotes comes out of a file or a list, and may be anything
_QUOTED = re.compile(r"b?'[^']*'|b?\"[^\"]*\"")


def is_anonymous(anonymous_paths: object) -> bool:
    """The option, checked: a text such as "no" would count as true.

    Raises:
        DataError: neither true nor false.
    """
    if not isinstance(anonymous_paths, bool):
        raise DataError(f"anonymous_paths must be True or False, got {anonymous_paths!r}.")
    return anonymous_paths


def digest_name(text: str, prefix: str = SCAN) -> str:
    """A prefix and the first 12 hexadecimal digits of a text's sha256.

    Example:
        >>> digest_name("MUELLER_ANNA_1961.nii.gz")
        'scan-8f7ed625b202'
    """
    return prefix + hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:_DIGITS]


def path_name(path: Path, root: Path, prefix: str = SCAN, series_uid: str | None = None) -> str:
    """The digest of a path below a folder, links not followed, and of the DICOM series in it."""
    below = Path(os.path.relpath(path, root)).as_posix()
    return digest_name(below if series_uid is None else f"{below} [{series_uid}]", prefix)


def name_sources(found: FoundVolumes) -> FoundVolumes:
    """The same volumes, named by digests; of the notes, which name files, only their number is left."""
    sources = [replace(s, alias=path_name(s.path, found.root, SCAN, s.series_uid)) for s in found.sources]
    return FoundVolumes(sources, counted(found.notes), found.root)


def counted(notes: list[str]) -> list[str]:
    """What is said of notes on a search where names are hidden."""
    if not notes:
        return []
    return [f"{len(notes)} remarks on the search name files and are hidden; they are shown without anonymous_paths"]


def names_of_source(source: VolumeSource) -> dict[Path, str]:
    """What `hide` puts in the place of the files of a volume; empty where they may be named."""
    return dict.fromkeys((source.path, *source.files), source.alias) if source.alias else {}


def names_of_item(item: Mapping[str, Any]) -> dict[Path, str]:
    """The same for an item of prepared cases, of which `source` is the first image's path unless that is hidden."""
    image = item.get("image")
    files = [*(image if isinstance(image, list) else [image]), item.get("label")]
    paths = [Path(file) for file in files if isinstance(file, str)]
    source = item.get("source")
    return {} if not paths or source is None or source == str(paths[0]) else dict.fromkeys(paths, str(source))


def hide(text: str, names: Mapping[Path, str]) -> str:
    """A message without the paths and file names, or whatever it quotes.

    Args:
        text: of the message.
        names: what stands for every file or folder; empty = the message stays as it is.
    """
    if not names:
        return text
    for form, name in sorted(_forms(names), key=lambda pair: -len(pair[0])):
        text = re.sub(rf"(?<![^\W_]){re.escape(form)}(?![^\W_])", name, text)
    return _QUOTED.sub("'...'", text)


def _forms(names: Mapping[Path, str]) -> Iterable[tuple[str, str]]:
    """The ways in which messages name a file, and what stands for it."""
    for path, name in names.items():
        stem = path.name[: -len(suffix_of(path))] if suffix_of(path) else path.stem
        for form in {str(path), os.path.abspath(path), f"{path.parent.name}/{path.name}", path.name, stem}:
            # a bare number or a few letters would be found everywhere
            if len(form) > 3 and re.search(r"[^\W\d_]", form):
                yield form, name


def path_of_name(name: str, root: str | Path) -> str:
    """The path, or folder and series, that a digest stands for.

    Args:
        name: `scan-`, `file-` or `patient-` and 12 digits.
        root: the data folder of the run.

    Raises:
        NoVolumesError: the folder is missing, or nothing in it has this digest.
    """
    root = Path(root)
    tree = walk(root)
    prefix = name[: name.find("-") + 1]
    folders = {parent for path in tree.files for parent in path.parents if root in parent.parents}
    for path in [*tree.files, *sorted(folders)]:
        own = digest_name(path.name, PATIENT) if prefix == PATIENT else path_name(path, root, prefix)
        if own == name:
            return str(path)
    for source in find_volumes(root):
        if path_name(source.path, root, prefix, source.series_uid) == name:
            return str(source)
    raise NoVolumesError(f"{root}: nothing in it is called {name}; give the dataset_dir (or data_root) of the run.")
