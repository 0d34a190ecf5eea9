"""COVID-19-20 challenge, version 2: image and label side by side in `Train`."""

from __future__ import annotations

from mim_components.data.find.layouts.pairs import PairedFiles

_NAME = r"volume-covid19-(?P<id>A-\d{4}(?:_\d+)?)"


def covid19() -> PairedFiles:
    """199 labelled CTs, cases such as "A-0003" and "A-0047_1"."""
    return PairedFiles(
        dataset="COVID-19-20",
        bundle="mim_covid19_segmentation",
        expected="Train/volume-covid19-A-0003_ct.nii.gz and Train/volume-covid19-A-0003_seg.nii.gz",
        image=rf"(?:Train/)?{_NAME}_ct",
        label=rf"(?:Train/)?{_NAME}_seg",
        unlabelled=rf"(?:Validation|Test[^/]*)/{_NAME}_ct",
    )
