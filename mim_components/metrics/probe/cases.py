"""The labelled scans of a probe, checked like those of a fine-tuning, and its classes."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.data import MetaTensor
from monai.transforms import (
    CastToTyped,
    Compose,
    CopyItemsd,
    EnsureChannelFirstd,
    LoadImaged,
    Orientationd,
    ScaleIntensityRanged,
    Transform,
)

from mim_components.data.cases import Case, CheckResult, FoundCases
from mim_components.data.check.voxels import count_labels
from mim_components.data.checked_reader import CheckedReader
from mim_components.data.find.datalist import load_cases
from mim_components.data.load.scans import CheckedLoadImaged, scans_of
from mim_components.data.prepare.cases import check_cases
from mim_components.data.read.headers import read_header
from mim_components.data.read.limits import check_file
from mim_components.data.read.volume import cause_of, read_stored
from mim_components.data.volumes import BadVolume, DataError, VolumeError, VolumeSource
from mim_components.labels import BACKGROUND, LabelSet
from mim_components.metrics.probe.grids import nearest_on_grid
from mim_components.transforms.intensity import IntensityScale
from mim_components.transforms.regions import label_conversion
from mim_components.utils.text import shorten
from mim_components.weights.contract import InputContract

logger = logging.getLogger(__name__)

FORM = '{"training": [{"image": ..., "label": ...}, ...], "validation": [...]}'
SECTIONS = ("training", "validation")


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


@dataclass(frozen=True)
class LabelValuesReader:
    """A check that gives the values of a case's label map, as `content`."""

    def __call__(self, case: Case) -> CheckResult:
        """Read the label map.

        Raises:
            VolumeError: there is none, it is damaged, or it holds as many values as an image; names the file.
        """
        path = case.label
        if not isinstance(path, Path):
            raise VolumeError("a label map is needed")
        source, digest = VolumeSource(path, (path,)), hashlib.sha256()
        try:
            check_file(path)
            header = read_header(source)
            values = count_labels(read_stored(source, header, digest)[0], header.scale)
        except (VolumeError, OSError) as error:
            raise VolumeError(f"{path.parent.name}/{path.name}: {cause_of(error)}") from error
        if values.like_image:
            raise VolumeError(f"{path.parent.name}/{path.name}: not a label map, its values are those of an image")
        return CheckResult(digest.hexdigest(), content=json.dumps(sorted(values.counts)))


@dataclass
class LabelValues:
    """Values of the label maps.

    Attributes:
        of_case: values by title of the case, without those of `unread`.
        sections: titles of the cases of every section.
        unread: cases whose label map cannot be read.
    """

    of_case: dict[str, set[int]]
    sections: dict[str, list[str]]
    unread: list[BadVolume]

    def of(self, titles: Iterable[str]) -> set[int]:
        """Values above 0 in the label maps of some cases."""
        return {value for title in titles for value in self.of_case.get(title, ()) if value > 0}


def check_classes(classes: Mapping[str, int] | None) -> None:
    """Refuse classes that no label map can have; None is accepted.

    Raises:
        DataError: not a mapping of names to distinct whole numbers of at least 1, or a class is named background.
    """
    if classes is None:
        return
    if not isinstance(classes, Mapping) or not classes:
        raise DataError(f'probe::labels must be names and values of classes, such as {{"liver": 1}}, got {classes!r}.')
    names: dict[int, str] = {}
    for name, value in classes.items():
        if name == BACKGROUND or not isinstance(name, str) or not name:
            raise DataError(f"probe::labels: a class cannot be named {name!r}; all other values are the background.")
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise DataError(f"probe::labels: class {name!r} needs a whole number of at least 1, got {value!r}.")
        if value in names:
            raise DataError(f"probe::labels: classes {names[value]!r} and {name!r} have the same value, {value}.")
        names[value] = name


