from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from studies.definition import StudyError
from studies.openkbp_data import (
    NOT_IN_STUDY,
    ORGANS,
    convert_part,
    convert_patient,
    main,
    read_ct,
    read_organs,
    read_spacing,
)

SMALL = (2, 3, 4)  # voxels along P, L, I: index = 12 p + 4 l + i
FIVE = tuple(organ for organ in ORGANS if organ not in ("Esophagus", "Larynx"))


def write_patient(folder: Path, organs: tuple[str, ...] = FIVE, highest: float = 1031.0) -> Path:
    """A patient with one voxel of CT, at p = 1, l = 2, i = 3, and one voxel per organ from there on."""
    index = 1 * 128**2 + 2 * 128 + 3  # 16643
    folder.mkdir(parents=True)
    (folder / "ct.csv").write_text(f",data\n{index},{highest}\n")
    (folder / "voxel_dimensions.csv").write_text("4.000000000000000000e+00\n" * 2 + "2.500000000000000000e+00\n")
    for number, organ in enumerate(organs):
        (folder / f"{organ}.csv").write_text(f",data\n{index + number},\n")
    return folder


@pytest.fixture
def patient(tmp_path: Path) -> Path:
    return write_patient(tmp_path / "source" / "pt_1")


def test_axes_and_units_of_a_scan(tmp_path: Path) -> None:
    path = tmp_path / "ct.csv"
    path.write_text(",data\n1,18.0\n20,1031\n23,4071.0\n")
    ct = read_ct(path, SMALL)
    assert ct.shape == (3, 2, 4) and ct.dtype == np.int16  # L, P, S
    assert ct[0, 0, 2] == -982  # 1: p 0, l 0, i 1, which is s 2; 18 - 1000
    assert ct[2, 1, 3] == 31  # 20 = 12 + 8: p 1, l 2, i 0
    assert ct[2, 1, 0] == 3071  # 23 = 12 + 8 + 3: i 3
    assert np.count_nonzero(ct == -1000) == 24 - 3


def test_the_later_organ_gets_the_overlap(tmp_path: Path) -> None:
    for organ, indices in {"Mandible": (0, 1), "Brainstem": (1, 2), "RightParotid": (2, 3)}.items():
        (tmp_path / f"{organ}.csv").write_text(",data\n" + "".join(f"{index},\n" for index in indices))
    organs = read_organs(tmp_path, SMALL)
    assert organs.shape == (3, 2, 4) and organs.dtype == np.uint8
    assert organs[0, 0].tolist() == [3, 3, 7, 7]  # i 3 to i 0
    assert np.count_nonzero(organs) == 4


def test_files_of_a_patient(patient: Path, tmp_path: Path) -> None:
    assert convert_patient(patient, tmp_path / "out") == {1, 2, 3, 4, 7}
    files = (tmp_path / "out" / f"pt_1_{kind}.nii.gz" for kind in ("ct", "organs"))
    ct, organs = (nib.Nifti1Image.from_filename(file) for file in files)
    assert (ct.get_data_dtype(), organs.get_data_dtype()) == (np.int16, np.uint8)
    assert ct.shape == organs.shape == (128, 128, 128)
    # 127 / 2 = 63.5 voxels from the centre to that of the first: 63.5 * 4 = 254 and 63.5 * 2.5 = 158.75 mm
    affine = [[-4, 0, 0, 254], [0, -4, 0, 254], [0, 0, 2.5, -158.75], [0, 0, 0, 1]]
    assert ct.affine.tolist() == organs.affine.tolist() == affine
    assert nib.aff2axcodes(ct.affine) == ("L", "P", "S") and ct.header.get_xyzt_units()[0] == "mm"
    values = np.asarray(ct.dataobj)
    assert values[2, 1, 124] == 31 and np.count_nonzero(values != -1000) == 1
    assert np.asarray(organs.dataobj)[2, 1, 120:126].tolist() == [7, 4, 3, 2, 1, 0]


