"""Layout of AMOS22: CT (ids below 500) and MR in `imagesTr`, `labelsTr`, `imagesVa`, `labelsVa`, `imagesTs`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mim_tools.synthetic.generate import DESCRIPTION, SyntheticCT
from mim_tools.synthetic.grid import stream
from mim_tools.synthetic.layouts.ids import check_count, numbers
from mim_tools.synthetic.layouts.scenes import AORTA, BELLY, LEFT_KIDNEY, LIVER, PANCREAS, RIGHT_KIDNEY
from mim_tools.synthetic.layouts.writer import CaseWriter, Scene, write_json
from mim_tools.synthetic.tissue import FINE_LABELS, LABEL_NUMBERS

_TRAINING = numbers((1, 4, 5, 6, 7, 9, 10, 11, 14, 15, 16, 17), 200)
_VALIDATION = numbers((8, 13, 222), 100)
_MR = {"Tr": 507, "Va": 518}
_NAMES = (
    "background", "spleen", "right kidney", "left kidney", "gall bladder", "esophagus", "liver", "stomach", "arota",
    "postcava", "pancreas", "right adrenal gland", "left adrenal gland", "duodenum", "bladder", "prostate/uterus",
)  # fmt: skip
_SCENE = Scene(
    BELLY,
    {
        1: ("spleen",),
        2: RIGHT_KIDNEY,
        3: LEFT_KIDNEY,
        4: ("gallbladder",),
        5: ("oesophagus",),
        6: LIVER,
        7: ("stomach",),
        8: AORTA,
        9: ("inferior_vena_cava",),
        10: PANCREAS,
        11: ("right_adrenal",),
        12: ("left_adrenal",),
        13: ("duodenum",),
        14: ("bladder",),
        15: ("prostate",),
    },
)


def write_amos22(writer: CaseWriter, output_dir: Path, num_cases: int) -> Path:
    """Write labelled CT, two thirds of them to `Tr` and one third to `Va`, with one MR in each, and CT to `Ts`."""
    check_count(num_cases, len(_TRAINING) + len(_VALIDATION), "amos22")
    root = output_dir / "amos22"
    in_validation = num_cases // 3
    listed: dict[str, list[dict[str, str]]] = {}
    for part, pool, count in (
        ("Tr", _TRAINING, num_cases - in_validation),
        ("Va", _VALIDATION, in_validation),
    ):
        listed[part] = []
        for index, number in enumerate([*pool[:count], _MR[part]]):
            name = f"amos_{number:04d}"
            image, label = (root / f"{kind}{part}" / f"{name}.nii.gz" for kind in ("images", "labels"))
            if number < 500:
                writer.ct(_SCENE, name, index, image, label)
            else:
                _write_mr(writer, name, index, image, label)
            listed[part].append({kind[:-1]: f"./{kind}{part}/{name}.nii.gz" for kind in ("images", "labels")})
    unlabelled = ["amos_0002"]
    for index, name in enumerate(unlabelled):
        writer.ct(_SCENE, name, index, root / "imagesTs" / f"{name}.nii.gz")
    write_json(root / "dataset.json", _list(listed, unlabelled))
    return root


def _write_mr(writer: CaseWriter, name: str, index: int, image: Path, label: Path) -> None:
    def draw() -> tuple[dict[str, NDArray], NDArray]:
        ct = writer.draw_ct(_SCENE, name, index)
        return {"image": as_mr(ct), "label": _SCENE.label(ct.label)}, ct.affine

    facts = writer.ct_facts(_SCENE, name, index) | {"modality": "MR"}
    writer.write({"image": image, "label": label}, facts, DESCRIPTION.replace("CT", "MR"), draw)


def as_mr(ct: SyntheticCT) -> NDArray[np.int16]:
    """Return an image `(H, W, D)` with the look of an MR: every label has a grey value of its own, none is below 0.

    Args:
        ct: with fine labels.
    """
    rng = stream(ct.seed, "mr")
    table = rng.uniform(150, 700, len(FINE_LABELS))
    table[[LABEL_NUMBERS[name] for name in ("background", "right_lung", "left_lung", "airways")]] = (0, 40, 40, 10)
    table[LABEL_NUMBERS["subcutaneous_fat"]] = 800
    image = table[ct.label] + 0.15 * np.clip(ct.image, -200, 200)  # texture and edges of the CT
    return np.maximum(np.rint(image), 0).astype(np.int16)


def _list(listed: dict[str, list[dict[str, str]]], unlabelled: list[str]) -> dict[str, object]:
    return {
        "name": "AMOS",
        "description": DESCRIPTION,
        "reference": "drawn by a program",
        "licence": "that of the program",
        "release": "1.0",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {str(value): name for value, name in enumerate(_NAMES)},
        "numTraining": len(listed["Tr"]),
        "numValidation": len(listed["Va"]),
        "numTest": len(unlabelled),
        "training": listed["Tr"],
        "validation": listed["Va"],
        "test": [{"image": f"./imagesTs/{name}.nii.gz"} for name in unlabelled],
    }