def read_label_values(found: FoundCases, cache_dir: str | Path, num_workers: int = 0) -> LabelValues:
    """Read every label map, unless its values are cached; all processes of a run share the work.

    Args:
        found: the scans.
        cache_dir: folder that caches results of checks.
        num_workers: number of reading processes, for each process of the run.
    """
    checked = check_cases(found.cases, LabelValuesReader(), cache_dir, num_workers, what="label values of ")
    values = {case.title: set(json.loads(checked.facts[case.name].content))
              for case in found.cases if case.name in checked.facts}  # fmt: skip
    sections = {part: [case.title for case in found.cases if case.section == part] for part in SECTIONS}
    return LabelValues(values, sections, checked.bad)


def probe_labels(values: LabelValues, wanted: Mapping[str, int] | None = None) -> LabelSet:
    """The classes of a probe; every other value of the label maps is background.

    Args:
        values: values of the label maps.
        wanted: class name to value; None = the values above 0 that occur in both sections, named by value.

    Returns:
        The classes in ascending order of their values, however they are listed.

    Raises:
        DataError: a wanted value is missing from the label maps of a section, or no value is in both; names the label
            maps that cannot be read.
    """
    training, validation = (values.of(titles) for titles in values.sections.values())
    if wanted is None:
        wanted = {f"value {value}": value for value in sorted(training & validation)}
        if not wanted:
            raise DataError(
                f"no value of the label maps is in both sections: {_shown(training)} in 'training', "
                f"{_shown(validation)} in 'validation'{_without(values.unread)}."
            )
    wanted = dict(sorted(wanted.items(), key=lambda item: item[1]))
    check_sections(wanted, values, values.sections, values.unread)
    if others := sorted(values.of(values.of_case) - set(wanted.values())):
        logger.info("Probe: values %s of the label maps count as background.", _shown(others))
    classes = {**dict.fromkeys(others, 0), **{value: number for number, value in enumerate(wanted.values(), 1)}}
    return LabelSet((BACKGROUND, *wanted), classes, {}, "probe")


def check_sections(
    classes: Mapping[str, int],
    values: LabelValues,
    sections: Mapping[str, Iterable[str]],
    left_out: Sequence[BadVolume],
) -> None:
    """Check that each class is in a label map of each section.

    Args:
        classes: class name to value.
        values: values of the label maps.
        sections: titles of the cases of every section.
        left_out: cases that are in no section.

    Raises:
        DataError: a class is not in a section; names both, and what was left out.
    """
    for name, value in classes.items():
        for section, titles in sections.items():
            there = values.of(titles)
            if value not in there:
                raise DataError(
                    f"probe::labels: class {name!r} (value {value}) is in no label map of section {section!r}; its "
                    f"values: {_shown(there)}{_without(left_out)}."
                )


def probe_transform(contract: InputContract, labels: LabelSet) -> Transform:
    """The transform that loads a scan as the pre-training of the encoder did, by the encoder's input contract.

    The result has `image` float32 and `label` uint8, `(1, H, W, D)` on the grid of the encoder's input, and
    `own_label`, the classes on the scan's own voxels with axes reoriented to RAS.
    """
    scale = IntensityScale(contract.modality, contract.hu_window)
    return Compose([
        LoadImaged("label", reader=CheckedReader),
        EnsureChannelFirstd("label"),
        label_conversion(labels, "label"),
        Orientationd("label", axcodes=contract.orientation, labels=None),
        CastToTyped("label", "uint8"),
        CopyItemsd("label", names="own_label"),
        CheckedLoadImaged("image", scans_of(contract.modality, spacing=contract.spacing)),
        _label_on_grid_of_image,
        ScaleIntensityRanged("image", scale.low, scale.high, 0.0, 1.0, clip=True),
    ])  # fmt: skip


def _label_on_grid_of_image(item: dict[str, Any]) -> dict[str, Any]:
    image, label = item["image"], item["own_label"]
    if image.shape != label.shape:
        moved = nearest_on_grid(label.as_tensor(), label.affine, image)
        item["label"] = MetaTensor(moved, affine=image.affine)
    return item


def _shown(values: Sequence[int] | set[int]) -> str:
    return ", ".join(map(str, sorted(values))) or "none"


def _without(left_out: Sequence[BadVolume]) -> str:
    return f"; not counted: {shorten(left_out, 3, '; ')}" if left_out else ""
