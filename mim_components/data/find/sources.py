"""Find the cases of a dataset as it unpacks from its archive, or as a user's list names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mim_components.data.cases import FoundCases
from mim_components.data.find.layouts import LAYOUTS, Folder, Layout, all_layouts
from mim_components.data.find.walk import describe_files
from mim_components.data.volumes import DataError, NoVolumesError
from mim_components.datasets.datalist import load_cases

# what an entry of a bundle's metadata says beside the arguments of the layout
_OWN_KEYS = ("name", "label_set", "num_cases")


def find_cases(
    dataset_dir: str | Path | None,
    datalist: str | Path | None = None,
    layouts: Sequence[Mapping[str, Any]] = (),
    allow_outside: bool = False,
) -> FoundCases:
    """Find the cases of a dataset; opens no images.

    Args:
        dataset_dir: folder of the dataset, or one up to two levels above it; with `datalist` the folder its paths are
            relative to.
        datalist: JSON list in the Decathlon's form, which is used instead of a layout.
        layouts: section `dataset.layouts` of a bundle's metadata: `name` of a layout, options of it, and optionally
            `label_set`, the label set that its files need, and `num_cases`, how many it has when it is complete. The
            first that recognises the folder is used.
        allow_outside: accept paths of the list that lead out of the folder.

    Raises:
        DataError: nothing is given, the list is wrong, or no layout recognises the folder; says what was expected and
            which dataset it looks like.
    """
    if datalist:
        return load_cases(datalist, dataset_dir or None, allow_outside)
    if not dataset_dir:
        raise DataError("Give the dataset: dataset_dir, the folder that its archive unpacks to, or a datalist.")
    path = Path(dataset_dir).absolute()
    made = [(entry, _make(entry)) for entry in layouts]
    wanted = ", or ".join(f"{layout.dataset}: {layout.expected}" for _, layout in made)
    if not path.is_dir():
        is_what = "is a file" if path.exists() else "there is no such folder"
        raise NoVolumesError(f"{path}: {is_what}, expected the folder of {wanted}.")
    folder = Folder(path)
    for entry, layout in made:
        if layout.recognises(folder):
            found = layout.find(folder)
            found.layout, found.label_set = entry["name"], entry.get("label_set")
            found.num_cases = entry.get("num_cases")
            return found
    raise NoVolumesError(f"{path}: expected {wanted}; found {_what_is(folder)}.")


def _make(entry: Mapping[str, Any]) -> Layout:
    if entry["name"] not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {entry['name']!r}.")
    return LAYOUTS[entry["name"]](**{key: value for key, value in entry.items() if key not in _OWN_KEYS})


def _what_is(folder: Folder) -> str:
    seen = describe_files([folder.path / path for path in folder.files])
    likely = [layout for layout in all_layouts() if layout.recognises(folder)]
    if not likely:
        return seen
    names = " and ".join(layout.dataset for layout in likely)
    bundles = " or ".join(layout.bundle for layout in likely if layout.bundle)
    advice = f"; use the bundle {bundles}" if bundles else ", for which there is no bundle"
    return f"{seen}. It looks like {names}{advice}"
