from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mim_components.data import SliceScans, find_scans
from mim_components.data.inputs import scan_items
from mim_components.data.prepare.splits import divide
from mim_components.data.volumes import BadVolumesError, DataError, NoVolumesError, VolumeSource

NAMES = ("Normal", "CP", "NCP")
LAYOUTS = [{"name": "ccccii"}]
SCANS = ["NCP/9/20", "NCP/10/21", "CP/30/40", "CP/31/41", "Normal/50/60", "Normal/51/61"]


@pytest.fixture
def root(write_scan) -> Path:
    for scan in SCANS:
        folder = write_scan(f"set/{scan}", count=3)
    return folder.parents[2]


def write_csv(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(["zip_file,target,label,patient_id,scan_id,n_slice", *rows]) + "\n")
    return path


def find(root: Path, **options):
    return find_scans(root, layouts=LAYOUTS, class_names=NAMES, min_slices=2, **options)


# training


def test_options_reach_the_layout(root):
    assert [case.label for case in find(root).cases] == [1, 1, 2, 2, 0, 0]
    with pytest.raises(NoVolumesError, match="none of 6 scans has 4 slices or more"):
        find_scans(root, layouts=LAYOUTS, class_names=NAMES, min_slices=4)


def test_lists_of_another_work_decide_the_split(root, tmp_path):
    train = write_csv(tmp_path / "train.csv", "a.zip,2,NCP,9,20,3", "b.zip,1,CP,30,40,3", "c.zip,0,Normal,50,60,3")
    valid = write_csv(tmp_path / "valid.csv", "a.zip,2,NCP,10,21,3", "b.zip,1,CP,31,99,3")
    found = find(root, train_csv=train, valid_csv=valid)
    assert {case.name: case.section for case in found.cases} == {
        "NCP_9_20": "training",
        "CP_30_40": "training",
        "Normal_50_60": "training",
        "NCP_10_21": "validation",
    }
    assert found.notes == [
        f"{valid}: 1 scan not in {root}: 31/99",
        "2 scans in neither list left out",
    ]
    division = divide(found, {"rule": "grouped_stratified", "validation_share": 0.4, "seed": 0})
    assert [case.name for case in division.validation] == ["NCP_10_21"]


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ("a.zip,2,NCP,9,98,3", "patients in both lists: 9"),
        ("a.zip,1,NCP,10,21,3", "NCP is class 1 in the list and 2 here; set --class_names"),
        ("a.zip,2,COVID,10,21,3", "label 'COVID' of scan 21 is none of Normal, CP, NCP"),
        ("a.zip,2,NCP,77,88,3", "none of its 1 scans is in .*: 77/88"),
    ],
)
def test_lists_that_do_not_fit(root, tmp_path, row, match):
    train = write_csv(tmp_path / "train.csv", "a.zip,2,NCP,9,20,3")
    with pytest.raises(DataError, match=match):
        find(root, train_csv=train, valid_csv=write_csv(tmp_path / "valid.csv", row))


def test_one_list_alone_or_beside_a_datalist_is_refused(root):
    with pytest.raises(DataError, match="train_csv and valid_csv belong together"):
        find(root, train_csv="train.csv")
    with pytest.raises(DataError, match="replace a datalist"):
        find(root, train_csv="train.csv", valid_csv="valid.csv", datalist="list.json")


# inference


def items(root, hu_window=None, **options):
    return scan_items(root, SliceScans(hu_window), **options)


def sources(*args, **options) -> list[str]:
    return [item["source"] for item in items(*args, **options)]


def test_one_scan_or_all_below_a_folder(root):
    scan = root / "NCP/9/20"
    assert items(scan) == [{"image": VolumeSource(scan, (scan,)), "source": str(scan), "name": "20", "cause": ""}]
    assert sources(root) == [
        str(root / scan) for scan in ("CP/30/40", "CP/31/41", "NCP/9/20", "NCP/10/21", "Normal/50/60", "Normal/51/61")
    ]


def test_bad_scans_are_listed_at_once_or_left_out(root):
    (root / "NCP/9/20/0001.png").write_bytes(b"")
    (root / "CP/30/40/0001.png").write_bytes(b"<html>")
    with pytest.raises(BadVolumesError, match=r"2 of 6 .*\n.*CP/30/40: 1 of 3 slices .*\n.*NCP/9/20: 1 of 3 slices"):
        items(root)
    assert len(items(root, on_bad="exclude")) == 4
    reported = items(root, on_bad="report")
    assert len([item for item in reported if not item["cause"]]) == 4 < len(reported)
    shutil.rmtree(root / "NCP/10")
    with pytest.raises(BadVolumesError, match="1 of 1"):
        items(root / "NCP", on_bad="exclude")


def test_ct_volumes_need_a_window(tmp_path, write_scan):
    voxels = np.random.default_rng(0).integers(-1000, 400, (6, 6, 6)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "ct.nii.gz")
    with pytest.raises(NoVolumesError, match="holds 1 CT volume, expected folders of slices; for CT in HU set --hu_w"):
        items(tmp_path)
    with pytest.raises(BadVolumesError, match="ct.nii.gz: is a file, expected a folder of slices"):
        items(tmp_path / "ct.nii.gz")
    assert sources(tmp_path, hu_window=(-1000, 0)) == [str(tmp_path / "ct.nii.gz")]
    folder = write_scan("scan")
    assert sources(tmp_path, hu_window=(-1000, 0)) == [str(tmp_path / "ct.nii.gz"), str(folder)]
    assert sources(folder, hu_window=(-1000, 0)) == [str(folder)]


def test_nothing_to_work_on(tmp_path):
    with pytest.raises(DataError, match="Give the scans: --dataset_dir"):
        items(None)
    with pytest.raises(BadVolumesError, match="cannot be read as a folder of slices"):
        items(tmp_path / "absent")
    with pytest.raises(NoVolumesError, match=r"no slices \(.png, .jpg\) found in 0 files"):
        items(tmp_path)
    with pytest.raises(DataError, match="on_bad must be one of report, stop, exclude, got 'skip'"):
        items(tmp_path, on_bad="skip")


def test_notes_about_scans_are_logged(root, caplog):
    (root / "NCP/9/20/0009.png").write_bytes((root / "NCP/9/20/0001.png").read_bytes())
    items(root / "NCP/9")
    assert "1 slice identical to another slice of the scan" in caplog.text
