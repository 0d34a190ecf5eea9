from __future__ import annotations

from pathlib import Path

import pytest

from mim_components.data.find.layouts.base import Folder
from mim_components.data.find.layouts.ccccii import CcCcii
from mim_components.data.volumes import DataError, NoVolumesError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Scans of 2 to 4 slices, which are empty files, since the layout opens no pictures."""
    for folder, count in {
        "NCP/NCP-1/9/20": 3,
        "NCP/NCP-1/10/21": 4,
        "NCP/COVID19-2/11/22": 3,
        "CP/30/40": 3,
        "CP/30/41": 2,
        "Normal/50/60": 3,
    }.items():
        (tmp_path / folder).mkdir(parents=True)
        for number in range(count):
            (tmp_path / folder / f"{number:04d}.{'jpg' if folder.startswith('CP') else 'png'}").touch()
    return tmp_path


def test_scans_labels_and_patients(root):
    found = CcCcii(min_slices=3).find(Folder(root))
    assert {case.name: (case.label, case.group) for case in found.cases} == {
        "NCP_9_20": (2, "9"),
        "NCP_10_21": (2, "10"),
        "NCP_11_22": (2, "11"),
        "CP_30_40": (1, "30"),
        "Normal_50_60": (0, "50"),
    }
    assert found.cases[0].image == (root / "CP/30/40",)
    assert found.notes == ["1 scan with fewer than 3 slices left out"]


def test_label_is_the_position_in_the_given_order(root):
    cases = CcCcii(class_names=("CP", "NCP", "Normal"), min_slices=2).find(Folder(root)).cases
    assert {case.name: case.label for case in cases if case.group in ("30", "50")} == {
        "CP_30_40": 0,
        "CP_30_41": 0,
        "Normal_50_60": 2,
    }


def test_zips_that_unpack_without_a_folder_of_the_class(tmp_path):
    for folder in ("COVID19-31/1/2", "CP-7/3/4", "Normal-27/5/6", "other/7/8"):
        (tmp_path / "up" / folder).mkdir(parents=True)
        (tmp_path / "up" / folder / "1.png").touch()
    found = CcCcii(min_slices=1).find(Folder(tmp_path))
    assert [case.name for case in found.cases] == ["NCP_1_2", "CP_3_4", "Normal_5_6"]
    assert found.notes[0].startswith("up/other/7/8: 1 picture of no scan")


def test_recognises_only_slices_below_a_class(root, tmp_path):
    assert CcCcii().recognises(Folder(root))
    other = tmp_path / "other"
    (other / "CP").mkdir(parents=True)
    (other / "CP" / "1.png").touch()
    (other / "imagesTr").mkdir()
    (other / "imagesTr" / "CP_1.nii.gz").touch()
    assert not CcCcii().recognises(Folder(other))


def test_same_scan_in_two_folders_counts_once(root):
    (root / "NCP/9/20").mkdir(parents=True)
    (root / "NCP/9/20/0000.png").touch()
    for number in range(2):
        (root / f"NCP/9/20/{number}.jpg").touch()
    found = CcCcii(min_slices=3).find(Folder(root))
    assert len(found.cases) == 5
    assert "NCP/NCP-1/9/20: a scan of this class, patient and name lies elsewhere too; left out" in found.notes


def test_patient_of_two_classes_is_named(root):
    (root / "Normal/30/70").mkdir(parents=True)
    for number in range(3):
        (root / f"Normal/30/70/{number}.png").touch()
    assert "patient 30 has scans of Normal, CP; they stay together" in CcCcii(min_slices=3).find(Folder(root)).notes


def test_no_scan_with_enough_slices(root):
    with pytest.raises(NoVolumesError, match="none of 6 scans has 16 slices or more"):
        CcCcii().find(Folder(root))


def test_disk_is_compared_with_the_datasets_own_list(root):
    lines = ["zip_file,label,patient_id,scan_id,n_slice", "NCP-1.zip,NCP,9,20,3", "NCP-1.zip,NCP,10,21,7"]
    lines += ["CP-1.zip,CP,30,40,3", "CP-1.zip,CP,30,41,2", "NCP-13.zip,NCP,99,98,80"]
    (root / "unzip_filenames.csv").write_text("\n".join(lines) + "\n")
    assert CcCcii(min_slices=3).find(Folder(root)).notes[1:] == [
        "unzip_filenames.csv: 1 scan of the list not on the disk: 99/98",
        "unzip_filenames.csv: 2 scans on the disk not in the list: 11/22, 50/60",
        "unzip_filenames.csv: 1 scan with a different number of slices from the list: 10/21 (4 instead of 7)",
    ]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("patient_id,scan_id\n1,2\n", r"no column label; columns: \['patient_id', 'scan_id'\]"),
        ("label,patient_id,scan_id\nCP,1,2\nCP,,2\n", "line 3: patient_id is empty"),
        ("label,patient_id,scan_id,n_slice\nCP,1,2,many\n", "line 2: n_slice is 'many', expected a whole number"),
        ("", "no column label, patient_id, scan_id"),
    ],
)
def test_damaged_list_is_refused(root, text, match):
    (root / "unzip_filenames.csv").write_text(text)
    with pytest.raises(DataError, match=match):
        CcCcii(min_slices=3).find(Folder(root))


def test_list_that_is_no_text(root):
    (root / "unzip_filenames.csv").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(DataError, match="unzip_filenames.csv: the list cannot be read"):
        CcCcii(min_slices=3).find(Folder(root))
