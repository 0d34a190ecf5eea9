from __future__ import annotations

from collections import Counter

import pytest

from mim_components.data.cases import Case
from mim_components.data.prepare.splits import grouped_stratified, share_of_patients

PATIENTS = {0: 85, 1: 96, 2: 93}  # a tenth of CC-CCII's


@pytest.fixture
def cases() -> list[Case]:
    """Patients with one to three scans each."""
    return [
        Case(f"{label}_{patient}_{scan}", (), label, group=f"{label}_{patient}")
        for label, count in PATIENTS.items()
        for patient in range(count)
        for scan in range(1 + patient % 3)
    ]


def divided(cases: list[Case], share: float = 0.4, seed: int = 0, fold: int = 0) -> tuple[list[Case], list[Case]]:
    names = grouped_stratified(cases, {"validation_share": share, "seed": seed})[fold]
    return [case for case in cases if case.name not in names], [case for case in cases if case.name in names]


def names_of(cases: list[Case]) -> set[str]:
    return {case.name for case in cases}


@pytest.mark.parametrize("fold", range(5))
def test_no_patient_on_both_sides(cases, fold):
    training, validation = divided(cases, fold=fold)
    assert training and validation
    assert not {case.group for case in training} & {case.group for case in validation}


@pytest.mark.parametrize("fold", range(5))
def test_every_class_is_shared_out_60_to_40_by_patients(cases, fold):
    _, validation = divided(cases, fold=fold)
    patients = Counter(case.label for case in {case.group: case for case in validation}.values())
    assert patients == {0: 34, 1: 38, 2: 37}  # 0.4 * 85 = 34, 0.4 * 96 = 38.4, 0.4 * 93 = 37.2


def test_order_of_the_cases_does_not_matter_but_seed_and_fold_do(cases):
    _, first = divided(cases)
    assert names_of(divided(cases[::-1])[1]) == names_of(first)
    for other in ({"seed": 1}, {"fold": 1}):
        assert names_of(divided(cases, **other)[1]) != names_of(first)


def test_split_is_the_same_everywhere():
    few = [Case(str(number), (), 0) for number in range(5)]
    # the two smallest of sha256("0 0 validation 0") ... sha256("0 0 validation 4") begin with 3c and 22
    assert names_of(divided(few)[1]) == {"1", "2"}


def test_patient_who_is_added_moves_none_but_at_the_border(cases):
    before = {case.group for case in divided(cases)[1]}
    after = {case.group for case in divided([*cases, Case("new", (), 1)])[1]}
    assert len(before ^ (after - {"new"})) <= 1


def test_patient_with_two_labels_stays_together():
    cases = [Case(f"{patient}_{scan}", (), scan, group=str(patient)) for patient in range(10) for scan in range(2)]
    _, validation = divided(cases)
    assert len(validation) == 8
    assert set(Counter(case.group for case in validation).values()) == {2}


def test_smaller_share_lies_in_the_larger(cases):
    quarter, half = (share_of_patients(cases, ratio) for ratio in (0.25, 0.5))
    assert {case.name for case in quarter} < {case.name for case in half}
    patients = Counter(case.label for case in {case.group: case for case in half}.values())
    assert patients == {0: 42, 1: 48, 2: 46}  # round(42.5) = 42, 48, round(46.5) = 46
    assert share_of_patients(cases, 1.0) == cases


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_validation_share_out_of_range(cases, share):
    with pytest.raises(ValueError, match=r"validation_share must be in \(0, 1\)"):
        divided(cases, share)


def test_label_ratio_out_of_range(cases):
    with pytest.raises(ValueError, match=r"label_ratio must be in \(0, 1\], got 0"):
        share_of_patients(cases, 0)


def test_label_that_is_no_class():
    with pytest.raises(ValueError, match="a: the label is None, expected the number of a class"):
        divided([Case("a", ())])
