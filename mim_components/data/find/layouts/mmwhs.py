"""MM-WHS, CT part: images and labels in one folder, or in `images` and `labels`."""

from __future__ import annotations

from mim_components.data.find.layouts.pairs import PairedFiles

_FOLDERS = r"(?:ct_train\d?/)?"


def mmwhs() -> PairedFiles:
    """20 labelled CTs, cases "1001" to "1020"; the MR part is ignored."""
    return PairedFiles(
        dataset="MM-WHS",
        bundle="mim_mmwhs_segmentation",
        expected="ct_train/ct_train_1001_image.nii.gz and ct_train/ct_train_1001_label.nii.gz",
        image=_FOLDERS + r"(?:images?/)?ct_train_(?P<id>\d{4})_image",
        label=_FOLDERS + r"(?:labels?/)?ct_train_(?P<id>\d{4})_label",
        unlabelled=r"(?:ct_test\d?/)?(?:images?/)?ct_test_(?P<id>\d{4})_image",
    )
