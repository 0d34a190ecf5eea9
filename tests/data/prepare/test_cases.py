"""From cases to checked training and validation parts, and the report about them."""

import json
import logging
import pickle
from functools import partial

import numpy as np
import pytest

from mim_components.data import (
    BadVolumesError,
    Case,
    CheckResult,
    DataError,
    FoundCases,
    SegmentationChecker,
    find_cases,
    prepare_cases,
)
from mim_components.data.prepare import cases as prepare_module
from mim_components.data.state import state_of
from mim_components.labels import LabelSet

SPLIT = {"rule": "fifths", "folds": [], "label_ratios": {}}
LABELS = LabelSet(("background", "organ", "lesion"), {}, {})
CHECKER = SegmentationChecker(LABELS)
LAYOUTS = [{"name": "btcv"}]
EXCLUDE = {"on_bad": "exclude", "max_bad_fraction": 0.2}


@pytest.fixture
def dataset(tmp_path, write):
    """Ten cases in BTCV's layout, 0001 to 0010, and two without label."""
    for number in range(1, 11):
        write(f"data/Training/img/img{number:04d}.nii.gz", number)
        write(f"data/Training/label/label{number:04d}.nii.gz", "label")
    for number in (61, 62):
        write(f"data/Testing/img/img{number:04d}.nii.gz", number)
    return tmp_path / "data"


@pytest.fixture
def prepare(tmp_path, dataset):
    """Find and prepare cases; the cache is kept between calls."""

    def make(datalist=None, checker=CHECKER, **options):
        options = {"split": SPLIT, "cache_dir": tmp_path / "cache", "output_dir": tmp_path / "out", **options}
        return prepare_cases(find_cases(dataset, datalist, LAYOUTS), checker, **options)

    return make


def names(items):
    return [item["name"] for item in items]


def spoil(dataset, number, label=False):
    kind = "label" if label else "img"
    (path,) = dataset.glob(f"Training/{kind}/{kind}{number:04d}.nii.gz")
    path.write_bytes(path.read_bytes()[:-4])


def test_parts_and_items(prepare, dataset):
    prepared = prepare(num_cases=10, name="BTCV")
    assert names(prepared.validation) == ["0001", "0002"] and len(prepared) == 8
    assert names(prepared.unlabelled) == ["0061", "0062"]
    image = str(dataset / "Training/img/img0001.nii.gz")
    item = prepared.validation[0]
    assert set(item) == {"image", "label", "name", "group", "source", "digest", "state"}
    assert item["image"] == item["source"] == image and item["group"] == "0001"
    assert item["label"] == str(dataset / "Training/label/label0001.nii.gz") and len(item["digest"]) == 64
    assert "label" not in prepared.unlabelled[0]
    assert len(set(prepared.images.values())) == len(prepared.images) == 10
    assert prepared.notes == [] and prepared.bad == []
    assert prepared.summary() == (
        "labelled in the complete dataset: 10, labelled and found: 10, unfit and left out: 0, training: 8, "
        "validation: 2, without label: 2"
    )


def test_items_with_channels_and_classes(tmp_path, write):
    cases = [Case(name, (write(f"{name}0.nii"), write(f"{name}1.nii")), 1) for name in "ab"]
    found = FoundCases(tmp_path, "x", cases)
    prepared = prepare_cases(found, lambda case: CheckResult(case.name), SPLIT, cache_dir=tmp_path / "cache")
    (item,) = prepared.training
    assert item["image"] == [str(tmp_path / "b0.nii"), str(tmp_path / "b1.nii")]
    assert (item["label"], item["source"]) == (1, str(tmp_path / "b0.nii"))


def test_fold_and_label_ratio(prepare):
    prepared = prepare(fold=4, label_ratio=0.5)
    assert names(prepared.validation) == ["0009", "0010"] and names(prepared.training) == [
        "0001",
        "0002",
        "0003",
        "0004",
    ]
    assert ("not used because of the label ratio", 4) in prepared.counts


def test_subset_is_a_note(prepare, caplog):
    prepared = prepare(num_cases=30)
    assert prepared.notes == ["30 labelled cases expected, 10 found"]
    assert "30 labelled cases expected, 10 found" in caplog.text


