"""Splits by patient: all scans of a patient stay together, and every class is shared out alike.

Patients are ordered by a hash of their id, so that the result depends neither on a library's random numbers nor on the
order in which folders are found, and a patient who is added moves no other but the one at the border.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol, TypeVar


class GroupedCase(Protocol):
    """What a split needs to know of a case."""

    @property
    def group(self) -> str:
        """Patient."""

    @property
    def label(self) -> object:
        """Class number."""


C = TypeVar("C", bound=GroupedCase)


def grouped_stratified(
    cases: Sequence[C], validation_share: float = 0.4, seed: int = 0, fold: int = 0
) -> tuple[list[C], list[C]]:
    """Share out the patients of every class; training and validation cases, each in the order of `cases`.

    Of n patients of a class, `round(validation_share * n)` validate. A patient whose scans have several labels counts
    for the smallest. Every fold is a draw of its own: the validation sets of two folds share patients.

    Args:
        cases: with a class number as label.
        validation_share: of the patients of each class, in (0, 1).
        seed: of the draw.
        fold: number of the draw.

    Raises:
        ValueError: `validation_share` is out of range.
    """
    if not 0 < validation_share < 1:
        raise ValueError(f"validation_share must be in (0, 1), got {validation_share}.")
    chosen = _first_patients(cases, validation_share, f"{seed} {fold} validation")
    return [case for case in cases if case.group not in chosen], [case for case in cases if case.group in chosen]


def share_of_patients(cases: Sequence[C], ratio: float, seed: int = 0) -> list[C]:
    """The cases of a share of the patients of every class, in the order of `cases`; a larger share holds a smaller.

    Args:
        cases: with a class number as label.
        ratio: in (0, 1]; of n patients of a class `round(ratio * n)` remain.
        seed: of the draw.

    Raises:
        ValueError: `ratio` is out of range.
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"label_ratio must be in (0, 1], got {ratio}.")
    chosen = _first_patients(cases, ratio, f"{seed} label_ratio")
    return [case for case in cases if case.group in chosen]


def _first_patients(cases: Sequence[C], share: float, key: str) -> set[str]:
    """Of every class the first patients in the order of their hashes."""
    label_of: dict[str, int] = {}
    for case in cases:
        label = case.label
        if not isinstance(label, int):
            raise ValueError(f"{case.group}: the label is {label!r}, expected the number of a class.")
        label_of[case.group] = min(label, label_of.get(case.group, label))
    classes: dict[int, list[str]] = defaultdict(list)
    for group, label in label_of.items():
        classes[label].append(group)
    chosen: set[str] = set()
    for groups in classes.values():
        ordered = sorted(groups, key=lambda group: hashlib.sha256(f"{key} {group}".encode()).hexdigest())
        chosen.update(ordered[: round(share * len(ordered))])
    return chosen
