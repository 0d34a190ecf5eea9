"""Layout of FLARE22: `FLARE22Train/{images,labels}`, with `_0000` at the end of the images' names only."""

from __future__ import annotations

from pathlib import Path

from mim_tools.synthetic.layouts.ids import check_count, choose
from mim_tools.synthetic.layouts.scenes import ABDOMEN, AORTA, LEFT_KIDNEY, LIVER, PANCREAS, RIGHT_KIDNEY
from mim_tools.synthetic.layouts.writer import CaseWriter, Scene

_TRAINING = [f"{number:04d}" for number in range(11, 51)]
_VALIDATION = [f"{number:04d}" for number in range(1, 11)]
_SCENE = Scene(
    ABDOMEN,
    {
        1: LIVER,
        2: RIGHT_KIDNEY,
        3: ("spleen",),
        4: PANCREAS,
        5: AORTA,
        6: ("inferior_vena_cava",),
        7: ("right_adrenal",),
        8: ("left_adrenal",),
        9: ("gallbladder",),
        10: ("oesophagus",),
        11: ("stomach",),
        12: ("duodenum",),
        13: LEFT_KIDNEY,
    },
    phase="portal",
)


def write_flare22(writer: CaseWriter, output_dir: Path, num_cases: int) -> Path:
    """Write labelled cases."""
    check_count(num_cases, len(_TRAINING) + len(_VALIDATION), "flare22")
    root = output_dir / "FLARE22Train"
    for case in choose(_TRAINING, _VALIDATION, num_cases):
        image = root / "images" / f"FLARE22_Tr_{case}_0000.nii.gz"
        writer.ct(_SCENE, case, int(case), image, root / "labels" / f"FLARE22_Tr_{case}.nii.gz")
    return root
