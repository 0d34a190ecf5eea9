"""BTCV: Abdomen/RawData.zip of Synapse, or its usual renaming to `imagesTr`, `labelsTr`, `imagesTs`."""

from __future__ import annotations

from mim_components.data.find.layouts.pairs import PairedFiles


def btcv() -> PairedFiles:
    """30 labelled CTs, cases "0001" to "0040"."""
    return PairedFiles(
        dataset="BTCV",
        bundle="mim_btcv_segmentation",
        expected="Training/img/img0001.nii.gz and Training/label/label0001.nii.gz (or imagesTr/, labelsTr/)",
        image=r"(?:(?:Training/)?img|imagesTr)/img(?P<id>\d{4})",
        label=r"(?:(?:Training/)?label|labelsTr)/label(?P<id>\d{4})",
        unlabelled=r"(?:Testing/img|imagesTs)/img(?P<id>\d{4})",
    )
