"""Splits by patient: all scans of a patient stay together, and every class is shared out alike.

Patients are ordered by a hash of their id, so that the result depends neither on a library's random numbers nor on the
order in which folders are found, and a patient who is added moves no other but the one at the border.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from mim_components.data.cases import Case

NUM_DRAWS = 5


def grouped_stratified(cases: Sequence[Case], split: Mapping[str, Any]) -> list[list[str]]:
    """Names of the cases that validate, for each of five independent draws (`fold` 0 to 4).

    Of n patients of a class, `round(validation_share * n)` validate. A patient whose scans have several labels counts
    for the smallest. The validation sets of two draws share patients: this is no partition.

    Args:
        cases: with a class number as label.
        split: `validation_share` of the patients of each class, in (0, 1), and `seed`.

    Raises:
        ValueError: `validation_share` is out of range, or a label is no class number.
    """
    share, seed = float(split["validation_share"]), int(split["seed"])
    if not 0 < share < 1:
        raise ValueError(f"split.validation_share must be in (0, 1), got {share}.")
    draws = [first_patients(cases, share, f"{seed} {draw} validation") for draw in range(NUM_DRAWS)]
    return [[case.name for case in cases if case.group in chosen] for chosen in draws]


def share_of_patients(cases: Sequence[Case], ratio: float, seed: int = 0) -> list[Case]:
    """The cases of a share of the patients of every class, in the order of `cases`; a larger share holds a smaller.

    Args:
        cases: with a class number as label.
        ratio: in (0, 1]; of n patients of a class `round(ratio * n)` remain.
        seed: of the draw.

    Raises:
        ValueError: `ratio` is out of range, or a label is no class number.
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"label_ratio must be in (0, 1], got {ratio}.")
    chosen = first_patients(cases, ratio, f"{seed} label_ratio")
    return [case for case in cases if case.group in chosen]


def first_patients(cases: Sequence[Case], share: float, key: str) -> set[str]:
    """Of every class a share of the patients: the first in the order of their hashes with `key`."""
    classes: dict[int, list[str]] = defaultdict(list)
    for group, label in label_of_patients(cases).items():
        classes[label].append(group)
    chosen: set[str] = set()
    for groups in classes.values():
        ordered = sorted(groups, key=lambda group: hashlib.sha256(f"{key} {group}".encode()).hexdigest())
        chosen.update(ordered[: round(share * len(ordered))])
    return chosen


def label_of_patients(cases: Sequence[Case]) -> dict[str, int]:
    """Class of every patient; the smallest of those of the patient's scans.

    Raises:
        ValueError: a label is no class number; names the case.
    """
    labels: dict[str, int] = {}
    for case in cases:
        if not isinstance(case.label, int):
            raise ValueError(f"{case.title}: the label is {case.label!r}, expected the number of a class.")
        labels[case.group] = min(case.label, labels.get(case.group, case.label))
    return labels
