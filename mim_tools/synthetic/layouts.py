"""Synthetic datasets with the folder layout, names, label values and modality of the bundles' datasets.

Most datasets are a row of `TABLE`. Those with their own lists have a function: AMOS22 here, the Decathlon and
CC-CCII in their modules.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mim_components.utils.files import write_text_safely
from mim_tools.synthetic.brain import SyntheticBrain
from mim_tools.synthetic.ccccii import write_ccccii
from mim_tools.synthetic.decathlon import TASKS, decathlon_writer
from mim_tools.synthetic.generate import DESCRIPTION, SyntheticCT, check_grid
from mim_tools.synthetic.grid import stream
from mim_tools.synthetic.scenes import (
    ABDOMEN,
    AORTA,
    BELLY,
    CHEST,
    HEART,
    LEFT_KIDNEY,
    LIVER,
    PANCREAS,
    RIGHT_KIDNEY,
    Scene,
    check_count,
    choose,
    numbers,
)
from mim_tools.synthetic.tissue import FINE_LABELS, LABEL_NUMBERS
from mim_tools.synthetic.writer import CaseWriter

_BTCV = Scene(
    ABDOMEN,
    {
        1: ("spleen",), 2: RIGHT_KIDNEY, 3: LEFT_KIDNEY, 4: ("gallbladder",), 5: ("oesophagus",), 6: LIVER,
        7: ("stomach",), 8: AORTA, 9: ("inferior_vena_cava",), 10: ("portal_vein",), 11: PANCREAS,
        12: ("right_adrenal",), 13: ("left_adrenal",),
    },
    phase="portal",
)  # fmt: skip
_FLARE22 = Scene(
    ABDOMEN,
    {
        1: LIVER, 2: RIGHT_KIDNEY, 3: ("spleen",), 4: PANCREAS, 5: AORTA, 6: ("inferior_vena_cava",),
        7: ("right_adrenal",), 8: ("left_adrenal",), 9: ("gallbladder",), 10: ("oesophagus",), 11: ("stomach",),
        12: ("duodenum",), 13: LEFT_KIDNEY,
    },
    phase="portal",
)  # fmt: skip
_MMWHS = Scene(
    HEART,
    {
        205: ("left_myocardium",), 420: ("left_atrium",), 500: ("left_ventricle",), 550: ("right_atrium",),
        600: ("right_ventricle",), 820: ("ascending_aorta",), 850: ("pulmonary_artery",),
    },
    phase="arterial",
)  # fmt: skip
_AMOS22 = Scene(
    BELLY,
    {
        1: ("spleen",), 2: RIGHT_KIDNEY, 3: LEFT_KIDNEY, 4: ("gallbladder",), 5: ("oesophagus",), 6: LIVER,
        7: ("stomach",), 8: AORTA, 9: ("inferior_vena_cava",), 10: PANCREAS, 11: ("right_adrenal",),
        12: ("left_adrenal",), 13: ("duodenum",), 14: ("bladder",), 15: ("prostate",),
    },
)  # fmt: skip
# CT have ids below 500
_AMOS_TRAINING = numbers((1, 4, 5, 6, 7, 9, 10, 11, 14, 15, 16, 17), 200)
_AMOS_VALIDATION = numbers((8, 13, 222), 100)
_AMOS_MR = {"Tr": 507, "Va": 518}
_AMOS_NAMES = (
    "background", "spleen", "right kidney", "left kidney", "gall bladder", "esophagus", "liver", "stomach", "arota",
    "postcava", "pancreas", "right adrenal gland", "left adrenal gland", "duodenum", "bladder", "prostate/uterus",
)  # fmt: skip
_CONTRASTS = ("flair", "t1", "t1ce", "t2")  # suffixes of BraTS 2021 in the order of the channels of a synthetic brain
_TUMOUR_VALUES = np.array([0, 2, 1, 4], dtype=np.uint8)  # background, edema, non-enhancing core, enhancing rim


@dataclass(frozen=True)
class Layout:
    """How one dataset names and places its files.

    Attributes:
        folder: the dataset's folder.
        scene: what the CTs show; None for the brain.
        training: ids that train, in order.
        validation: ids that validate, in order; none if the dataset lists no split.
        files: path below `folder` by kind, with the id as `{id}`.
        unlabelled: first id without a label and the path of its image; one such case for five labelled ones.
    """

    folder: str
    scene: Scene | None
    training: Sequence[str]
    validation: Sequence[str]
    files: Mapping[str, str]
    unlabelled: tuple[int, str] | None = None


def _ids(low: int, high: int, digits: int = 4) -> list[str]:
    return [f"{number:0{digits}d}" for number in range(low, high + 1)]


TABLE = {
    "btcv": Layout(
        "RawData", _BTCV, _ids(1, 10) + _ids(21, 34), _ids(35, 40),
        {"image": "Training/img/img{id}.nii.gz", "label": "Training/label/label{id}.nii.gz"},
        unlabelled=(61, "Testing/img/img{id}.nii.gz"),
    ),
    "mmwhs": Layout(
        "ct_train", _MMWHS, _ids(1005, 1020), _ids(1001, 1004),
        {"image": "ct_train_{id}_image.nii.gz", "label": "ct_train_{id}_label.nii.gz"},
    ),
    "flare22": Layout(  # `_0000` at the end of the images' names only
        "FLARE22Train", _FLARE22, _ids(11, 50), _ids(1, 10),
        {"image": "images/FLARE22_Tr_{id}_0000.nii.gz", "label": "labels/FLARE22_Tr_{id}.nii.gz"},
    ),
    "covid19": Layout(
        "COVID-19-20_v2", Scene(CHEST, {1: ("covid_lesion",)}, phase="none", findings=("covid",)),
        [
            f"{number:04d}{'_1' if number in (47, 74, 167, 256, 383) else ''}"
            for number in numbers((3, 11, 47, 12, 13, 14, 16, 20, 25, 74), 199)
        ], (),
        {"image": "Train/volume-covid19-A-{id}_ct.nii.gz", "label": "Train/volume-covid19-A-{id}_seg.nii.gz"},
        unlabelled=(501, "Validation/volume-covid19-A-{id}_ct.nii.gz"),
    ),
    "brats2021": Layout(
        "BraTS2021_Training_Data", None,
        [f"BraTS2021_{number:05d}" for number in numbers((0, 2, 3, 5, 6, 8, 9, 11, 12, 14), 1251)], (),
        {kind: "{id}/{id}_" + kind + ".nii.gz" for kind in (*_CONTRASTS, "seg")},
    ),
}  # fmt: skip


def _write_row(layout: str, row: Layout, writer: CaseWriter, output_dir: Path, num_cases: int) -> Path:
    """Write the labelled cases of a row of `TABLE`, then those without a label."""
    check_count(num_cases, len(row.training) + len(row.validation), layout)
    root = output_dir / row.folder
    for case in choose(row.training, row.validation, num_cases):
        files = {kind: root / path.format(id=case) for kind, path in row.files.items()}
        if row.scene is None:
            writer.brain(case, files, _contrasts)
        else:
            writer.ct(row.scene, case, 0, files["image"], files["label"])
    if row.unlabelled is not None and row.scene is not None:
        first, path = row.unlabelled
        for case in _ids(first, first + max(num_cases // 5, 1) - 1):
            writer.ct(row.scene, case, 0, root / path.format(id=case))
    return root


def _contrasts(brain: SyntheticBrain) -> dict[str, NDArray]:
    contrasts = {suffix: brain.image[..., channel] for channel, suffix in enumerate(_CONTRASTS)}
    return {**contrasts, "seg": _TUMOUR_VALUES[brain.label]}


def _write_amos22(writer: CaseWriter, output_dir: Path, num_cases: int) -> Path:
    """Write labelled CT, two thirds of them to `Tr` and one third to `Va`, with one MR in each, and CT to `Ts`."""
    check_count(num_cases, len(_AMOS_TRAINING) + len(_AMOS_VALIDATION), "amos22")
    root = output_dir / "amos22"
    in_validation = num_cases // 3
    listed: dict[str, list[dict[str, str]]] = {}
    for part, pool, count in (
        ("Tr", _AMOS_TRAINING, num_cases - in_validation),
        ("Va", _AMOS_VALIDATION, in_validation),
    ):
        listed[part] = []
        for index, number in enumerate([*pool[:count], _AMOS_MR[part]]):
            name = f"amos_{number:04d}"
            image, label = (root / f"{kind}{part}" / f"{name}.nii.gz" for kind in ("images", "labels"))
            if number < 500:
                writer.ct(_AMOS22, name, index, image, label)
            else:
                _write_mr(writer, name, number, image, label)  # `index` depends on the number of cases
            listed[part].append({kind[:-1]: f"./{kind}{part}/{name}.nii.gz" for kind in ("images", "labels")})
    unlabelled = ["amos_0002"]
    for index, name in enumerate(unlabelled):
        writer.ct(_AMOS22, name, index, root / "imagesTs" / f"{name}.nii.gz")
    write_text_safely(root / "dataset.json", json.dumps(_amos_list(listed, unlabelled), indent=4) + "\n")
    return root


def _write_mr(writer: CaseWriter, name: str, index: int, image: Path, label: Path) -> None:
    def draw() -> tuple[dict[str, NDArray], NDArray]:
        ct = writer.draw_ct(_AMOS22, name, index)
        return {"image": as_mr(ct), "label": _AMOS22.label(ct.label)}, ct.affine

    facts = writer.ct_facts(_AMOS22, name, index) | {"modality": "MR"}
    writer.write({"image": image, "label": label}, facts, DESCRIPTION.replace("CT", "MR"), draw)


def as_mr(ct: SyntheticCT) -> NDArray[np.int16]:
    """Return an image `(H, W, D)` that looks like MR: every label has its own grey value, none below 0.

    Args:
        ct: CT with fine labels.
    """
    rng = stream(ct.seed, "mr")
    table = rng.uniform(150, 700, len(FINE_LABELS))
    table[[LABEL_NUMBERS[name] for name in ("background", "right_lung", "left_lung", "airways")]] = (0, 40, 40, 10)
    table[LABEL_NUMBERS["subcutaneous_fat"]] = 800
    image = table[ct.label] + 0.15 * np.clip(ct.image, -200, 200)  # texture and edges of the CT
    return np.maximum(np.rint(image), 0).astype(np.int16)


def _amos_list(listed: dict[str, list[dict[str, str]]], unlabelled: list[str]) -> dict[str, object]:
    return {
        "name": "AMOS",
        "description": DESCRIPTION,
        "reference": "drawn by a program",
        "licence": "that of the program",
        "release": "1.0",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {str(value): name for value, name in enumerate(_AMOS_NAMES)},
        "numTraining": len(listed["Tr"]),
        "numValidation": len(listed["Va"]),
        "numTest": len(unlabelled),
        "training": listed["Tr"],
        "validation": listed["Va"],
        "test": [{"image": f"./imagesTs/{name}.nii.gz"} for name in unlabelled],
    }


LAYOUTS: dict[str, Callable[[CaseWriter, Path, int], Path]] = {
    **{name: partial(_write_row, name, row) for name, row in TABLE.items()},
    "amos22": _write_amos22,
    "ccccii": write_ccccii,
    **{name: decathlon_writer(name) for name in TASKS},
}


def write_synthetic_layout(
    output_dir: str | os.PathLike[str],
    layout: str,
    num_cases: int = 5,
    seed: int = 0,
    spatial_size: Sequence[int] = (96, 80, 72),
    spacing: Sequence[float] | None = None,
    progress: bool = False,
) -> Path:
    """Write a small synthetic dataset in the form in which a public dataset is distributed.

    The ids are the first of the dataset on both sides of the usual split, so that of 5 or more cases at least one is
    for validation. Images without labels, and files that do not belong to the task, are included as in the dataset. A
    complete file made by the same recipe is kept.

    Args:
        output_dir: folder to write to, created if missing; it will contain the dataset's folder.
        layout: one of `LAYOUTS`.
        num_cases: labelled cases, 2 or more; patients for ccccii, CT for amos22.
        seed: determines all cases; a case does not depend on `num_cases`.
        spatial_size: (H, W, D) in voxels, before the axes are turned; orientations vary from case to case.
        spacing: voxel size in mm; None spreads the voxels over the part of the body that the dataset shows.
        progress: log one line per case at level INFO.

    Returns:
        The dataset's folder, below `output_dir`.

    Raises:
        ValueError: an argument is invalid.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(sorted(LAYOUTS))}, got {layout=}.")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed=}.")
    size, steps = check_grid(spatial_size, (1.0, 1.0, 1.0) if spacing is None else spacing)
    writer = CaseWriter(layout, seed, size, None if spacing is None else steps, progress)
    return LAYOUTS[layout](writer, Path(output_dir), num_cases)
