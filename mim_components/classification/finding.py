"""Find the labelled scans of a classification dataset, and divide them as lists of scans say where these are given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mim_components.data.cases import Case, FoundCases
from mim_components.data.find.scan_lists import ListedScan, read_scan_list
from mim_components.data.find.sources import find_cases
from mim_components.data.volumes import DataError

SHOWN = 5


def find_scans(
    dataset_dir: str | Path | None,
    datalist: str | Path | None = None,
    layouts: Sequence[Mapping[str, Any]] = (),
    class_names: Sequence[str] = (),
    min_slices: int = 16,
    train_csv: str | Path | None = None,
    valid_csv: str | Path | None = None,
    allow_outside: bool = False,
) -> FoundCases:
    """Find the scans of a dataset; opens no pictures.

    Args:
        dataset_dir: folder of the dataset; with `datalist` the folder its paths are relative to.
        datalist: JSON list in the Decathlon's form, which is used instead of a layout.
        layouts: section `dataset.layouts` of a bundle's metadata.
        class_names: the label of a scan is the position of its class here.
        min_slices: scans with fewer slices are left out.
        train_csv: list of the training scans, with columns label, patient_id and scan_id, and optionally target.
        valid_csv: list of the validation scans.
        allow_outside: accept paths of the `datalist` that lead out of the folder.

    Raises:
        DataError: nothing is given or found; a list is wrong, or names no scan that is there; only one list is given,
            or lists together with a `datalist`; a patient is in both lists.
    """
    if bool(train_csv) != bool(valid_csv) or (train_csv and datalist):
        raise DataError(
            "train_csv and valid_csv belong together, and replace a datalist; "
            f"got {train_csv=}, {valid_csv=}, {datalist=}."
        )
    options = {"class_names": tuple(class_names), "min_slices": min_slices}
    found = find_cases(dataset_dir, datalist, [{**layout, **options} for layout in layouts], allow_outside)
    if train_csv and valid_csv:
        _take_sections(found, {"training": Path(train_csv), "validation": Path(valid_csv)}, class_names)
    return found


def _take_sections(found: FoundCases, paths: Mapping[str, Path], class_names: Sequence[str]) -> None:
    """Keep what the lists name, and say what is missing."""
    lists = {section: read_scan_list(path) for section, path in paths.items()}
    both = {each.patient for each in lists["training"]} & {each.patient for each in lists["validation"]}
    if both:
        raise DataError(f"{' and '.join(map(str, paths.values()))}: patients in both lists: {_few(both)}")
    cases = {_key(case): case for case in found.cases}
    kept: list[Case] = []
    for section, listed in lists.items():
        for each in listed:
            _check_label(paths[section], each, class_names)
        there = [cases[each.patient, each.scan] for each in listed if (each.patient, each.scan) in cases]
        absent = [f"{each.patient}/{each.scan}" for each in listed if (each.patient, each.scan) not in cases]
        if not there:
            raise DataError(f"{paths[section]}: none of its {len(listed)} scans is in {found.root}: {_few(absent)}")
        if absent:
            found.notes.append(f"{paths[section]}: {len(absent)} scans are not in {found.root}: {_few(absent)}")
        kept += [replace(case, section=section) for case in there]
    if unlisted := len(found.cases) - len(kept):
        found.notes.append(f"{unlisted} scans are in neither list and are left out")
    found.cases = kept


def _key(case: Case) -> tuple[str, str]:
    """Patient and scan of a case of the layout."""
    return case.group, case.image[0].name


def _check_label(path: Path, listed: ListedScan, class_names: Sequence[str]) -> None:
    if listed.label not in class_names:
        raise DataError(f"{path}: label {listed.label!r} of scan {listed.scan} is none of {', '.join(class_names)}")
    if listed.target is not None and listed.target != list(class_names).index(listed.label):
        raise DataError(
            f"{path}: {listed.label} is class {listed.target} in the list and "
            f"{list(class_names).index(listed.label)} here; set --class_names in the order of the list."
        )


def _few(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    return ", ".join(ordered[:SHOWN]) + more