def test_complete_files_stay_and_damaged_ones_do_not(patient: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert_patient(patient, out)
    files = sorted(out.iterdir())
    assert [file.name for file in files] == ["pt_1_ct.nii.gz", "pt_1_organs.nii.gz"]  # nothing temporary
    content, times = [file.read_bytes() for file in files], [file.stat().st_mtime_ns for file in files]
    assert convert_patient(patient, out) == {1, 2, 3, 4, 7}
    assert [file.stat().st_mtime_ns for file in files] == times
    for file, damaged in zip(files, (content[0][:100], content[0]), strict=True):  # cut off; a CT in place of organs
        file.write_bytes(damaged)
        convert_patient(patient, out)
        assert [each.read_bytes() for each in files] == content


def test_an_interrupted_write_leaves_no_part_of_a_file(
    patient: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, calls = tmp_path / "out", []

    def fail(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 2:  # the organs and their folder are on the disk
            raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match=r"cannot write .*pt_1_ct\.nii\.gz: Input/output error"):
            convert_patient(patient, out)
    assert [file.name for file in out.iterdir()] == ["pt_1_organs.nii.gz"]
    convert_patient(patient, out)
    assert len(list(out.iterdir())) == 2


def test_nothing_is_written_of_an_invalid_patient(patient: Path, tmp_path: Path) -> None:
    (patient / "voxel_dimensions.csv").unlink()
    with pytest.raises(StudyError, match=r"voxel_dimensions\.csv: cannot be read"):
        convert_patient(patient, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "provided-data", tmp_path / "out"
    write_patient(source / "train-pats" / "pt_1")
    write_patient(source / "train-pats" / "pt_2", organs=("Brainstem",))
    write_patient(source / "train-pats" / "pt_3", highest=4072.0)  # 3072 HU
    (source / "train-pats" / "pt_8").mkdir()  # not in the study, so never read
    write_patient(source / "validation-pats" / "pt_201")
    assert main([str(source), str(out)]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "train: 2 patients, 1 with all 5 organs of the study; 1 left out for more than 3071 HU",
        "validation: 1 patient, 1 with all 5 organs of the study; 0 left out for more than 3071 HU",
    ]
    assert "has {'pretraining': 2, 'train': 1, 'test': 1}; the study expects {'pretraining': 148" in captured.err
    written = sorted(path.relative_to(out).as_posix() for path in out.rglob("*_ct.nii.gz"))
    assert written == ["train/pt_1_ct.nii.gz", "train/pt_2_ct.nii.gz", "validation/pt_201_ct.nii.gz"]
    assert main([str(source / "train-pats"), str(out)]) == 2
    assert "has no folder pt_N; expected provided-data of open-kbp, " in capsys.readouterr().err


def test_numbers_of_patients() -> None:
    # without the 22 and 3 above 3071 HU, these are the study's 148 and 30
    left_out = {part: {int(number) for number in numbers.split()} for part, numbers in NOT_IN_STUDY.items()}
    assert 200 - len(left_out["train"]) - 22 == 148 and left_out["train"] <= set(range(1, 201))
    assert 40 - len(left_out["validation"]) - 3 == 30 and left_out["validation"] <= set(range(201, 241))


def test_another_folder(tmp_path: Path) -> None:
    for name in ("provided-data", "LICENSE"):
        (tmp_path / name).mkdir()
    with pytest.raises(StudyError, match=r"train-pats: has no folder pt_N; .* has LICENSE, provided-data\."):
        convert_part(tmp_path, tmp_path / "out", "train")
    with pytest.raises(StudyError, match=r"absent has nothing\."):
        convert_part(tmp_path / "absent", tmp_path / "out", "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"ct\.csv: cannot be read \(No such file or directory\)"),
        ("", r"ct\.csv: starts with nothing, 0 lines; expected ',data'"),
        (",data\n", r"starts with ',data', 1 line; expected ',data', then voxels"),
        ("version https://git-lfs\n", r"starts with 'version https://git-lfs', 1 line"),
        (",data\n0,1.0\n1,abc\n", r"ct\.csv: line 3 is '1,abc'; expected INDEX,VALUE in numbers"),
        (",data\n0,1.0\n1,\n", r"line 3 is '1,'; expected INDEX,VALUE"),
        (",data\n0,1.0\n1\n", r"line 3 is '1'; expected INDEX,VALUE"),
        (",data\n0.5,1.0\n", r"line 2 is '0\.5,1\.0'"),
        (",data\n0,1.0\n24,1.0\n", r"line 3 has index 24, outside the grid of 24 voxels"),
        (",data\n-1,1.0\n", r"line 2 has index -1, outside the grid"),
        (",data\n0,1.0\n1,1.5\n", r"line 3 has value 1\.5, not a whole number from 0 to 32767"),
        (",data\n0,-5\n", r"line 2 has value -5, not a whole number"),
        (",data\n0,40000\n", r"line 2 has value 40000, not a whole number"),
        (",data\n0,nan\n", r"line 2 has value nan, not a whole number"),
    ],
)
def test_invalid_scan(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "ct.csv").write_text(text)
    with pytest.raises(StudyError, match=message):
        read_ct(tmp_path / "ct.csv", SMALL)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (",data\n0,\nx,\n", r"Larynx\.csv: line 3 is 'x,'; expected INDEX, in numbers"),
        (",data\n24,\n", r"Larynx\.csv: line 2 has index 24, outside the grid of 24 voxels"),
    ],
)
def test_invalid_organ(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "Larynx.csv").write_text(text)
    with pytest.raises(StudyError, match=message):
        read_organs(tmp_path, SMALL)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "nothing"),
        ("4\n4\n", "4, 4"),
        ("4\n4\nx\n", "4, 4, x"),
        ("4\n5\n2.5\n", "4, 5, 2.5"),
        ("4\n4\n0\n", "4, 4, 0"),
        ("inf\ninf\n1\n", "inf, inf, 1"),
    ],
)
def test_invalid_spacing(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "voxel_dimensions.csv"
    path.write_text(text)
    with pytest.raises(StudyError, match=f"voxel_dimensions.csv: has {found}; expected three lengths in mm, the first"):
        read_spacing(path)
