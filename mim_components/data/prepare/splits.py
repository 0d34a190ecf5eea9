"""Split into training and validation cases, by the user's list or by the rule of a dataset's published split.

A share of the training cases (`label_ratio`) is taken afterwards; it never affects the validation cases.

Splits by patient keep all scans of a patient together and are stratified by class. Patients are ordered by a
hash of their id, so that the result depends neither on a library's random numbers nor on the order in which folders are
found, and adding a patient moves at most the one at the border.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mim_components.data.cases import Case, FoundCases
from mim_components.data.names import natural_key
from mim_components.data.volumes import DataError
from mim_components.utils.files import text_digest
from mim_components.utils.text import counted, shorten

NUM_FOLDS = 5
# scikit-learn's KFold(5, shuffle=True, random_state=12345), nnU-Net's convention
_SHUFFLE_SEED = 12345


@dataclass(frozen=True)
class SplitRule:
    """How a dataset is divided without a list.

    Attributes:
        folds: gives the names of the validation cases of each fold, from the labelled cases and `dataset.split`.
        share: gives the training cases left by a share of them, in (0, 1].
    """

    folds: Callable[[Sequence[Case], Mapping[str, Any]], list[list[str]]]
    share: Callable[[Sequence[Case], Mapping[str, Any], float], list[Case]]


@dataclass
class Division:
    """Division of cases into training and validation.

    Attributes:
        training: cases in natural order of their names.
        validation: the same.
        how: basis of the division, for the report.
        folds: validation fold of each case; None if validation sets of folds overlap or a list has sections.
        notes: lines for log and report.
    """

    training: list[Case]
    validation: list[Case]
    how: str
    folds: dict[str, int] | None = None
    notes: list[str] = field(default_factory=list)


def fifths(cases: Sequence[Case], split: Mapping[str, Any]) -> list[list[str]]:
    """Fold i is the i-th part of `numpy.array_split(names, 5)`, names in natural order."""
    return [[str(name) for name in part] for part in np.array_split(np.array(_names(cases), dtype=object), NUM_FOLDS)]


def shuffled_fifths(cases: Sequence[Case], split: Mapping[str, Any]) -> list[list[str]]:
    """The same with shuffled names; for AMOS's 300 CTs these are the published folds."""
    names = _names(cases)
    order = np.arange(len(names))
    np.random.RandomState(_SHUFFLE_SEED).shuffle(order)  # noqa: NPY002  # its numbers are part of the rule
    return [[names[index] for index in sorted(part)] for part in np.array_split(order, NUM_FOLDS)]


def listed(cases: Sequence[Case], split: Mapping[str, Any]) -> list[list[str]]:
    """The names that the metadata lists, as far as they exist."""
    there = {case.name for case in cases}
    return [[name for name in fold if name in there] for fold in split["folds"]]


def first_share(training: Sequence[Case], split: Mapping[str, Any], ratio: float) -> list[Case]:
    """The first `ceil(ratio * n)` of n cases.

    Example:
        >>> cases = [Case(str(number), ()) for number in range(24)]
        >>> [len(first_share(cases, {}, ratio)) for ratio in (0.25, 0.5, 0.51)]
        [6, 12, 13]
    """
    return list(training[: math.ceil(ratio * len(training) - 1e-9)])


def share_by_patient(training: Sequence[Case], split: Mapping[str, Any], ratio: float) -> list[Case]:
    """The cases of a share of the patients of every class; see `share_of_patients`."""
    return share_of_patients(training, ratio, split["seed"])


NUM_DRAWS = 5


def grouped_stratified(cases: Sequence[Case], split: Mapping[str, Any]) -> list[list[str]]:
    """Names of the validation cases, for each of five independent draws (`fold` 0 to 4).

    Of n patients of a class, `round(validation_share * n)` validate. A patient whose scans have several labels counts
    for the smallest. The validation sets of two draws share patients: this is not a partition.

    Args:
        cases: with a class number as label.
        split: `validation_share`, share of the patients of each class, in (0, 1), and `seed`.

    Raises:
        ValueError: `validation_share` is out of range, or a label is no class number.
    """
    share, seed = float(split["validation_share"]), int(split["seed"])
    if not 0 < share < 1:
        raise ValueError(f"split.validation_share must be in (0, 1), got {share}.")
    draws = [first_patients(cases, share, f"{seed} {draw} validation") for draw in range(NUM_DRAWS)]
    return [[case.name for case in cases if case.group in chosen] for chosen in draws]


