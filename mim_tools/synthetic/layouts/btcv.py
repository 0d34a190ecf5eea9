"""Layout of BTCV: `RawData/Training/{img,label}` and `RawData/Testing/img`."""

from __future__ import annotations

from pathlib import Path

from mim_tools.synthetic.layouts.ids import check_count, choose
from mim_tools.synthetic.layouts.scenes import ABDOMEN, AORTA, LEFT_KIDNEY, LIVER, PANCREAS, RIGHT_KIDNEY
from mim_tools.synthetic.layouts.writer import CaseWriter, Scene

_TRAINING = [f"{number:04d}" for number in (*range(1, 11), *range(21, 35))]
_VALIDATION = [f"{number:04d}" for number in range(35, 41)]
_SCENE = Scene(
    ABDOMEN,
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
        10: ("portal_vein",),
        11: PANCREAS,
        12: ("right_adrenal",),
        13: ("left_adrenal",),
    },
    phase="portal",
)


def write_btcv(writer: CaseWriter, output_dir: Path, num_cases: int) -> Path:
    """Write labelled cases to `Training` and one in five of that number without label to `Testing`."""
    check_count(num_cases, len(_TRAINING) + len(_VALIDATION), "btcv")
    root = output_dir / "RawData"
    known = _TRAINING + _VALIDATION
    for case in choose(_TRAINING, _VALIDATION, num_cases):
        image = root / "Training" / "img" / f"img{case}.nii.gz"
        label = root / "Training" / "label" / f"label{case}.nii.gz"
        writer.ct(_SCENE, case, known.index(case), image, label)
    for number in range(61, 61 + max(num_cases // 5, 1)):
        writer.ct(_SCENE, f"{number:04d}", number, root / "Testing" / "img" / f"img{number:04d}.nii.gz")
    return root
