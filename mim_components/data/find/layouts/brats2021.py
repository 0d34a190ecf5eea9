"""BraTS 2021: one folder per case, one file per channel."""

from __future__ import annotations

from mim_components.data.find.layouts.pairs import PairedFiles

_TRAINING = r"(?:[^/]*Train[^/]*/)?"
_CASE = r"(?P<id>BraTS2021_\d{5})/(?P=id)_"
# as in MSD Task01: FLAIR, T1w, T1gd, T2w
CHANNELS = ("flair", "t1", "t1ce", "t2")
_CHANNEL = rf"(?P<channel>{'|'.join(CHANNELS)})"


def brats2021() -> PairedFiles:
    """1,251 labelled MR scans of four channels, cases such as "BraTS2021_00000"."""
    return PairedFiles(
        dataset="BraTS 2021",
        bundle="mim_brats_segmentation",
        expected="BraTS2021_00000/BraTS2021_00000_{flair,t1,t1ce,t2,seg}.nii.gz",
        image=_TRAINING + _CASE + _CHANNEL,
        label=_TRAINING + _CASE + "seg",
        unlabelled=r"[^/]*Validation[^/]*/" + _CASE + _CHANNEL,
        channels=CHANNELS,
    )
