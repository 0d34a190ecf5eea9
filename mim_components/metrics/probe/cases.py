"""The labelled scans of a probe, checked like those of a fine-tuning, and its classes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from monai.transforms import (
    CastToTyped,
    Compose,
    CopyItemsd,
    EnsureChannelFirstd,
    LoadImaged,
    Orientationd,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
    Spacingd,
    Transform,
)

from mim_components.data.cases import Case, FoundCases
from mim_components.data.check.voxels import count_labels
from mim_components.data.checked_reader import CheckedReader
from mim_components.data.find.datalist import load_cases
from mim_components.data.read.headers import read_header
from mim_components.data.read.volume import read_stored
from mim_components.data.volumes import DataError, VolumeError, VolumeSource
from mim_components.labels import BACKGROUND, LabelSet
from mim_components.transforms.intensity import HU_RANGE
from mim_components.transforms.regions import label_conversion
from mim_components.weights.contract import InputContract

logger = logging.getLogger(__name__)

FORM = '{"training": [{"image": ..., "label": ...}, ...], "validation": [...]}'


def find_probe_cases(
    datalist: str | Path | None, allow_outside: bool = False, dataset_dir: str | Path | None = None
) -> FoundCases:
    """Read the list of labelled scans; see `mim_components.data.load_cases`.

    Raises:
        DataError: no list is given, or it has no section `validation`.
    """
    if not datalist:
        raise DataError(f"Give the labelled scans of the probe with --probe::datalist, a JSON list {FORM}.")
    found = load_cases(datalist, dataset_dir, allow_outside)
    if not any(case.section == "validation" for case in found.cases):
        raise DataError(f"{datalist}: has no section 'validation' with scans to score; expected {FORM}.")
    return found


def probe_labels(found: FoundCases, wanted: Mapping[str, int] | None = None) -> LabelSet:
    """The classes of a probe; every other value of the label maps is background.

    Args:
        found: the scans, whose label maps are read.
        wanted: class name to value; None = the values that occur in both sections, named by value.

    Raises:
        DataError: a wanted value is missing from the label maps of a section, or no value is in both.
    """
    values = {
        section: set().union(*(_values(case) for case in found.cases if case.section == section)) - {0}
        for section in ("training", "validation")
    }
    every = values["training"] | values["validation"]
    if wanted is None:
        wanted = {f"value {value}": value for value in sorted(values["training"] & values["validation"])}
        if not wanted:
            raise DataError(
                "no value of the label maps is in both sections: "
                f"{_shown(values['training'])} in 'training', {_shown(values['validation'])} in 'validation'."
            )
    for name, value in wanted.items():
        for section, there in values.items():
            if value not in there:
                raise DataError(
                    f"probe_labels: class {name!r} (value {value}) is in no label map of section {section!r}; its "
                    f"values: {_shown(there)}."
                )
    if others := sorted(every - set(wanted.values())):
        logger.info("Probe: values %s of the label maps count as background.", _shown(others))
    classes = {**dict.fromkeys(others, 0), **{value: number for number, value in enumerate(wanted.values(), 1)}}
    return LabelSet((BACKGROUND, *wanted), classes, {}, "probe")


def probe_transform(contract: InputContract, labels: LabelSet) -> Transform:
    """The transform that loads a scan in the form of the encoder's input contract.

    The result has `image` float32 and `label` uint8, `(1, H, W, D)` on the grid of the encoder's input, and
    `own_label`, the classes on the scan's own voxels with axes reoriented to RAS.
    """
    keys = ["image", "label"]
    spacing = contract.spacing
    low, high = contract.hu_window or HU_RANGE
    steps: list[Transform] = []
    if spacing:
        steps.append(Spacingd(keys, spacing, mode=("bilinear", "nearest"), dtype="float32"))
    if contract.percentiles:  # of native voxels, as the preparation counts them
        steps.insert(0, ScaleIntensityRangePercentilesd("image", *contract.percentiles, 0.0, 1.0, clip=True))
    else:
        steps.append(ScaleIntensityRanged("image", low, high, 0.0, 1.0, clip=True))
    return Compose([
        LoadImaged(keys, reader=CheckedReader),
        EnsureChannelFirstd(keys),
        label_conversion(labels, "label"),
        Orientationd(keys, axcodes=contract.orientation, labels=None),
        CastToTyped("label", "uint8"),
        CopyItemsd("label", names="own_label"),
        *steps,
    ])  # fmt: skip


def _values(case: Case) -> set[int]:
    """Values of a label map; none if it is damaged or an image, which the check of the case reports."""
    if not isinstance(case.label, Path):
        return set()
    source = VolumeSource(case.label, (case.label,))
    try:
        header = read_header(source)
        values = count_labels(read_stored(source, header, hashlib.sha256())[0], header.scale)
    except (VolumeError, OSError):
        return set()
    return set() if values.like_image else set(values.counts)


def _shown(values: Sequence[int] | set[int]) -> str:
    return ", ".join(map(str, sorted(values))) or "none"
