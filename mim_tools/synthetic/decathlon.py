"""Layout of the Medical Segmentation Decathlon: `dataset.json`, `imagesTr`, `labelsTr`, `imagesTs`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mim_components.utils.files import write_text_safely
from mim_tools.synthetic.brain import BRAIN_LABELS
from mim_tools.synthetic.generate import DESCRIPTION
from mim_tools.synthetic.scenes import ABDOMEN, BELLY, CHEST, LIVER, PANCREAS, Scene, check_count, numbers, unused
from mim_tools.synthetic.writer import CaseWriter

# file that macOS adds next to each file in an archive: magic number, version, filler, no entries
_APPLE_DOUBLE = bytes.fromhex("0005160700020000") + b"Mac OS X".ljust(16) + bytes(2)


@dataclass(frozen=True)
class Task:
    """One task of the Decathlon.

    Attributes:
        folder: name of the task's folder, such as Task09_Spleen.
        prefix: prefix of the file names.
        first: first numbers of the labelled cases.
        count: number of labelled cases of the whole task.
        labels: name by value, as in `dataset.json`.
        scene: what the CTs show; None for the brain.
        digits: minimum number of digits in a file name.
        modality: modality by channel.
    """

    folder: str
    prefix: str
    first: tuple[int, ...]
    count: int
    labels: tuple[str, ...]
    scene: Scene | None
    digits: int = 3
    modality: tuple[str, ...] = field(default=("CT",))

    def name(self, number: int) -> str:
        """Return the name of a case, without extension."""
        return f"{self.prefix}_{number:0{self.digits}d}"


def _portal(classes: dict[int, tuple[str, ...]], *findings: str) -> Scene:
    return Scene(ABDOMEN, classes, "portal", findings or None)


_LIVER_VESSELS = ("liver_vessel", "portal_vein")
TASKS = {
    "brats": Task(
        "Task01_BrainTumour", "BRATS", (1,), 484, tuple(BRAIN_LABELS.values()), None,
        modality=("FLAIR", "T1w", "t1gd", "T2w"),
    ),
    "msd_liver": Task(
        "Task03_Liver", "liver", (0,), 131, ("background", "liver", "cancer"),
        _portal({1: LIVER[:3], 2: ("liver_tumour",)}, "liver_tumour"), digits=1,
    ),
    "msd_lung": Task(
        "Task06_Lung", "lung", (1, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 20, 22, 23), 63, ("background", "cancer"),
        Scene(CHEST, {1: ("lung_tumour",)}, None, ("lung_tumour",)),
    ),
    "msd_pancreas": Task(
        "Task07_Pancreas", "pancreas", (1, 4, 5, 6, 10, 12, 15, 16, 18, 19), 281, ("background", "pancreas", "cancer"),
        _portal({1: PANCREAS[:1], 2: ("pancreas_tumour",)}, "pancreas_tumour"),
    ),
    "msd_hepaticvessel": Task(
        "Task08_HepaticVessel", "hepaticvessel", (1, 2, 4, 5, 7, 8, 10, 11, 13, 16), 303,
        ("background", "Vessel", "Tumour"), _portal({1: _LIVER_VESSELS, 2: ("liver_tumour",)}, "liver_tumour"),
    ),
    "msd_spleen": Task(
        "Task09_Spleen", "spleen", (2, 3, 6, 8, 9, 10, 12, 13, 14, 16, 17, 18, 19, 20, 21, 22, 24), 41,
        ("background", "spleen"), _portal({1: ("spleen",)}), digits=1,
    ),
    "msd_colon": Task(
        "Task10_Colon", "colon", (1, 5, 6, 7, 8, 9, 11, 12, 15), 126, ("background", "colon cancer primaries"),
        Scene(BELLY, {1: ("colon_tumour",)}, "portal", ("colon_tumour",)),
    ),
}  # fmt: skip


def decathlon_writer(layout: str) -> Callable[[CaseWriter, Path, int], Path]:
    """Return the function that writes one task."""
    return partial(_write_task, layout, TASKS[layout])


def _write_task(layout: str, task: Task, writer: CaseWriter, output_dir: Path, num_cases: int) -> Path:
    check_count(num_cases, task.count, layout)
    root = output_dir / task.folder
    known = numbers(task.first, task.count)
    labelled = known[:num_cases]
    unlabelled = unused(known, max(num_cases // 5, 1))
    # the index, which determines the centre, must not depend on the number of cases
    for index, number in [*enumerate(labelled), *enumerate(unlabelled)]:
        file = f"{task.name(number)}.nii.gz"
        image = root / ("imagesTr" if number in labelled else "imagesTs") / file
        label = root / "labelsTr" / file if number in labelled else None
        _write_case(task, writer, task.name(number), index, image, label)
    for folder in ("imagesTr", "labelsTr"):
        (root / folder / f"._{task.name(labelled[0])}.nii.gz").write_bytes(_APPLE_DOUBLE)
    write_text_safely(root / "dataset.json", json.dumps(_list(task, labelled, unlabelled), indent=4) + "\n")
    return root


def _write_case(task: Task, writer: CaseWriter, name: str, index: int, image: Path, label: Path | None) -> None:
    if task.scene is not None:
        writer.ct(task.scene, name, index, image, label)
        return
    files = {"image": image} if label is None else {"image": image, "label": label}
    writer.brain(name, files, lambda brain: {"image": brain.image, "label": brain.label})


def _list(task: Task, labelled: list[int], unlabelled: list[int]) -> dict[str, Any]:
    # the Decathlon's own lists are in no order, so nothing should rely on one
    names = [f"{task.name(number)}.nii.gz" for number in labelled[1::2] + labelled[::2]]
    return {
        "name": task.folder.partition("_")[2].upper(),
        "description": DESCRIPTION if task.scene else DESCRIPTION.replace("CT", "MRI"),
        "reference": "drawn by a program",
        "licence": "that of the program",
        "release": "1.0",
        "tensorImageSize": "4D" if len(task.modality) > 1 else "3D",
        "modality": {str(channel): name for channel, name in enumerate(task.modality)},
        "labels": {str(value): name for value, name in enumerate(task.labels)},
        "numTraining": len(labelled),
        "numTest": len(unlabelled),
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names],
        "test": [f"./imagesTs/{task.name(number)}.nii.gz" for number in unlabelled],
    }
