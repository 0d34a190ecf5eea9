"""MONAI/Decathlon style JSON lists of volumes and of labelled cases: read a user's, write the one that a run used.

Every fault of a list is named by list, section, item and key, all at once.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from mim_components.data.cases import Case, FoundCases
from mim_components.data.find.walk import find_volumes
from mim_components.data.names import unique_names
from mim_components.data.prepare.splits import Division
from mim_components.data.volumes import DataError, FoundVolumes, NoVolumesError, VolumeSource
from mim_components.utils.text import shorten

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
            raise DataError(f"{path}: {what} in both sections, training and validation: {shorten(shared, 10)}")


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


_SECTIONS = ("training", "validation", "test")


@dataclass
class _Reading:
    """What was read of a list so far: cases and where they stand, and what is wrong."""

    cases: list[Case] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def load_cases(path: str | Path, dataset_dir: str | Path | None = None, allow_outside: bool = False) -> FoundCases:
    """Read a list of labelled cases.

    Args:
        path: JSON file: `training`, and optionally `validation`, with items of `image` (a path, or one per channel),
            `label` (a path, or the number of a class), and optionally `fold`, `name`, `group`; `test` with images.
        dataset_dir: folder the paths are relative to and must lie in; the folder of the list when None.
        allow_outside: accept paths that lead out of the folder.

    Raises:
        DataError: the list or items of it are wrong, or a file is listed twice; names all of them.
    """
    path = Path(path)
    root = (Path(dataset_dir) if dataset_dir is not None else path.parent).absolute()
    content = read_list(path, "training")
    if not root.is_dir():
        raise NoVolumesError(f"{root}: there is no such folder, expected the folder that {path} is relative to.")
    parts = {"training": section_of(path, content, "training")}
    for section in _SECTIONS[1:]:
        if content.get(section):
            parts[section] = section_of(path, content, section)
    reading, folder = _Reading(), DataFolder(root, allow_outside)
    for section, items in parts.items():
        kind = section if section == "test" or "validation" in parts else None
        _read_items(reading, section, items, partial(_case_of, folder=folder, section=kind))
    if not reading.faults:
        _name(reading, root)
        _check_repeats(reading, folder)
    if reading.faults:
        total = sum(len(items) for items in parts.values())
        raise DataError(f"{path}: {len(reading.faults)} faults in {total} items:\n" + "\n".join(reading.faults))
    cases = [case for case in reading.cases if case.section != "test"]
    unlabelled = [replace(case, section=None) for case in reading.cases if case.section == "test"]
    label_set = content.get("label_set")
    return FoundCases(root, "datalist", cases, unlabelled, [], label_set if isinstance(label_set, str) else None)


def datalist_of(found: FoundCases, division: Division, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a list that, given back, divides the same cases in the same way.

    Args:
        found: where the cases lie, and those without label.
        division: the cases and their folds.
        facts: what else the list says, such as name, modality and labels.
    """
    by_fold = division.folds is not None
    cases = [*division.training, *division.validation] if by_fold else division.training
    content: dict[str, Any] = {
        **facts,
        "numTraining": len(division.training) + len(division.validation),
        "numTest": len(found.unlabelled),
        "training": [_item_of(case, found.root, division.folds or {}) for case in cases],
    }
    if not by_fold:
        content["validation"] = [_item_of(case, found.root, {}) for case in division.validation]
    content["test"] = [{"name": case.name, "image": _relative(case.image, found.root)} for case in found.unlabelled]
    if found.label_set is not None:
        content["label_set"] = found.label_set
    return content


def _item_of(case: Case, root: Path, folds: Mapping[str, int]) -> dict[str, Any]:
    item: dict[str, Any] = {"fold": folds[case.name]} if case.name in folds else {}
    item |= {"name": case.name, "image": _relative(case.image, root)}
    item["label"] = _relative((case.label,), root) if isinstance(case.label, Path) else case.label
    return item | ({"group": case.group} if case.group != case.name else {})


def _relative(files: tuple[Path, ...], root: Path) -> str | list[str]:
    paths = [(file.relative_to(root) if file.is_relative_to(root) else file).as_posix() for file in files]
    return paths[0] if len(paths) == 1 else paths


def _read_items(reading: _Reading, section: str, items: list[Any], read: Callable[[Any], Case]) -> None:
    for index, item in enumerate(items):
        place = f"{section} item {index}"
        try:
            reading.cases.append(read(item))
            reading.places.append(place)
        except ValueError as error:  # DataError, or a path that no system takes
            reading.faults.append(f"  {place}: {error}")


def _case_of(item: Any, folder: DataFolder, section: str | None) -> Case:
    if section == "test" and isinstance(item, (str, list)):
        item = {"image": item}
    if not isinstance(item, dict):
        raise DataError(f"is {shown(item)}, expected an object with the keys 'image' and 'label'")
    if missing := [key for key in ("image", "label") if key not in item and (section != "test" or key == "image")]:
        raise DataError(f"has no key '{missing[0]}'; keys: {sorted(map(str, item))}")
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
    # the name of a case becomes the name of files
    if not isinstance(text, str) or "/" in text or "\0" in text or text in (".", ".."):
        raise DataError(f"key '{key}' is {shown(text)}, expected a text without '/'")
    return text


def _name(reading: _Reading, root: Path) -> None:
    """Give every case without a name that of its first file."""
    derived = unique_names([VolumeSource(case.image[0], case.image[:1]) for case in reading.cases], root)
    for index, (case, name) in enumerate(zip(reading.cases, derived, strict=True)):
        if not case.name:
            group = case.group or name
            reading.cases[index] = replace(case, name=name, group=group)


def _check_repeats(reading: _Reading, folder: DataFolder) -> None:
    names: dict[str, str] = {}
    files: dict[str, str] = {}
    for case, place in zip(reading.cases, reading.places, strict=True):
        if (first := names.setdefault(case.name, place)) != place:
            reading.faults.append(f"  {place}: name {shown(case.name)} is that of {first} as well")
        own = set()
        for image in case.image:
            real = folder.real(image)
            if real in own or (first := files.setdefault(real, place)) != place:
                other = place if real in own else first
                reading.faults.append(f"  {place}: image {shown(str(image.name))} is that of {other} as well")
            own.add(real)
