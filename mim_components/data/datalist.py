"""Read a MONAI/Decathlon style JSON list: every fault of it is named by list, section, item and key."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from .finding import find_volumes
from .volumes import DataError, FoundVolumes, NoVolumesError, VolumeSource

KEY = "image"


def load_datalist(
    path: str | Path, dataset_dir: str | Path | None = None, key: str = "training", allow_outside: bool = False
) -> FoundVolumes:
    """Read the volumes of one section of a list.

    Args:
        path: JSON file such as `{"training": [{"image": "a.nii.gz"}, ...]}`.
        dataset_dir: folder the paths are relative to and must lie in; the folder of the list when None.
        key: section; `test` may hold plain paths, as in the Decathlon's lists.
        allow_outside: accept paths that lead out of the folder.

    Returns:
        The volumes in the order of the list. Missing files are handed on, for the checks to name with the rest.

    Raises:
        DataError: the list or items of it are damaged; names all of them.
        NoVolumesError: the section is empty.
    """
    path = Path(path)
    root = Path(dataset_dir) if dataset_dir is not None else path.parent
    items = section_of(path, read_list(path, key), key)
    faults: list[str] = []
    found = FoundVolumes([])
    for index, item in enumerate(items):
        try:
            image = _image_of(item, plain_allowed=key == "test")
            found.sources.extend(_sources(inside(image, root, KEY, allow_outside), found.notes))
        except DataError as error:
            faults.append(f"  item {index}: {error}")
    if faults:
        raise DataError(
            f"{path}: {len(faults)} of {len(items)} items of section '{key}' are wrong:\n" + "\n".join(faults)
        )
    repeated = [name for name, count in Counter(map(str, found.sources)).items() if count > 1]
    found.notes.extend(f"{path}: {name} is listed more than once" for name in repeated)
    return found


def read_list(path: Path, key: str) -> dict[str, Any]:
    """Read a list.

    Args:
        path: JSON file.
        key: a section that is expected, for the message.

    Raises:
        DataError: no file, no JSON, or no object at the top level.
    """
    if not path.is_file():
        raise NoVolumesError(f"{path}: there is no such list.")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: the list is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(
            f"{path}: the list is a {type(content).__name__} at its top level, "
            f"expected an object with the section '{key}': " + '{"training": [{"image": "..."}]}'
        )
    return content


def section_of(path: Path, content: dict[str, Any], key: str) -> list[Any]:
    """Items of a section of a list.

    Raises:
        DataError: the section is missing, is not a list, or is empty.
    """
    if key not in content:
        raise DataError(f"{path}: there is no section '{key}'; sections: {sorted(map(str, content))}")
    items = content[key]
    if not isinstance(items, list):
        raise DataError(f"{path}: section '{key}' is a {type(items).__name__}, expected a list of items")
    if not items:
        raise NoVolumesError(f"{path}: section '{key}' is empty, expected at least one item")
    return items


def _image_of(item: Any, plain_allowed: bool) -> str:
    if isinstance(item, str) and plain_allowed:
        return item
    if not isinstance(item, dict):
        raise DataError(f"is {shown(item)}, expected an object with the key '{KEY}'")
    if KEY not in item:
        raise DataError(f"has no key '{KEY}'; keys: {sorted(map(str, item))}")
    image = item[KEY]
    if not isinstance(image, str) or not image.strip():
        raise DataError(f"key '{KEY}' is {shown(image)}, expected one path")
    return image


def inside(text: str, root: Path, key: str, allow_outside: bool = False) -> Path:
    """Path of an item below the folder of the data, links followed.

    Args:
        text: path relative to `root`.
        root: folder of the data.
        key: of the item, for the message.
        allow_outside: accept a path that leads out of the folder.

    Raises:
        DataError: it leads out of the folder.
    """
    path = root / text
    real_root, real = os.path.realpath(root), os.path.realpath(path)
    # a command line's "false" is a text, and true
    if allow_outside is not True and os.path.commonpath([real_root, real]) != real_root:
        raise DataError(
            f"key '{key}': {text!r} leads out of {root}; give the folder of the data as dataset_dir, or, for a list "
            "that you trust, --allow_outside True"
        )
    return path


def _sources(path: Path, notes: list[str]) -> list[VolumeSource]:
    if not path.is_dir():
        return [VolumeSource(path, (path,))]
    try:
        found = find_volumes(path)
    except NoVolumesError:
        return [VolumeSource(path, (path,))]
    notes.extend(found.notes)
    if len(found) > 1:
        raise DataError(f"key '{KEY}': {path} holds {len(found)} volumes, expected one")
    return found.sources


def shown(value: Any) -> str:
    """JSON of a value, shortened for a message."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
