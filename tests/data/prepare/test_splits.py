"""The published split of every dataset, against values entered by hand."""

from pathlib import Path

import numpy as np
import pytest

from mim_components.data import Case, DataError, FoundCases
from mim_components.data.prepare.splits import divide, take_share


def found(names, layout="x", **facts):
    return FoundCases(Path(), layout, [Case(name, (Path(name),), Path(name), **facts) for name in names])


def names(cases):
    return [case.name for case in cases]


def numbered(numbers, prefix="", digits=4):
    return [f"{prefix}{number:0{digits}d}" for number in numbers]


def parts(ids, split, fold=0, ratio=1.0):
    """Names for training and validation."""
    division = divide(found(ids), split, fold)
    return names(take_share(division.training, split, fold, ratio)), names(division.validation)


# --- every dataset

BTCV = numbered([*range(1, 11), *range(21, 41)])
BTCV_FOLDS = [
    ["0035", "0036", "0037", "0038", "0039", "0040"],
    ["0029", "0030", "0031", "0032", "0033", "0034"],
    ["0023", "0024", "0025", "0026", "0027", "0028"],
    ["0007", "0008", "0009", "0010", "0021", "0022"],
    ["0001", "0002", "0003", "0004", "0005", "0006"],
]


@pytest.mark.parametrize("fold", range(5))
def test_btcv_folds(metadata, fold):
    training, validation = parts(BTCV, metadata("btcv")["split"], fold)
    assert validation == BTCV_FOLDS[fold]
    assert len(training) == 24 and not set(training) & set(validation)


def test_btcv_label_ratios(metadata):
    split = metadata("btcv")["split"]
    assert parts(BTCV, split, ratio=0.25)[0] == ["0001", "0002", "0003", "0004", "0005", "0006"]
    assert parts(BTCV, split, ratio=0.5)[0] == numbered([*range(1, 11), 21, 22])
    assert parts(BTCV, split, ratio=0.5)[1] == BTCV_FOLDS[0]
    # the list is of fold 0; in fold 4 the first quarter of 24 is 0007 and what follows
    assert parts(BTCV, split, 4, 0.25)[0] == ["0007", "0008", "0009", "0010", "0021", "0022"]


def test_mmwhs(metadata):
    ids, split = numbered(range(1001, 1021)), metadata("mmwhs")["split"]
    training, validation = parts(ids, split)
    assert validation == ["1001", "1002", "1003", "1004"] and training == numbered(range(1005, 1021))
    assert parts(ids, split, ratio=0.5)[0] == numbered(range(1005, 1013))
    assert parts(ids, split, ratio=0.25)[0] == ["1005", "1006", "1007", "1008"]
    assert parts(ids, split, 4)[1] == ["1017", "1018", "1019", "1020"]


SPLEEN = [2, 3, 6, 8, 9, 10, 12, 13, 14, 16, 17, 18, 19, 20, 21, 22, 24, 25, 26, 27, 28, 29, 31, 32, 33, 38, 40, 41]
SPLEEN += [44, 45, 46, 47, 49, 52, 53, 56, 59, 60, 61, 62, 63]


def test_spleen(metadata):
    ids, split = [f"spleen_{number}" for number in SPLEEN], metadata("msd_spleen")["split"]
    training, validation = parts(sorted(ids), split)
    assert validation == [f"spleen_{number}" for number in (2, 3, 6, 8, 9, 10, 12, 13, 14)] and len(training) == 32
    quarter = [f"spleen_{number}" for number in (16, 17, 18, 19, 20, 21, 22, 24)]
    assert parts(ids, split, ratio=0.25)[0] == quarter == parts(ids, split, 1)[1]
    assert parts(ids, split, ratio=0.5)[0] == quarter + parts(ids, split, 2)[1]
    assert len(parts(ids, split, ratio=0.5)[0]) == 16


