"""Invalid lists of scans: every fault is named by list, section, item and key, before anything is read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mim_components.data import DataError, find_cases, find_sources
from tests.faults.damage import affine_of, write
from tests.faults.dicom_series import voxels_of
from tests.faults.runs import PRETRAIN, SEGMENTATION, Bundle, Run, finish, losses, start

pytestmark = pytest.mark.slow

Data = dict[str, str]


def write_list(path: Path, **sections: Any) -> Path:
    """Write a list with these sections."""
    path.write_text(json.dumps(sections))
    return path


def refuse(bundle: Bundle, data: Data, output: Path, datalist: Path) -> Run:
    """A run that must stop before its first step."""
    run = start(bundle, output, **data, datalist=datalist)
    assert run.wait() == 1, run.text[-3000:]
    assert losses(output) == [] and not list(output.rglob("*.pt"))
    assert str(datalist) in run.error
    return run


# items: id, fault, item, expected message
SCAN_ITEMS: list[tuple[str, str, Any, str]] = [
    ("D1", "item without its key", {"img": "scan_0.nii.gz"}, "has no key 'image'; keys: ['img']"),
    ("D1b", "null", {"image": None}, "key 'image' is null, expected a path"),
    ("D1c", "number", {"image": 3}, "key 'image' is 3, expected a path"),
    ("D1d", "string item", "scan_0.nii.gz", "is \"scan_0.nii.gz\", expected an object with the key 'image'"),
    ("D1e", "several paths", {"image": ["scan_0.nii.gz", "scan_1.nii.gz"]}, "expected a path"),
    ("D1f", "empty path", {"image": " "}, "key 'image' is \" \", expected a path"),
    ("D1g", "path with a zero byte", {"image": "a\0b.nii.gz"}, "null"),
]
CASE_ITEMS: list[tuple[str, str, Any, str]] = [
    ("D1h", "case without a label", {"image": "a.nii.gz"}, "has no key 'label'; keys: ['image']"),
    ("D1i", "label true", {"image": "b.nii.gz", "label": True}, "key 'label' is true, expected a path"),
    ("D1j", "label of 1.5", {"image": "c.nii.gz", "label": 1.5}, "key 'label' is 1.5, expected a path"),
    ("D1k", "fold that is a text", {"image": "d.nii.gz", "label": "d.nii.gz", "fold": "x"},
     "key 'fold' is \"x\", expected a whole number from 0"),
    ("D1l", "name that leads elsewhere", {"image": "e.nii.gz", "label": "e.nii.gz", "name": "../../x"},
     "expected a text without '/'"),
    ("D1m", "no image at all", {"image": [], "label": "f.nii.gz"}, "key 'image' is [], expected a path"),
]  # fmt: skip
# paths out of the folder: id, fault, path below the folder of the test
OUTSIDE = [("D5", "`..`", "../pipe.nii.gz"), ("D5b", "absolute path", "{folder}/pipe.nii.gz"),
           ("D5c", "symlink out", "link.nii.gz")]  # fmt: skip


def rows(table: Sequence[tuple[str, str, Any, str]], what: str) -> list[Any]:
    """Parameters: index of the item, and the expected message."""
    return [
        pytest.param(
            number,
            message,
            id=id_,
            marks=pytest.mark.fault(
                id_, fault=f"{fault} ({what})", injection=f"item {json.dumps(item)}",
                expected=f"before step 1, item {number} and: {message}",
            ),
        )
        for number, (id_, fault, item, message) in enumerate(table)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def refused_scans(scans: Data, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("lists")
    datalist = write_list(folder / "list.json", training=[item for _, _, item, _ in SCAN_ITEMS])
    return refuse(PRETRAIN, scans, folder / "run", datalist)


@pytest.fixture(scope="module")
def refused_cases(labelled: Data, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("lists")
    datalist = write_list(folder / "list.json", training=[item for _, _, item, _ in CASE_ITEMS])
    return refuse(SEGMENTATION, labelled, folder / "run", datalist)


@pytest.mark.parametrize(("number", "message"), rows(SCAN_ITEMS, "pre-training"))
def test_item_of_a_scan(number: int, message: str, refused_scans: Run) -> None:
    (line,) = [line for line in refused_scans.error.splitlines() if line.startswith(f"  training item {number}: ")]
    assert message in line


@pytest.mark.parametrize(("number", "message"), rows(CASE_ITEMS, "labelled"))
def test_item_of_a_case(number: int, message: str, refused_cases: Run) -> None:
    (line,) = [line for line in refused_cases.error.splitlines() if line.startswith(f"  training item {number}: ")]
    assert message in line


LISTS = [
    pytest.param(
        content,
        message,
        id=id_,
        marks=pytest.mark.fault(
            id_, fault=fault, injection="a list of one line", expected=f"list named, and: {message}"
        ),
    )
    for id_, fault, content, message in [
        ("D2", "empty list", '{"training": []}', "section 'training' is empty"),
        ("D2b", "no section", '{"train": [{"image": "a.nii"}]}', "there is no section 'training'; sections: ['train']"),
        ("D2c", "top-level list", '[{"image": "a.nii"}]', "the list is a list at its top level"),
        ("D2d", "section that is no list", '{"training": {"image": "a.nii"}}', "is a dict, expected a list of items"),
        ("D2e", "cut short", '{"training": [{"image": "a', "is not readable JSON"),
        ("D2f", "nested beyond reason", "[" * 100000, "is not readable JSON"),
        ("D2g", "empty file", "", "is not readable JSON"),
    ]
]


@pytest.mark.parametrize(("content", "message"), LISTS)
def test_list(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(content)
    for find in (lambda: find_sources(datalist=path), lambda: find_cases(None, path)):
        with pytest.raises(DataError) as raised:
            find()
        assert str(path) in str(raised.value) and message in str(raised.value)


@pytest.mark.fault("D2h", fault="empty list, in a run", injection="\"training\": []",
                   expected="exit code 1, the last line names list and section")  # fmt: skip
def test_empty_list_in_a_run(labelled: Data, tmp_path: Path) -> None:
    run = refuse(SEGMENTATION, labelled, tmp_path / "run", write_list(tmp_path / "list.json", training=[]))
    assert run.error.startswith("ERROR: ") and "section 'training' is empty" in run.error


# duplicates


@pytest.mark.fault("D3", fault="duplicates in pre-training", injection="a scan listed twice, and its copy in float32",
                   expected="reported by path and by content, in the log and in data_notes.txt")  # fmt: skip
def test_duplicates_are_reported(scans: Data, tmp_path: Path) -> None:
    first = Path(scans["dataset_dir"]) / "scan_0.nii.gz"
    shutil.copy(first, tmp_path / "one.nii.gz")
    write(tmp_path / "other.nii", voxels_of(first).astype("float32"), affine_of(first))
    names = ["one.nii.gz", "one.nii.gz", "other.nii"]
    datalist = write_list(tmp_path / "list.json", training=[{"image": name} for name in names])
    options = {**scans, "dataset_dir": tmp_path, "datalist": datalist, "max_steps": 1, "warmup_steps": 1}
    run = finish(start(PRETRAIN, tmp_path / "run", **options))
    notes = (run.output / "data_notes.txt").read_text()
    assert "one.nii.gz is listed more than once" in notes
    assert f"{tmp_path / 'other.nii'}: the same voxels as {tmp_path / 'one.nii.gz'}" in notes
    assert "the same voxels as" in run.text


@pytest.mark.fault("D3b", fault="a volume in training and validation", injection="a copy under another name",
                   expected="before step 1, both cases named")  # fmt: skip
def test_copy_of_a_validation_case_is_refused(labelled: Data, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(labelled["dataset_dir"], root)
    names = sorted(path.name for path in (root / "imagesTr").glob("spleen_*.nii.gz"))
    copy = f"copy_of_{names[0]}"
    for folder in ("imagesTr", "labelsTr"):
        shutil.copy(root / folder / names[0], root / folder / copy)
    items = [{"image": f"imagesTr/{name}", "label": f"labelsTr/{name}"} for name in (*names, copy)]
    datalist = write_list(tmp_path / "list.json", training=items[1:], validation=items[:1])
    options = {**labelled, "dataset_dir": str(root), "cache_dir": str(tmp_path / "cache")}
    run = start(SEGMENTATION, tmp_path / "run", **options, datalist=datalist)
    assert run.wait() == 1
    line = next(line for line in run.error.splitlines() if copy in line)
    assert f"the same image as validation case {names[0].split('.')[0]}" in line
    assert losses(run.output) == []


@pytest.mark.fault("D3c", fault="a case listed twice", injection="an item repeated",
                   expected="both items named")  # fmt: skip
def test_case_listed_twice(labelled: Data, tmp_path: Path) -> None:
    item = {"image": "imagesTr/spleen_2.nii.gz", "label": "labelsTr/spleen_2.nii.gz"}
    path = write_list(tmp_path / "list.json", training=[item, {**item, "name": "x"}])
    with pytest.raises(DataError, match=r"training item 1: image .* is also that of training item 0"):
        find_cases(labelled["dataset_dir"], path)


# paths that lead out


@pytest.mark.parametrize("bundle", [PRETRAIN, SEGMENTATION], ids=["scans", "cases"])
@pytest.mark.fault("D5d", fault="such paths, in a run", injection="they lead to a pipe, which would block who opens it",
                   expected="refused and not opened, every item named")  # fmt: skip
def test_paths_that_lead_out(bundle: Bundle, scans: Data, labelled: Data, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    os.mkfifo(tmp_path / "pipe.nii.gz")
    (tmp_path / "data" / "link.nii.gz").symlink_to(tmp_path / "pipe.nii.gz")
    paths = [path.format(folder=tmp_path) for _, _, path in OUTSIDE]
    items = [{"image": path, "label": path} for path in paths]
    datalist = write_list(tmp_path / "list.json", training=items)
    data = {**(scans if bundle is PRETRAIN else labelled), "dataset_dir": str(tmp_path / "data")}
    run = refuse(bundle, data, tmp_path / "run", datalist)
    for path in paths:
        assert f"key 'image': {path!r} leads out of {tmp_path / 'data'}" in run.error


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=id_, marks=pytest.mark.fault(id_, fault=fault, injection=path, expected="refused"))
        for id_, fault, path in OUTSIDE
    ],
)
def test_path_that_leads_out(path: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    os.mkfifo(tmp_path / "pipe.nii.gz")
    (tmp_path / "data" / "link.nii.gz").symlink_to(tmp_path / "pipe.nii.gz")
    item = {"image": path.format(folder=tmp_path), "label": path.format(folder=tmp_path)}
    datalist = write_list(tmp_path / "list.json", training=[item])
    for find in (lambda: find_sources(tmp_path / "data", datalist), lambda: find_cases(tmp_path / "data", datalist)):
        with pytest.raises(DataError, match="leads out of"):
            find()