def test_layout_says_how_many_cases_it_has(tmp_path, dataset):
    found = find_cases(dataset, None, [{"name": "btcv", "num_cases": 12}])
    prepared = prepare_cases(found, CHECKER, SPLIT, num_cases=30, cache_dir=tmp_path / "cache")
    assert prepared.notes == ["12 labelled cases expected, 10 found"]


def test_second_start_reads_no_file(prepare, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    first = prepare()
    monkeypatch.setattr(SegmentationChecker, "__call__", None)
    assert prepare() == first
    assert "10 cases: 0 to check, 10 checked before" in caplog.text


def test_changed_file_is_checked_again(prepare, dataset, write):
    prepare()
    write("data/Training/label/label0003.nii.gz", np.full((3, 4, 5), 9, np.uint8))
    with pytest.raises(BadVolumesError, match="1 of 10 volumes cannot be used"):
        prepare()


def test_all_bad_cases_are_listed_at_once(prepare, dataset):
    spoil(dataset, 2)
    spoil(dataset, 5, label=True)
    with pytest.raises(BadVolumesError, match="2 of 10 volumes cannot be used") as raised:
        prepare()
    lines = str(raised.value).splitlines()
    assert lines[1].startswith(f"  {dataset}/Training/img/img0002.nii.gz: truncated")
    assert lines[2].startswith(f"  {dataset}/Training/img/img0005.nii.gz: label/label0005.nii.gz: truncated")


def test_left_out_case_moves_no_other(prepare, dataset, tmp_path):
    spoil(dataset, 1)
    spoil(dataset, 7)
    prepared = prepare(**EXCLUDE)
    assert names(prepared.validation) == ["0002"]
    assert names(prepared.training) == ["0003", "0004", "0005", "0006", "0008", "0009", "0010"]
    assert len(prepared.bad) == 2 and prepared.summary().count("\nleft out: ") == 2
    report = (tmp_path / "out" / "data_report.md").read_text()
    assert "| Training/img/img0007.nii.gz | truncated: the compressed data end" in report


def test_error_that_no_check_foresaw_hides_nothing(prepare):
    def fail(case):
        raise KeyError("surprise")

    with pytest.raises(BadVolumesError, match="10 of 10 volumes(.|\n)*cannot be read: KeyError: 'surprise'"):
        prepare(checker=fail)


def test_part_that_is_empty_without_the_bad_ones(prepare, dataset):
    spoil(dataset, 1)
    spoil(dataset, 2)
    with pytest.raises(
        DataError, match="no usable case is left for validation; left out:\n(.|\n)*img0002.nii.gz: trunc"
    ):
        prepare(**EXCLUDE)


def test_settings_are_refused_before_any_file_is_read(prepare):
    def fail(case):
        raise AssertionError

    for options, message in (
        ({"fold": 5}, "fold must be 0 to 4, got 5"),
        ({"label_ratio": 0}, "label_ratio must be in"),
        ({"on_bad": "skip"}, "on_bad must be one of"),
        ({"num_workers": -1}, "num_workers must not be negative"),
    ):
        with pytest.raises(DataError, match=message):
            prepare(checker=fail, **options)


def test_training_image_that_is_a_validation_image_as_well(prepare, write):
    write("data/Training/img/img0005.nii.gz", 2)
    message = "img0005.nii.gz: the same image as validation case 0002, and case 0005 is for training"
    with pytest.raises(BadVolumesError, match=message):
        prepare()
    assert "0005" not in names(prepare(**EXCLUDE).training)


def test_training_image_that_is_there_twice_is_a_note(prepare, write):
    write("data/Training/img/img0005.nii.gz", 4)
    prepared = prepare()
    assert prepared.notes == ["0005: the same image as 0004; it is kept and counts twice"]
    assert len(prepared) == 8


def test_digest_is_of_data_and_split_not_of_their_place(prepare, dataset, tmp_path, write):
    first = prepare().digest
    assert prepare(fold=1).digest != first and prepare(label_ratio=0.5).digest != first
    dataset.rename(tmp_path / "moved")
    found = find_cases(tmp_path / "moved", None, LAYOUTS)
    assert prepare_cases(found, CHECKER, SPLIT, cache_dir=tmp_path / "c2").digest == first
    label = np.zeros((3, 4, 5), np.uint8)
    write("moved/Training/label/label0004.nii.gz", label)
    assert prepare_cases(found, CHECKER, SPLIT, cache_dir=tmp_path / "c2").digest != first


def test_list_that_was_written_gives_the_same(prepare, tmp_path):
    first = prepare(name="BTCV")
    path = tmp_path / "out" / "datalist.json"
    content = json.loads(path.read_text())
    assert content["name"] == "BTCV" and content["modality"] == {"0": "CT"}
    assert content["labels"] == {"0": "background", "1": "organ", "2": "lesion"}
    assert content["training"][0] == {
        "fold": 1,
        "name": "0003",
        "image": "Training/img/img0003.nii.gz",
        "label": "Training/label/label0003.nii.gz",
    }
    assert content["test"][0] == {"name": "0061", "image": "Testing/img/img0061.nii.gz"}
    again = prepare(path, name="BTCV")
    assert again == first and json.loads(path.read_text()) == content
    assert prepare(path, fold=3, label_ratio=0.25) == prepare(fold=3, label_ratio=0.25)


def test_monai_reads_the_list(prepare, tmp_path, dataset):
    from monai.data import load_decathlon_datalist

    prepare()
    items = load_decathlon_datalist(tmp_path / "out" / "datalist.json", True, "training", dataset)
    assert items[0]["image"] == str(dataset / "Training/img/img0003.nii.gz")
    tests = load_decathlon_datalist(tmp_path / "out" / "datalist.json", True, "test", dataset)
    assert tests[0] == {"name": "0061", "image": str(dataset / "Testing/img/img0061.nii.gz")}


def test_report(prepare, tmp_path, write):
    write("data/Training/label/label0003.nii.gz", np.zeros((3, 4, 5), np.uint8))
    prepare(num_cases=30, name="BTCV", fold=1)
    assert (tmp_path / "out" / "data_report.md").read_text() == (
        "# Data of BTCV\n\nLayout `btcv`, divided by fold 1 of rule 'fifths'.\n\n"
        "| cases                            | number |\n"
        "| -------------------------------- | ------ |\n"
        "| labelled in the complete dataset | 30     |\n"
        "| labelled and found               | 10     |\n"
        "| unfit and left out               | 0      |\n"
        "| training                         | 8      |\n"
        "| validation                       | 2      |\n"
        "| without label                    | 2      |\n\n"
        "## Notes\n\n- 30 labelled cases expected, 10 found\n- 0003: the label holds background only\n\n"
        "## Training\n\n0001, 0002, 0005, 0006, 0007, 0008, 0009, 0010\n\n"
        "## Validation\n\n0003, 0004\n"
    )


def test_nothing_is_written_without_a_folder(prepare, tmp_path):
    prepare(output_dir=None)
    assert not (tmp_path / "out").exists()


def test_check_can_be_sent_to_other_processes(dataset):
    case = find_cases(dataset, None, LAYOUTS).cases[0]
    check = pickle.loads(pickle.dumps(partial(prepare_module._check_one, CHECKER)))
    assert check(case) == (state_of(case.files), CHECKER(case))


def test_copy_that_the_label_ratio_leaves_out_stops_no_run(prepare, write):
    """Validation 0001 and 0002; a quarter of the training cases is 0003 and 0004."""
    write("data/Training/img/img0009.nii.gz", 2)
    prepared = prepare(label_ratio=0.25)
    assert names(prepared.training) == ["0003", "0004"] and prepared.bad == []
    assert prepared.notes == ["0002: the same image as 0009; it is kept and counts twice"]
    write("data/Training/img/img0003.nii.gz", 1)
    write("data/Training/img/img0005.nii.gz", 1)  # follows into the share
    prepared = prepare(label_ratio=0.25, **EXCLUDE)
    assert names(prepared.training) == ["0004", "0006"] and len(prepared.bad) == 2