def share_of_patients(cases: Sequence[Case], ratio: float, seed: int = 0) -> list[Case]:
    """The cases of a share of the patients of every class, in the order of `cases`; a larger share includes a smaller.

    Args:
        cases: with a class number as label.
        ratio: share in (0, 1]; of n patients of a class, `round(ratio * n)` remain.
        seed: seed of the draw.

    Raises:
        ValueError: `ratio` is out of range, or a label is no class number.
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"label_ratio must be in (0, 1], got {ratio}.")
    chosen = first_patients(cases, ratio, f"{seed} label_ratio")
    return [case for case in cases if case.group in chosen]


def first_patients(cases: Sequence[Case], share: float, key: str) -> set[str]:
    """A share of the patients of every class: the first in the order of their hashes with `key`."""
    classes: dict[int, list[str]] = defaultdict(list)
    for group, label in label_of_patients(cases).items():
        classes[label].append(group)
    chosen: set[str] = set()
    for groups in classes.values():
        ordered = sorted(groups, key=lambda group: text_digest(f"{key} {group}"))
        chosen.update(ordered[: round(share * len(ordered))])
    return chosen


def label_of_patients(cases: Sequence[Case]) -> dict[str, int]:
    """Class of every patient: the smallest class of the patient's scans.

    Raises:
        ValueError: a label is no class number; names the case.
    """
    labels: dict[str, int] = {}
    for case in cases:
        if not isinstance(case.label, int):
            raise ValueError(f"{case.title}: the label is {case.label!r}, expected the number of a class.")
        labels[case.group] = min(case.label, labels.get(case.group, case.label))
    return labels


# Rule by name in a bundle's metadata.
RULES: dict[str, SplitRule] = {
    "listed": SplitRule(listed, first_share),
    "fifths": SplitRule(fifths, first_share),
    "shuffled_fifths": SplitRule(shuffled_fifths, first_share),
    "grouped_stratified": SplitRule(grouped_stratified, share_by_patient),
}


def divide(found: FoundCases, split: Mapping[str, Any], fold: int = 0) -> Division:
    """Divide cases into training and validation.

    A section or fold of the user's list takes precedence; a list without either is divided by the rule "fifths", or by
    patient if the dataset's own rule is by patient. Without a list, the rule of the dataset applies.

    Args:
        found: the cases.
        split: section `dataset.split` of a bundle's metadata: `rule`, and `folds` for "listed".
        fold: the fold that validates.

    Raises:
        DataError: there is no such fold, a part is empty, or a patient is in both.
    """
    cases = sorted(found.cases, key=lambda case: natural_key(case.name))
    if any(case.section for case in cases):
        if fold != 0:
            raise DataError(f"the list has a section 'validation', which leaves no choice of a fold; got {fold=}.")
        chosen, division = {case.name for case in cases if case.section == "validation"}, Division([], [], "sections")
    elif any(case.fold is not None for case in cases):
        chosen, division = _by_listed_fold(cases, fold)
    else:
        rule = str(split["rule"])
        if found.layout == "datalist":
            # the other rules are for the names of one dataset
            rule = rule if rule == "grouped_stratified" else "fifths"
        chosen, division = _by_rule(cases, split, rule, fold)
        if found.layout == "datalist":
            division.notes.append(f"the list has neither folds nor a section 'validation': divided by rule '{rule}'")
    division.validation = [case for case in cases if case.name in chosen]
    division.training = [case for case in cases if case.name not in chosen]
    _check_parts(division, fold)
    return division


def take_share(training: Sequence[Case], split: Mapping[str, Any], fold: int, ratio: float) -> list[Case]:
    """The part of the training cases that a label ratio leaves.

    The metadata's list or count (`label_ratios`) is for the complete fold 0. It is used if all listed cases
    exist, or if the count is this share of the cases to within one case. Otherwise the rule takes the share.

    Args:
        training: cases in natural order of their names.
        split: section `dataset.split` of a bundle's metadata.
        fold: the fold that validates.
        ratio: share in (0, 1].

    Raises:
        DataError: `ratio` is out of range or leaves no case.
    """
    if not 0 < ratio <= 1:
        raise DataError(f"label_ratio must be in (0, 1], got {ratio}.")
    if ratio == 1:
        return list(training)
    ratios = split.get("label_ratios", {}) if fold == 0 else {}
    known = next((value for key, value in ratios.items() if float(key) == ratio), None)
    if isinstance(known, int) and abs(known - ratio * len(training)) <= 1:
        return list(training[:known])
    if isinstance(known, list) and set(known) <= {case.name for case in training}:
        return [case for case in training if case.name in known]
    rule = RULES.get(split["rule"], RULES["fifths"])
    if not (share := rule.share(training, split, ratio)):
        raise DataError(f"label_ratio={ratio} leaves none of {len(training)} training cases.")
    return share


def _by_listed_fold(cases: Sequence[Case], fold: int) -> tuple[set[str], Division]:
    folds = {case.name: case.fold for case in cases if case.fold is not None}
    if fold not in (known := sorted(set(folds.values()))):
        raise DataError(f"fold must be one of the list's, {', '.join(map(str, known))}; got {fold!r}.")
    division = Division([], [], f"fold {fold} of the list", folds)
    if always := len(cases) - len(folds):
        division.notes.append(f"{counted(always, 'case')} of the list without a fold used for training in every fold")
    return {name for name, of_case in folds.items() if of_case == fold}, division


def _by_rule(cases: Sequence[Case], split: Mapping[str, Any], rule: str, fold: int) -> tuple[set[str], Division]:
    if rule not in RULES:
        raise ValueError(f"rule of the split must be one of {', '.join(RULES)}, got {rule!r}.")
    folds = RULES[rule].folds(cases, split)
    if not isinstance(fold, int) or not 0 <= fold < len(folds):
        raise DataError(f"fold must be 0 to {len(folds) - 1}, got {fold!r}.")
    if not folds[fold]:
        wanted = f", expected {shorten(split['folds'][fold], 10)}" if rule == "listed" else ""
        raise DataError(
            f"no case of validation fold {fold} exists{wanted}; found {len(cases)}: "
            f"{shorten((case.title for case in cases), 10)}. Choose another fold or give a datalist."
        )
    names = [name for part in folds for name in part]
    own = {name: number for number, part in enumerate(folds) for name in part}
    return set(folds[fold]), Division([], [], f"fold {fold} of rule '{rule}'", own if len(own) == len(names) else None)


def _check_parts(division: Division, fold: int) -> None:
    if not division.training:
        raise DataError(f"no case is left for training: all {len(division.validation)} validate in fold {fold}.")
    groups = {case.group for case in division.training}
    shared = {case.patient for case in division.validation if case.group in groups}
    if shared:
        raise DataError(f"patients in both training and validation: {shorten(sorted(shared, key=natural_key), 10)}.")


def _names(cases: Sequence[Case]) -> list[str]:
    return sorted((case.name for case in cases), key=natural_key)