def test_amos(metadata):
    ids, split = numbered(range(1, 301)), metadata("amos22")["split"]
    training, validation = parts(ids, split)
    assert (len(training), len(validation)) == (240, 60)
    expected = np.random.RandomState(12345).permutation(300)  # noqa: NPY002
    for fold in range(5):
        assert parts(ids, split, fold)[1] == numbered(sorted(expected[60 * fold : 60 * fold + 60] + 1))
    for ratio, count in ((0.25, 61), (0.5, 121)):
        assert parts(ids, split, ratio=ratio)[0] == training[:count]
    # the counts are of the complete fold 0
    assert len(parts(ids, split, 1, 0.25)[0]) == 60
    assert len(parts(ids[:100], split, ratio=0.25)[0]) == 20


def test_amos_folds_are_those_of_scikit_learn(metadata):
    selection = pytest.importorskip("sklearn.model_selection")
    ids = numbered(range(1, 303))
    folds = selection.KFold(5, shuffle=True, random_state=12345).split(ids)
    for fold, (_, validation) in enumerate(folds):
        assert parts(ids, metadata("amos22")["split"], fold)[1] == [ids[index] for index in validation]


def test_flare(metadata):
    ids, split = numbered(range(1, 51)), metadata("flare22")["split"]
    assert parts(ids, split) == (numbered(range(11, 51)), numbered(range(1, 11)))
    assert parts(ids, split, ratio=0.25)[0] == numbered(range(11, 21))
    assert parts(ids, split, ratio=0.5)[0] == numbered(range(11, 31))


def test_liver_is_sorted_by_number(metadata):
    ids = [f"liver_{number}" for number in range(131)]
    training, validation = parts(sorted(ids), metadata("msd_liver")["split"])
    assert validation == ids[:27] and training == ids[27:] and validation[-1] == "liver_26"


def test_lung(metadata):
    ids = numbered([1, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 20, 22, *range(23, 73)], "lung_", 3)
    training, validation = parts(ids, metadata("msd_lung")["split"])
    assert (validation[0], validation[-1], len(validation), len(training)) == ("lung_001", "lung_022", 13, 50)


@pytest.mark.parametrize(
    ("bundle", "total", "validation"),
    [("msd_pancreas", 281, 57), ("msd_hepaticvessel", 303, 61), ("msd_colon", 126, 26), ("brats", 484, 97)],
)
def test_counts_of_fold_0(metadata, bundle, total, validation):
    ids = numbered(range(1, total + 1), "case_", 3)
    assert metadata(bundle)["num_cases"] == total
    assert parts(ids, metadata(bundle)["split"])[1] == ids[:validation]


def test_covid(metadata):
    # 199 ids, of which five carry a second number; the first 40 end in 0165
    first = [3, 11, 12, 16, 25, 31, 38, 39, 41, 42, 44, "47_1", 53, 64, 70, 72, "74_1", 81, 82, 83]
    first += [84, 86, 87, 88, 90, 91, 96, 110, 112, 114, 117, 120, 129, 130, 144, 146, 151, 158, 164, 165]
    ids = [f"A-{int(str(n).split('_')[0]):04d}{'_1' if '_' in str(n) else ''}" for n in [*first, "167_1"]]
    ids += numbered(range(168, 326), "A-")
    training, validation = parts(sorted(ids, reverse=True), metadata("covid19")["split"])
    assert (len(training), len(validation)) == (159, 40)
    assert (validation[0], validation[11], validation[-1]) == ("A-0003", "A-0047_1", "A-0165")


# --- rules


def test_folds_that_do_not_divide_are_larger_first():
    # numpy.array_split: 12 = 3 + 3 + 2 + 2 + 2
    ids = [str(number) for number in range(12)]
    sizes = [len(parts(ids, {"rule": "fifths"}, fold)[1]) for fold in range(5)]
    assert sizes == [3, 3, 2, 2, 2]
    assert divide(found(ids), {"rule": "fifths"}, 0).folds == {
        **dict.fromkeys(["0", "1", "2"], 0), **dict.fromkeys(["3", "4", "5"], 1), **dict.fromkeys(["6", "7"], 2),
        **dict.fromkeys(["8", "9"], 3), **dict.fromkeys(["10", "11"], 4),
    }  # fmt: skip


def test_listed_fold_of_a_subset(metadata):
    split = metadata("btcv")["split"]
    assert parts(["0001", "0036", "0040"], split) == (["0001"], ["0036", "0040"])
    with pytest.raises(DataError, match="no case of validation fold 1 exists, expected 0029, .*0034; found 3: 0001,"):
        parts(["0001", "0036", "0040"], split, 1)
    # in an incomplete list the share by number remains: half of 3, rounded up
    assert parts(["0001", "0002", "0030", "0035"], split, ratio=0.5)[0] == ["0001", "0002"]


