"""Read a MONAI/Decathlon style JSON list: every fault of it is named by list, section, item and key."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from mim_components.data.find.walk import find_volumes
from mim_components.data.volumes import DataError, FoundVolumes, NoVolumesError, VolumeSource

KEY = "image"
_SHOWN = 10


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
        DataError: the list or items of it are damaged; names all of them. Or a volume or patient (`group`) is in
            sections `training` and `validation` both.
        NoVolumesError: the section is empty.
    """
    path = Path(path)
    root = Path(dataset_dir) if dataset_dir is not None else path.parent
    content = read_list(path, key)
    items = section_of(path, content, key)
    faults: list[str] = []
    found = FoundVolumes([], root=root)
    folder = DataFolder(root, allow_outside)
    for index, item in enumerate(items):
        try:
            image = _image_of(item, plain_allowed=key == "test")
            found.sources.extend(_sources(folder.inside(image, KEY), found.notes))
        except ValueError as error:  # DataError, or a path that no system takes
            faults.append(f"  item {index}: {error}")
    if faults:
        raise DataError(
            f"{path}: {len(faults)} of {len(items)} items of section '{key}' are wrong:\n" + "\n".join(faults)
        )
    _refuse_shared(path, content, folder)
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
    except (OSError, ValueError, RecursionError) as error:
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


class DataFolder:
    """The folder that the paths of a list are relative to; what is found out about a folder in it holds for its files.

    Args:
        root: the folder.
        allow_outside: accept paths that lead out of it.
    """

    def __init__(self, root: Path, allow_outside: bool = False) -> None:
        self.root = root
        # a command line's "false" is a text, and true
        self._allow_outside = allow_outside is True
        self._within = os.path.realpath(root).rstrip("/") + "/"
        self._real_folders: dict[str, str] = {}

    def inside(self, text: str, key: str) -> Path:
        """Path of an item.

        Args:
            text: path relative to the folder.
            key: of the item, for the message.

        Raises:
            DataError: it leads out of the folder, links followed.
        """
        path = self.root / text
        if not self._allow_outside and not f"{self.real(path)}/".startswith(self._within):
            raise DataError(
                f"key '{key}': {text!r} leads out of {self.root}; give the folder of the data as dataset_dir, or, for "
                "a list that you trust, --allow_outside True"
            )
        return path

    def real(self, path: Path) -> str:
        """`os.path.realpath`, which looks at every folder on the way, but at each of them once."""
        return self._real(os.path.join(os.getcwd(), path))

    def _real(self, path: str) -> str:
        folder, name = os.path.split(path)
        if name in ("", ".", "..") or "\0" in name or os.path.islink(path):
            return os.path.realpath(path)
        if folder not in self._real_folders:
            self._real_folders[folder] = self._real(folder)
        return os.path.join(self._real_folders[folder], name)


def _refuse_shared(path: Path, content: dict[str, Any], folder: DataFolder) -> None:
    """Refuse a list whose sections share a file or a patient; whatever else is wrong with the other section."""
    sections = [content.get(section) for section in ("training", "validation")]
    parts = [[each for each in items if isinstance(each, dict)] for items in sections if isinstance(items, list)]
    for key, what in ((KEY, "volumes"), ("group", "patients")):
        texts = [{item[key] for item in items if isinstance(item.get(key), str)} for items in parts]
        if key == KEY:
            texts = [{folder.real(folder.root / text) for text in each} for each in texts]
        if len(texts) == 2 and (shared := sorted(texts[0] & texts[1])):
            more = f" and {len(shared) - _SHOWN} more" if len(shared) > _SHOWN else ""
            raise DataError(
                f"{path}: {what} in both sections, training and validation: {', '.join(shared[:_SHOWN])}{more}"
            )


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
