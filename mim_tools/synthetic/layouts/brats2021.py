"""Layout of BraTS 2021: one folder per case with four contrasts and the segmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mim_tools.synthetic.brain import SyntheticBrain
from mim_tools.synthetic.layouts.ids import check_count, numbers
from mim_tools.synthetic.layouts.writer import CaseWriter

_MOST = 1251
_NUMBERS = numbers((0, 2, 3, 5, 6, 8, 9, 11, 12, 14), _MOST)
_SUFFIXES = ("flair", "t1", "t1ce", "t2")  # order of the channels of a synthetic brain
_VALUES = np.array([0, 2, 1, 4], dtype=np.uint8)  # background, edema, non-enhancing core, enhancing rim


def write_brats2021(writer: CaseWriter, output_dir: Path, num_cases: int) -> Path:
    """Write labelled cases."""
    check_count(num_cases, _MOST, "brats2021")
    root = output_dir / "BraTS2021_Training_Data"
    for number in _NUMBERS[:num_cases]:
        name = f"BraTS2021_{number:05d}"
        files = {kind: root / name / f"{name}_{kind}.nii.gz" for kind in (*_SUFFIXES, "seg")}
        writer.brain(name, files, _arrays)
    return root


def _arrays(brain: SyntheticBrain) -> dict[str, NDArray]:
    contrasts = {suffix: brain.image[..., channel] for channel, suffix in enumerate(_SUFFIXES)}
    return {**contrasts, "seg": _VALUES[brain.label]}
