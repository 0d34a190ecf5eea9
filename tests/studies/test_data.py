from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from studies.data import order_of, prepare_data
from studies.definition import Study, StudyError

Write = Callable[[dict[str, Any]], Path]


def test_smaller_sets_lie_in_larger_ones() -> None:
    names = [f"pt_{number}" for number in range(86)]
    assert order_of(names, 0) == order_of(names[::-1], 0) != order_of(names, 1)


def test_lists_and_labels(small: dict[str, Any], write: Write, patients: Path, tmp_path: Path) -> None:
    study = Study(write(small))
    # one of the three training patients has no label map
    assert prepare_data(study, patients, tmp_path) == {"pretraining": 3, "train": 2, "test": 1}
    label = np.asarray(nib.load(tmp_path / "labels" / "pt_0.nii.gz").dataobj)
    source = np.asarray(nib.load(patients / "train" / "pt_0_organs.nii.gz").dataobj)
    assert set(np.unique(source)) > {0, 1, 2}
    np.testing.assert_array_equal(label, np.where(source <= 2, source, 0))  # other organs are background
    lists = {path.name: json.loads(path.read_text()) for path in (tmp_path / "lists").iterdir()}
    assert len(lists["pretraining.json"]["training"]) == 3
    first, second = order_of(["pt_0", "pt_2"], 0)
    train, test = lists["train_1_seed0.json"], lists["test_1_seed0.json"]
    assert [item["name"] for item in train["training"]] == [item["name"] for item in test["training"]] == [first]
    assert [item["name"] for item in train["validation"]] == [second]
    assert [item["name"] for item in test["validation"]] == ["pt_3"]
    assert (tmp_path / "bundle" / "configs" / "evaluate.json").exists()


def test_other_numbers_than_expected(small: dict[str, Any], write: Write, patients: Path, tmp_path: Path) -> None:
    small["data"]["expected"]["train"] = 86
    with pytest.raises(StudyError, match="2 labelled patients .* and 1 for testing; .* expects .* 86 labelled"):
        prepare_data(Study(write(small)), patients, tmp_path)
    small["data"] |= {"image": "{name}_scan.nii.gz"}
    with pytest.raises(StudyError, match="has no scan NAME_scan.nii.gz; set --data"):
        prepare_data(Study(write(small)), patients, tmp_path)


def test_one_patient_is_left(small: dict[str, Any], write: Write, patients: Path, tmp_path: Path) -> None:
    small["labels"] = [2]
    with pytest.raises(StudyError, match="asks for 2 of 2 labelled patients"):
        prepare_data(Study(write(small)), patients, tmp_path)
