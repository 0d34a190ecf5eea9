"""Names of scans in logs, reports and files: their paths or, with `anonymous_paths`, digests of them.

A digest is computed from the path below the data folder. It is never written beside the path; whoever has the data
finds the path with `python -m mim_tools.prepare DIR --name_of scan-...`.

Also natural sorting of names with numbers, and unique file names.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mim_components.data.volumes import DataError, FoundVolumes, VolumeSource, suffix_of
from mim_components.utils.files import shorten_name, text_digest
from mim_components.utils.text import counted

SCAN, FILE, PATIENT = "scan-", "file-", "patient-"
_DIGITS = 12
# quoted parts of a message come from a file or a list, and may be anything
_QUOTED = re.compile(r"b?'[^']*'|b?\"[^\"]*\"")


def is_anonymous(anonymous_paths: object) -> bool:
    """The checked option: a string such as "no" would count as true.

    Raises:
        DataError: neither true nor false.
    """
    if not isinstance(anonymous_paths, bool):
        raise DataError(f"anonymous_paths must be True or False, got {anonymous_paths!r}.")
    return anonymous_paths


def digest_name(text: str, prefix: str = SCAN) -> str:
    """A prefix and the first 12 hexadecimal digits of the sha256 of a text.

    Example:
        >>> digest_name("MUELLER_ANNA_1961.nii.gz")
        'scan-8f7ed625b202'
    """
    return prefix + text_digest(text)[:_DIGITS]


def path_name(path: Path, root: Path, prefix: str = SCAN, series_uid: str | None = None) -> str:
    """The digest of a path below a folder, without following links, and of the DICOM series in it."""
    below = Path(os.path.relpath(path, root)).as_posix()
    return digest_name(below if series_uid is None else f"{below} [{series_uid}]", prefix)


def name_sources(found: FoundVolumes) -> FoundVolumes:
    """The same volumes, named by digests; notes, which name files, are reduced to their number."""

    def hidden(source: VolumeSource) -> VolumeSource:
        return replace(source, alias=path_name(source.path, found.root, SCAN, source.series_uid))

    sources = [hidden(source) for source in found.sources]
    passed = [replace(each, source=hidden(each.source)) for each in found.passed]
    return replace(found, sources=sources, notes=notes_summary(found.notes), passed=passed)


def notes_summary(notes: list[str]) -> list[str]:
    """What remains of notes on a search if names are hidden: their number."""
    if not notes:
        return []
    return [f"{counted(len(notes), 'remark')} on the search hidden, as they name files; shown without anonymous_paths"]


def names_of_source(source: VolumeSource) -> dict[Path, str]:
    """Replacements by `hide` for the files of a volume; empty if they may be named."""
    return dict.fromkeys((source.path, *source.files), source.alias) if source.alias else {}


def names_of_item(item: Mapping[str, Any]) -> dict[Path, str]:
    """The same for an item of prepared cases; its `source` is the path of its first image unless that is hidden."""
    image = item.get("image")
    files = [*(image if isinstance(image, list) else [image]), item.get("label")]
    paths = [Path(file) for file in files if isinstance(file, str)]
    source = item.get("source")
    return {} if not paths or source is None or source == str(paths[0]) else dict.fromkeys(paths, str(source))


def hide(text: str, names: Mapping[Path, str]) -> str:
    """Redact paths, file names and all quoted parts of a message.

    Args:
        text: text of the message.
        names: replacement for every file or folder; empty = the message stays unchanged.
    """
    if not names:
        return text
    for form, name in sorted(_forms(names), key=lambda pair: -len(pair[0])):
        text = re.sub(rf"(?<![^\W_]){re.escape(form)}(?![^\W_])", name, text)
    return _QUOTED.sub("'...'", text)


def _forms(names: Mapping[Path, str]) -> Iterable[tuple[str, str]]:
    """The forms in which messages name a file, and their replacement."""
    for path, name in names.items():
        stem = path.name[: -len(suffix_of(path))] if suffix_of(path) else path.stem
        for form in {str(path), os.path.abspath(path), f"{path.parent.name}/{path.name}", path.name, stem}:
            # a bare number or a few letters would match everywhere
            if len(form) > 3 and re.search(r"[^\W\d_]", form):
                yield form, name


def unique_names(sources: Sequence[VolumeSource], root: Path) -> list[str]:
    """A unique file name for every volume, also on case-insensitive file systems.

    It is the volume's own name; if that occurs more than once, the folders below `root` are prefixed, and if
    that does not help, a number is appended.

    Example:
        >>> paths = [Path("in/a/ct.nii.gz"), Path("in/b/ct.nii.gz"), Path("in/b/ct.mha"), Path("in/x.nii")]
        >>> unique_names([VolumeSource(path, (path,)) for path in paths], Path("in"))
        ['a_ct', 'b_ct', 'b_ct_2', 'x']
    """
    short = [_as_file_name(source.name) for source in sources]
    counts = Counter(name.casefold() for name in short)
    taken = set(counts)  # includes names that occur once: they are not given to others
    numbers: defaultdict[str, int] = defaultdict(lambda: 1)  # the last number tried
    names: list[str] = []
    for source, name in zip(sources, short, strict=True):
        if counts[name.casefold()] > 1:
            name = long = _as_file_name("_".join([*_folders(source, root), name]))
            while name.casefold() in taken:
                numbers[long] += 1
                name = f"{long}_{numbers[long]}"
        taken.add(name.casefold())
        names.append(name)
    return names


def _folders(source: VolumeSource, root: Path) -> tuple[str, ...]:
    """Names of the folders between `root` and the volume."""
    folder = source.path if source.series_uid is not None else source.path.parent
    try:
        return folder.relative_to(root).parts
    except ValueError:
        return ()


def _as_file_name(text: str) -> str:
    # a SeriesInstanceUID can be anything, including "../"
    return shorten_name(re.sub(r"[^\w .+-]", "_", text).lstrip(". ")) or "volume"


def natural_key(name: str) -> list[str | int]:
    """Sort key that compares numbers by value.

    Example:
        >>> sorted(["spleen_10", "spleen_9", "A-0047_1", "A-0047"], key=natural_key)
        ['A-0047', 'A-0047_1', 'spleen_9', 'spleen_10']
    """
    # text and numbers alternate, so that keys compare position by position
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"([0-9]+)", name))]
