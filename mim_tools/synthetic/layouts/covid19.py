"""Layout of Covid-19-20: pairs `_ct` and `_seg` in `COVID-19-20_v2/Train`, `_ct` alone in `Validation`."""

from __future__ import annotations

from pathlib import Path

from mim_tools.synthetic.layouts.ids import check_count, numbers
from mim_tools.synthetic.layouts.scenes import CHEST
from mim_tools.synthetic.layouts.writer import CaseWriter, Scene

_MOST = 199
_NAMES = [
    f"{number:04d}{'_1' if number in (47, 74, 167, 256, 383) else ''}"
    for number in numbers((3, 11, 47, 12, 13, 14, 16, 20, 25, 74), _MOST)
]
_SCENE = Scene(CHEST, {1: ("covid_lesion",)}, phase="none", findings=("covid",))


def write_covid19(writer: CaseWriter, output_dir: Path, num_cases: int) -> Path:
    """Write labelled cases and one in five of that number without label."""
    check_count(num_cases, _MOST, "covid19")
    root = output_dir / "COVID-19-20_v2"
    for index, name in enumerate(_NAMES[:num_cases]):
        image, label = (root / "Train" / f"volume-covid19-A-{name}_{kind}.nii.gz" for kind in ("ct", "seg"))
        writer.ct(_SCENE, name, index, image, label)
    for number in range(501, 501 + max(num_cases // 5, 1)):
        image = root / "Validation" / f"volume-covid19-A-{number:04d}_ct.nii.gz"
        writer.ct(_SCENE, f"{number:04d}", number, image)
    return root