@pytest.mark.parametrize("fold", [-1, 5, "0", 1.0])
def test_no_such_fold(fold):
    with pytest.raises(DataError, match="fold must be 0 to 4, got"):
        parts(list("abcdef"), {"rule": "fifths"}, fold)


def test_too_few_cases():
    with pytest.raises(DataError, match="no case of validation fold 3 exists; found 3: a, b, c. Choose"):
        parts(list("abc"), {"rule": "fifths"}, 3)
    with pytest.raises(DataError, match="no case is left for training: all 1 validate in fold 0"):
        parts(["a"], {"rule": "fifths"})


def test_unknown_rule():
    with pytest.raises(ValueError, match="rule of the split must be one of listed, .*, got 'random'"):
        parts(["a"], {"rule": "random"})


@pytest.mark.parametrize("ratio", [0, -0.5, 1.01, float("nan")])
def test_ratio_out_of_range(ratio):
    with pytest.raises(DataError, match=r"label_ratio must be in \(0, 1\], got"):
        take_share(found("abc").cases, {"rule": "fifths"}, 0, ratio)


def test_any_ratio_is_rounded_up_but_not_by_an_error_of_floats():
    cases = found(numbered(range(100))).cases
    assert [len(take_share(cases, {"rule": "fifths"}, 0, ratio)) for ratio in (0.07, 0.29, 0.001)] == [7, 29, 1]
    assert 0.07 * 100 > 7  # hence the tolerance
    with pytest.raises(DataError, match="leaves none of 100 training cases"):
        take_share(cases, {"rule": "fifths"}, 0, 1e-12)


def test_patients_stay_together():
    cases = [Case(f"{n}", (Path(),), n % 2, group=f"p{n // 4}{n % 2}") for n in range(40)]  # two scans of each of 20
    split = {"rule": "grouped_stratified", "validation_share": 0.4, "seed": 0}
    division = divide(FoundCases(Path(), "x", cases), split, 2)
    assert len(division.validation) == 16 and division.folds is None  # draws overlap: 0.4 of 10 patients of each class
    assert not {case.group for case in division.training} & {case.group for case in division.validation}
    assert len(take_share(division.training, split, 2, 0.5)) == 12


def test_patient_on_both_sides_is_an_error():
    with pytest.raises(DataError, match="patients in both training and validation: p"):
        divide(found("abcdef", group="p"), {"rule": "fifths"})


# --- splits in a list


def test_folds_of_a_list():
    cases = [Case(name, (Path(name),), 0, fold=fold) for name, fold in (("a", 0), ("b", 3), ("c", 3), ("d", None))]
    listed = FoundCases(Path(), "datalist", cases)
    division = divide(listed, {"rule": "listed", "folds": []}, 3)
    assert names(division.validation) == ["b", "c"] and names(division.training) == ["a", "d"]
    assert division.notes == ["1 case of the list without a fold used for training in every fold"]
    with pytest.raises(DataError, match="fold must be one of the list's, 0, 3; got 1"):
        divide(listed, {"rule": "listed", "folds": []}, 1)


def test_sections_of_a_list():
    cases = [
        Case(name, (Path(name),), 0, section=section)
        for name, section in zip("ab", ["validation", "training"], strict=True)
    ]
    listed = FoundCases(Path(), "datalist", cases)
    division = divide(listed, {"rule": "fifths"})
    assert names(division.validation) == ["a"] and names(division.training) == ["b"]
    assert division.folds is None and division.how == "sections"
    with pytest.raises(DataError, match="leaves no choice of a fold; got fold=1"):
        divide(listed, {"rule": "fifths"}, 1)


def test_list_without_folds_is_divided_into_fifths():
    division = divide(found(numbered(range(10)), "datalist"), {"rule": "listed", "folds": [["0009"]]})
    assert names(division.validation) == ["0000", "0001"]
    assert division.notes == ["the list has neither folds nor a section 'validation': divided by rule 'fifths'"]
