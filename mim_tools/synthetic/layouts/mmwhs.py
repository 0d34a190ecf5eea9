"""Layout of the CT part of MM-WHS: images and labels side by side in `ct_train`."""

from __future__ import annotations

from pathlib import Path

from mim_tools.synthetic.layouts.ids import check_count, choose
from mim_tools.synthetic.layouts.scenes import HEART
from mim_tools.synthetic.layouts.writer import CaseWriter, Scene

_TRAINING = [str(number) for number in range(1005, 1021)]
_VALIDATION = [str(number) for number in range(1001, 1005)]
_SCENE = Scene(
    HEART,
    {
        205: ("left_myocardium",),
        420: ("left_atrium",),
        500: ("left_ventricle",),
        550: ("right_atrium",),
        600: ("right_ventricle",),
        820: ("ascending_aorta",),
        850: ("pulmonary_artery",),
    },
    phase="arterial",
)


def write_mmwhs(writer: CaseWriter, output_dir: Path, num_cases: int) -> Path:
    """Write labelled cases."""
    check_count(num_cases, len(_TRAINING) + len(_VALIDATION), "mmwhs")
    root = output_dir / "ct_train"
    for case in choose(_TRAINING, _VALIDATION, num_cases):
        image, label = (root / f"ct_train_{case}_{kind}.nii.gz" for kind in ("image", "label"))
        writer.ct(_SCENE, case, int(case), image, label)
    return root
