"""FLARE22: the 50 labelled cases of FLARE22Train.zip; only image names end in `_0000`."""

from __future__ import annotations

from mim_components.data.find.layouts.pairs import PairedFiles


def flare22() -> PairedFiles:
    """50 labelled CTs, cases "0001" to "0050"."""
    return PairedFiles(
        dataset="FLARE22",
        bundle="mim_flare22_segmentation",
        expected="FLARE22Train/images/FLARE22_Tr_0001_0000.nii.gz and FLARE22Train/labels/FLARE22_Tr_0001.nii.gz",
        image=r"images(?:Tr)?/FLARE22_Tr_(?P<id>\d{4})(?:_0000)?",
        label=r"labels(?:Tr)?/FLARE22_Tr_(?P<id>\d{4})",
    )
