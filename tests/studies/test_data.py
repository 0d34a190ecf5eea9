from __future__ import annotations

import json
import shutil
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
    with pytest.raises(StudyError, match="2 labelled patients .* and 1 for testing; .* 86 labelled .* all of 2"):
        prepare_data(Study(write(small)), patients, tmp_path)
    small["data"] |= {"image": "{name}_scan.nii.gz"}
    with pytest.raises(StudyError, match="has no scan NAME_scan.nii.gz; set --data"):
        prepare_data(Study(write(small)), patients, tmp_path)


def test_a_folder_per_patient(small: dict[str, Any], write: Write, patients: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for scan in patients.glob("*/*.nii.gz"):
        name, kind = scan.name.removesuffix(".nii.gz").rsplit("_", 1)
        (data / scan.parent.name / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(scan, data / scan.parent.name / name / f"{kind}.nii.gz")
    small["data"] |= {"image": "{name}/ct.nii.gz", "label": "{name}/organs.nii.gz"}
    assert prepare_data(Study(write(small)), data, tmp_path) == {"pretraining": 3, "train": 2, "test": 1}


def test_patients_without_all_organs(small: dict[str, Any], write: Write, patients: Path, tmp_path: Path) -> None:
    small["data"]["classes"] = {"1": 1, "99": 2}  # no label map has the value 99
    with pytest.raises(StudyError, match="0 labelled patients for training and 0 for testing"):
        prepare_data(Study(write(small)), patients, tmp_path / "all")
    small["data"]["require_all"] = False
    assert prepare_data(Study(write(small)), patients, tmp_path / "any")["train"] == 2


def test_nobody_trains_and_tests(small: dict[str, Any], write: Write, patients: Path, tmp_path: Path) -> None:
    shutil.copytree(patients, tmp_path / "data")
    shutil.copy(patients / "validation" / "pt_3_ct.nii.gz", tmp_path / "data" / "train")
    with pytest.raises(StudyError, match="1 patients have the same name in train and validation, such as pt_3"):
        prepare_data(Study(write(small)), tmp_path / "data", tmp_path)


def test_one_patient_is_left(small: dict[str, Any], write: Write, patients: Path, tmp_path: Path) -> None:
    small["labels"] = [2]
    small["report"]["primary"]["labels"] = 2
    del small["pretraining"]["commands"]["probe"]
    with pytest.raises(StudyError, match="asks for 2 of 2 labelled patients"):
        prepare_data(Study(write(small)), patients, tmp_path)
