"""Read a user's MONAI/Decathlon-style JSON list of volumes or labelled cases.

All faults of a list are reported together, each with section, item and key.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from mim_components.data.cases import Case, FoundCases
from mim_components.data.find.walk import find_volumes
from mim_components.data.names import unique_names
from mim_components.data.volumes import DataError, FoundVolumes, NoVolumesError, VolumeSource
from mim_components.utils.text import counted, shorten

KEY = "image"
T = TypeVar("T")


def load_datalist(
    path: str | Path,
    dataset_dir: str | Path | None = None,
    key: str = "training",
    allow_outside: bool = False,
    modality: str = "ct",
) -> FoundVolumes:
    """Read the volumes of one section of a list.

    Args:
        path: JSON file such as `{"training": [{"image": "a.nii.gz"}, ...]}`.
        dataset_dir: folder the paths are relative to and must lie in; the folder of the list when None.
        key: section to read; `test` may hold plain paths, as in the Decathlon's lists.
        allow_outside: accept paths that lead out of the folder.
        modality: modality of DICOM series, "ct" or "mr".

    Returns:
        The volumes in the order of the list. Missing files are included, so that the checks report them with the rest.

    Raises:
        DataError: the list or some items are wrong; names all of them. Or a volume or patient (`group`) is in
            both sections `training` and `validation`.
        NoVolumesError: the section is empty.
    """
    listed = _List(path, dataset_dir, key, allow_outside)
    found = FoundVolumes([], root=listed.root)

    def read(item: Any) -> list[VolumeSource]:
        image = _object(item, (KEY,), key)[KEY]
        return _sources(_path_of(image, listed.folder, KEY), found, modality)

    found.sources = [source for _, sources in listed.read(key, read) for source in sources]
    listed.refuse()
    _refuse_shared(listed)
    repeated = [name for name, count in Counter(map(str, found.sources)).items() if count > 1]
    found.notes.extend(f"{path}: {name} is listed more than once" for name in repeated)
    return found


class _List:
    """A list being read: its sections, the folder of its paths, and the faults of its items.

    Args:
        path: JSON file.
        dataset_dir: folder that the paths are relative to; None = the folder of the list.
        key: expected section, for messages.
        allow_outside: accept paths that lead out of the folder.

    Raises:
        DataError: the file or folder is missing, or it is not a JSON object.
    """

    def __init__(self, path: str | Path, dataset_dir: str | Path | None, key: str, allow_outside: bool) -> None:
        self.path = Path(path)
        self.content = _read_list(self.path, key)
        self.root = Path(dataset_dir) if dataset_dir is not None else self.path.parent
        if not self.root.is_dir():
            raise NoVolumesError(
                f"{self.root}: there is no such folder, expected the folder that {path} is relative to."
            )
        self.folder = DataFolder(self.root, allow_outside)
        self.faults: list[str] = []
        self._items = 0

    def section(self, key: str) -> list[Any]:
        """Items of a section.

        Raises:
            DataError: the section is missing, is not a list, or is empty.
        """
        if key not in self.content:
            raise DataError(f"{self.path}: there is no section '{key}'; sections: {sorted(map(str, self.content))}")
        items = self.content[key]
        if not isinstance(items, list):
            raise DataError(f"{self.path}: section '{key}' is a {type(items).__name__}, expected a list of items")
        if not items:
            raise NoVolumesError(f"{self.path}: section '{key}' is empty, expected at least one item")
        return items

    def read(self, key: str, read: Callable[[Any], T]) -> list[tuple[str, T]]:
        """Place of each item of a section, and the result of `read`; its errors are collected for `refuse`."""
        done, items = [], self.section(key)
        self._items += len(items)
        for index, item in enumerate(items):
            place = f"{key} item {index}"
            try:
                done.append((place, read(item)))
            except ValueError as error:  # DataError, or a path that the system rejects
                self.faults.append(f"  {place}: {error}")
        return done

    def refuse(self) -> None:
        """Report all collected faults.

        Raises:
            DataError: there are faults.
        """
        if self.faults:
            lines = "\n".join(self.faults)
            faults, items = counted(len(self.faults), "fault"), counted(self._items, "item")
            raise DataError(f"{self.path}: {faults} in {items}:\n{lines}")


def _read_list(path: Path, key: str) -> dict[str, Any]:
    expected = f"an object with the section '{key}': " + '{"training": [{"image": "..."}]}'
    if path.is_dir():
        raise DataError(f"{path}: is a folder, expected a JSON list; give a folder with scans as --dataset_dir alone.")
    if not path.is_file():
        raise NoVolumesError(f"{path}: there is no such list.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: the list cannot be read: {error.strerror}") from error
    if path.suffix.lower() in (".csv", ".tsv"):
        raise DataError(f"{path}: is a table that begins with {_beginning(data)}, expected a JSON list, {expected}")
    try:
        content = json.loads(data)  # bytes: JSON detects the encoding, including a byte order mark
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: the list is not readable JSON: {error}; it begins with {_beginning(data)}, expected {expected}"
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: the list is a {type(content).__name__} at its top level, expected {expected}")
    return content


def _beginning(data: bytes) -> str:
    return repr(data[:40].decode("utf-8", "replace").partition("\n")[0])


def _object(item: Any, keys: Sequence[str], section: str | None) -> dict[str, Any]:
    """An item with its required keys; in section `test` a plain image is enough, as in the Decathlon's lists.

    Raises:
        DataError: it is not an object, or a key is missing.
    """
    if section == "test" and isinstance(item, (str, list)):
        item = {KEY: item}
    if not isinstance(item, dict):
        names = f"the keys {' and '.join(map(repr, keys))}" if len(keys) > 1 else f"the key {keys[0]!r}"
        raise DataError(f"is {shown(item)}, expected an object with {names}")
    if missing := [key for key in keys if key not in item]:
        raise DataError(f"has no key '{missing[0]}'; keys: {sorted(map(str, item))}")
    return item


class DataFolder:
    """The folder that the paths of a list are relative to; each folder in it is resolved only once.

    Args:
        root: the folder.
        allow_outside: accept paths that lead out of it.
    """

    def __init__(self, root: Path, allow_outside: bool = False) -> None:
        self.root = root
        # "false" from a command line is a string, and true
        self._allow_outside = allow_outside is True
        self._within = os.path.realpath(root).rstrip("/") + "/"
        self._real_folders: dict[str, str] = {}

    def inside(self, text: str, key: str) -> Path:
        """Path of an item.

        Args:
            text: path relative to the folder.
            key: key of the item, for the message.

        Raises:
            DataError: it leads out of the folder after following links.
        """
        path = self.root / text
        if not self._allow_outside and not f"{self.real(path)}/".startswith(self._within):
            raise DataError(
                f"key '{key}': {text!r} leads out of {self.root}; give the data folder as dataset_dir "
                "(probe::dataset_dir of a probe), or, for a list that you trust, --found::allow_outside True "
                "(--allow_outside of mim_tools.prepare)"
            )
        return path

    def real(self, path: Path) -> str:
        """`os.path.realpath` that examines every folder on the way only once."""
        return self._real(os.path.join(os.getcwd(), path))

    def _real(self, path: str) -> str:
        folder, name = os.path.split(path)
        if name in ("", ".", "..") or "\0" in name or os.path.islink(path):
            return os.path.realpath(path)
        if folder not in self._real_folders:
            self._real_folders[folder] = self._real(folder)
        return os.path.join(self._real_folders[folder], name)


def _refuse_shared(listed: _List) -> None:
    """Refuse a list whose sections share a file or a patient, whatever else is wrong with the other section."""
    folder = listed.folder
    sections = [listed.content.get(section) for section in ("training", "validation")]
    parts = [[each for each in items if isinstance(each, dict)] for items in sections if isinstance(items, list)]
    for key, what in ((KEY, "volumes"), ("group", "patients")):
        texts = [{item[key] for item in items if isinstance(item.get(key), str)} for items in parts]
        if key == KEY:
            texts = [{folder.real(folder.root / text) for text in each} for each in texts]
        if len(texts) == 2 and (shared := sorted(texts[0] & texts[1])):
            raise DataError(f"{listed.path}: {what} in both sections, training and validation: {shorten(shared, 10)}")


def _sources(path: Path, volumes: FoundVolumes, modality: str) -> list[VolumeSource]:
    if not path.is_dir():
        return [VolumeSource(path, (path,))]
    try:
        found = find_volumes(path, modality)
    except NoVolumesError as error:
        raise DataError(f"key '{KEY}': " + str(error).replace("\n", "\n  ")) from error
    if len(found) > 1:
        raise DataError(f"key '{KEY}': {path} holds {len(found)} volumes, expected one")
    volumes.notes.extend(f"{path}: {found.sources[0]} is used; passed over: {note}" for note in found.notes)
    volumes.passed.extend(found.passed)
    return found.sources


def shown(value: Any) -> str:
    """JSON of a value, shortened for a message."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def load_cases(path: str | Path, dataset_dir: str | Path | None = None, allow_outside: bool = False) -> FoundCases:
    """Read a list of labelled cases.

    Args:
        path: JSON file: `training`, and optionally `validation`, with items of `image` (a path, or one per channel),
            `label` (a path, or the number of a class), and optionally `fold`, `name`, `group`; `test` with images.
        dataset_dir: folder the paths are relative to and must lie in; the folder of the list when None.
        allow_outside: accept paths that lead out of the folder.

    Raises:
        DataError: the list or some items are wrong, or a file is listed twice; names all of them.
    """
    # absolute, since the list that a run writes names files outside the folder by it
    root = (Path(path).parent if dataset_dir is None else Path(dataset_dir)).absolute()
    listed = _List(path, root, "training", allow_outside)
    sections = ["training", *(section for section in ("validation", "test") if listed.content.get(section))]
    placed: list[tuple[str, Case]] = []
    for section in sections:
        kind = section if section == "test" or "validation" in sections else None
        placed += listed.read(section, partial(_case_of, folder=listed.folder, section=kind))
    if not listed.faults:
        placed = _named(placed, root)
        listed.faults += _repeats(placed, listed.folder)
    listed.refuse()
    cases = [case for _, case in placed if case.section != "test"]
    unlabelled = [replace(case, section=None) for _, case in placed if case.section == "test"]
    label_set = listed.content.get("label_set")
    found = FoundCases(root, "datalist", cases, unlabelled, [], label_set if isinstance(label_set, str) else None)
    if "validation" in sections and (folds := sum("fold" in item for item in listed.content["training"])):
        found.notes.append(f"{path}: {counted(folds, 'key')} 'fold' not used: the list has a section 'validation'")
    return found


