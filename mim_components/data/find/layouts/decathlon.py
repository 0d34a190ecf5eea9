"""Medical Segmentation Decathlon: `dataset.json`, `imagesTr`, `labelsTr`, `imagesTs`, the same for every task."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from mim_components.data.cases import FoundCases
from mim_components.data.find.layouts.base import Folder
from mim_components.data.find.layouts.pairs import PairedFiles

# task to its bundle, and to possible beginnings of `name` in dataset.json and of file names
TASKS = {
    "Task01_BrainTumour": ("mim_brats_segmentation", ("brats", "braintumour")),
    "Task02_Heart": ("", ("la", "leftatrium", "heart")),
    "Task03_Liver": ("mim_msd_liver_segmentation", ("liver",)),
    "Task04_Hippocampus": ("", ("hippocampus",)),
    "Task05_Prostate": ("", ("prostate",)),
    "Task06_Lung": ("mim_msd_lung_segmentation", ("lung",)),
    "Task07_Pancreas": ("mim_msd_pancreas_segmentation", ("pancreas",)),
    "Task08_HepaticVessel": ("mim_msd_hepaticvessel_segmentation", ("hepaticvessel",)),
    "Task09_Spleen": ("mim_msd_spleen_segmentation", ("spleen",)),
    "Task10_Colon": ("mim_msd_colon_segmentation", ("colon", "coloncancer")),
}


class Decathlon:
    """A task of the Decathlon. The cases are the existing files, whatever `dataset.json` lists.

    Args:
        task: name of the task, such as "Task09_Spleen".

    Raises:
        ValueError: there is no such task.
    """

    def __init__(self, task: str) -> None:
        if task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}.")
        self.task = task
        self._pairs = PairedFiles(
            dataset=f"MSD {task}",
            bundle=TASKS[task][0],
            expected=f"{task}/dataset.json, {task}/imagesTr/ and {task}/labelsTr/",
            image=r"imagesTr/(?P<id>[^/]+?)",
            label=r"labelsTr/(?P<id>[^/]+?)",
            unlabelled=r"imagesTs/(?P<id>[^/]+?)",
        )
        self.dataset, self.bundle, self.expected = self._pairs.dataset, self._pairs.bundle, self._pairs.expected

    def recognises(self, folder: Folder) -> bool:
        """Whether a folder with `imagesTr` and `labelsTr` belongs to the task."""
        return bool(self._tops(folder))

    def find(self, folder: Folder) -> FoundCases:
        """All pairs; missing files that `dataset.json` lists are counted in a note.

        Raises:
            DataError: the task lies in the folder twice, or no image has a label.
        """
        (top, *_) = tops = self._tops(folder)
        found = self._pairs.find_below(folder, tops)
        listed = [str(item.get("image")) for item in _entries(_dataset_json(folder, top))]
        there = {path.name for case in found.cases for path in case.image}
        if missing := [name for name in listed if Path(name).name not in there]:
            found.notes.append(f"{len(missing)} of {len(listed)} training entries of dataset.json have no files here")
        return found

    def _tops(self, folder: Folder) -> list[str]:
        return [top for top in self._pairs.tops(folder) if _task_of(folder, top) == self.task]


def _task_of(folder: Folder, top: str) -> str | None:
    """The task by `name` in dataset.json, else by the folder name, else by most image names."""
    content = _dataset_json(folder, top)
    parent = (folder.path / top).resolve().name
    return _by_name(str(content.get("name", ""))) or _by_folder(parent) or _by_files(folder, top)


def _by_name(name: str) -> str | None:
    plain = re.sub("[^a-z]", "", name.lower())
    return next((task for task, (_, names) in TASKS.items() if plain in names), None)


def _by_folder(name: str) -> str | None:
    return next((task for task in TASKS if task.lower() == name.lower()), None)


def _by_files(folder: Folder, top: str) -> str | None:
    images = [path[len(top) :] for path in folder.files if path.startswith(f"{top}imagesTr/")]
    begins = Counter(re.split("[_0-9.]", Path(image).name, maxsplit=1)[0] for image in images)
    return _by_name(begins.most_common(1)[0][0]) if begins else None


def _dataset_json(folder: Folder, top: str) -> dict[str, Any]:
    try:
        content = json.loads((folder.path / top / "dataset.json").read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}  # it only helps to identify the task
    return content if isinstance(content, dict) else {}


def _entries(content: dict[str, Any]) -> list[dict[str, Any]]:
    training = content.get("training")
    return [item for item in training if isinstance(item, dict)] if isinstance(training, list) else []