def _case_of(item: Any, folder: DataFolder, section: str | None) -> Case:
    item = _object(item, (KEY,) if section == "test" else (KEY, "label"), section)
    images = item["image"] if isinstance(item["image"], list) else [item["image"]]
    if not images:
        raise DataError("key 'image' is [], expected a path or one path per channel")
    return Case(
        name=_text_of(item, "name"),
        image=tuple(_path_of(image, folder, "image") for image in images),
        label=None if section == "test" else _label_of(item["label"], folder),
        group=_text_of(item, "group"),
        fold=None if section else _fold_of(item),
        section=section,
    )


def _path_of(value: Any, folder: DataFolder, key: str) -> Path:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"key '{key}' is {shown(value)}, expected a path")
    return folder.inside(value, key)


def _label_of(value: Any, folder: DataFolder) -> Path | int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return _path_of(value, folder, "label")


def _fold_of(item: dict[str, Any]) -> int | None:
    fold = item.get("fold")
    if fold is not None and (not isinstance(fold, int) or isinstance(fold, bool) or fold < 0):
        raise DataError(f"key 'fold' is {shown(fold)}, expected a whole number from 0")
    return fold


def _text_of(item: dict[str, Any], key: str) -> str:
    text = item.get(key, "")
    # the name of a case becomes part of file names
    if not isinstance(text, str) or "/" in text or "\0" in text or text in (".", ".."):
        raise DataError(f"key '{key}' is {shown(text)}, expected a text without '/'")
    return text


def _named(placed: list[tuple[str, Case]], root: Path) -> list[tuple[str, Case]]:
    """Give every case without a name that of its first file."""
    derived = unique_names([VolumeSource(case.image[0], case.image[:1]) for _, case in placed], root)
    return [
        (place, case if case.name else replace(case, name=name, group=case.group or name))
        for (place, case), name in zip(placed, derived, strict=True)
    ]


def _repeats(placed: list[tuple[str, Case]], folder: DataFolder) -> Iterator[str]:
    """Names and images that occur twice."""
    names: dict[str, str] = {}
    files: dict[str, str] = {}
    for place, case in placed:
        if (first := names.setdefault(case.name, place)) != place:
            yield f"  {place}: name {shown(case.name)} is also that of {first}"
        own = set()
        for image in case.image:
            real = folder.real(image)
            if real in own or (first := files.setdefault(real, place)) != place:
                other = place if real in own else first
                yield f"  {place}: image {shown(str(image.name))} is also that of {other}"
            own.add(real)
