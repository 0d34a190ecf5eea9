from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from mim_components.data import CheckedLoadImaged, SliceFolderChecker, SliceScans, scan_items
from mim_components.data.cases import Case
from mim_components.data.read.slices import stack_slices
from mim_components.data.volumes import BadVolumesError, VolumeError
from mim_components.transforms import UniformSlices, UniformSlicesd

NAMES = ("Normal", "CP", "NCP")


@pytest.fixture
def ct(tmp_path: Path) -> Path:
    """CT in LPS whose RAS voxel (x, y, z) holds 10 x - 100 y - 200 z HU."""
    x, y, z = np.meshgrid(range(5), range(6), range(4), indexing="ij")
    ras = (10 * x - 100 * y - 200 * z).astype(np.int16)
    path = tmp_path / "ct" / "scan.nii.gz"
    path.parent.mkdir()
    nib.save(nib.Nifti1Image(ras[::-1, ::-1], np.diag([-1.0, -1.0, 2.0, 1.0])), path)
    return path


def read_scan(path, hu_window=None):
    return SliceScans(hu_window).read(path)[0].numpy()


def case_of(*paths: Path, label: int | None = 0) -> Case:
    return Case("scan", paths, label)


# reading


def test_axes_are_those_of_ras(tmp_path):
    """The right of a picture is the patient's left, and its top the front; slices keep their order."""
    folder = tmp_path / "scan"
    folder.mkdir()
    for number in range(3):
        pixels = np.zeros((4, 6), np.uint8)  # rows, columns
        pixels[0, 1] = 10 * (number + 1)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    volume = read_scan(folder)
    assert volume.shape == (6, 4, 3) and volume.dtype == np.uint8
    # column 1 of 6 is the 5th from the patient's left, row 0 of 4 the front
    assert {tuple(at): int(volume[tuple(at)]) for at in np.argwhere(volume)} == {
        (4, 3, 0): 10,
        (4, 3, 1): 20,
        (4, 3, 2): 30,
    }


def test_smaller_slices_are_padded_around_their_centre():
    volume = stack_slices([np.ones((4, 6), np.uint8), np.full((2, 2), 7, np.uint8)])
    assert volume.shape == (6, 4, 2)
    assert np.argwhere(volume[..., 1]).tolist() == [[2, 1], [2, 2], [3, 1], [3, 2]]
    assert set(volume[2:4, 1:3, 1].flatten()) == {7}


def test_ct_is_read_through_a_window(ct):
    volume = read_scan(ct, (-1000.0, 20.0))
    assert volume.shape == (5, 6, 4) and volume.dtype == np.uint8
    assert volume[2, 0, 0] == 255  # 20 HU
    assert volume[4, 0, 0] == 255  # 40 HU
    assert volume[0, 5, 3] == 0  # -1100 HU
    assert volume[0, 0, 1] == 200  # -200 HU is 800 of 1020 HU above black
    np.testing.assert_array_equal(read_scan(ct, (-1000.0, 20.0)), volume)


def test_file_without_a_window_is_refused_with_the_option(ct):
    with pytest.raises(VolumeError, match=r"is a file, expected a folder of slices; for CT in HU set --hu_window"):
        read_scan(ct)


def test_slices_stay_slices_where_a_window_is_given(write_scan):
    folder = write_scan("scan")
    np.testing.assert_array_equal(read_scan(folder, (-1000.0, 0.0)), read_scan(folder))


def test_load_scand_names_scan_and_slice(write_scan):
    folder = write_scan("scan", count=3)
    assert CheckedLoadImaged("image", SliceScans())({"image": str(folder), "label": 1})["image"].shape == (1, 20, 24, 3)
    (folder / "0001.png").write_bytes(b"")
    with pytest.raises(BadVolumesError, match=r"scan: 0001\.png: the file is empty"):
        CheckedLoadImaged("image", SliceScans())({"image": str(folder)})


# slices


def numbers(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.uint8).view(1, 1, 1, count)


@pytest.mark.parametrize(
    ("have", "want", "expected"),
    [
        (4, 4, [0, 1, 2, 3]),
        (5, 3, [0, 2, 4]),
        (6, 3, [0, 3, 5]),  # 2.5 is rounded up
        (100, 3, [0, 50, 99]),  # 49.5
    ],
)
def test_slices_at_equal_distances(have, want, expected):
    assert UniformSlices(want)(numbers(have)).flatten().tolist() == expected


def test_no_slice_is_taken_twice_where_there_are_enough():
    for have in range(32, 120):
        taken = UniformSlices(32)(numbers(have)).flatten().tolist()
        assert len(set(taken)) == 32 and taken == sorted(taken)
        assert (taken[0], taken[-1]) == (0, have - 1)


def test_fewer_slices_are_interpolated():
    volume = torch.tensor([0, 100, 200], dtype=torch.uint8).view(1, 1, 1, 3).expand(1, 2, 3, 3)
    sampled = UniformSlicesd("image", 5)({"image": volume})["image"]
    assert sampled.dtype == torch.uint8 and sampled.shape == (1, 2, 3, 5)
    assert sampled[0, 1, 2].tolist() == [0, 50, 100, 150, 200]


def test_a_single_slice_is_repeated():
    assert UniformSlices(3)(torch.full((1, 2, 2, 1), 9, dtype=torch.uint8)).unique().tolist() == [9]


def test_one_slice_is_no_volume():
    with pytest.raises(ValueError, match="num_slices must be at least 2, got 1"):
        UniformSlices(1)


# checks


def test_fit_scan(write_scan: Callable[..., Path]):
    facts = SliceFolderChecker(NAMES)(case_of(write_scan("scan"), label=2))
    assert facts.notes == ()
    assert facts == SliceFolderChecker(NAMES)(case_of(write_scan("scan"), label=0))
    assert facts.digest != SliceFolderChecker(NAMES)(case_of(write_scan("scan", level=1))).digest


def test_every_bad_slice_counts_and_the_first_are_named(write_scan: Callable[..., Path]):
    folder = write_scan("scan", count=8)
    (folder / "0001.png").write_bytes(b"")
    (folder / "0002.png").write_bytes(b"<html>")
    whole = (folder / "0003.png").read_bytes()
    (folder / "0003.png").write_bytes(whole[: len(whole) // 2])
    (folder / "0005.png").unlink()
    (folder / "0005.png").mkdir()
    with pytest.raises(VolumeError) as error:
        SliceFolderChecker()(case_of(folder))
    assert str(error.value) == (
        "4 of 8 slices cannot be used: 0001.png: the file is empty (0 bytes); 0002.png: not a picture: it begins with "
        "b'<html>'; 0003.png: damaged: Truncated File Read and 1 more"
    )


def test_odd_but_usable_scans_get_notes(write_scan: Callable[..., Path]):
    folder = write_scan("scan", count=3)
    write_scan("scan", count=1, suffix=".jpg")  # 0000.jpg beside 0000.png
    (folder / "copy.png").write_bytes((folder / "0002.png").read_bytes())
    Image.fromarray(np.full((10, 12), 9, np.uint8)).save(folder / "0007.png")
    assert SliceFolderChecker()(case_of(folder)).notes == (
        "slices of 2 sizes (rows x columns): 5 of 24 x 20, 1 of 10 x 12; the smaller are padded around their centre",
        "1 slice without a number in the name placed last",
        "1 slice number used more than once (0): ordered by name",
        "1 slice identical to another slice of the scan",
    )


def test_unfit_scans(write_scan: Callable[..., Path], tmp_path: Path, ct: Path):
    check = SliceFolderChecker(NAMES)
    with pytest.raises(VolumeError, match="holds a single slice, expected a volume"):
        check(case_of(write_scan("single", count=1)))
    black = tmp_path / "black"
    black.mkdir()
    for number in range(3):
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(black / f"{number}.png")
    with pytest.raises(VolumeError, match="every pixel of all 3 slices is 0"):
        check(case_of(black))
    with pytest.raises(VolumeError, match="the label is 3, expected one of 0 Normal, 1 CP, 2 NCP"):
        check(case_of(write_scan("scan"), label=3))
    with pytest.raises(VolumeError, match="2 images, expected one folder of slices"):
        check(case_of(black, black))
    with pytest.raises(VolumeError, match="is a file, expected a folder of slices; for CT in HU set --hu_window"):
        check(case_of(ct))
    with pytest.raises(VolumeError, match="cannot be read as a folder of slices"):
        check(case_of(tmp_path / "absent"))


def test_ct_is_checked_where_a_window_is_given(ct: Path):
    check = SliceFolderChecker(NAMES, [-1000.0, 0.0])
    assert len(check(case_of(ct)).digest) == 64
    content = ct.read_bytes()
    ct.write_bytes(content[:-8])
    with pytest.raises(VolumeError, match="truncated: the compressed data end before their end marker"):
        check(case_of(ct))


def test_datalist_says_what_the_labels_mean():
    assert SliceFolderChecker(NAMES).datalist_facts()["labels"] == {"0": "Normal", "1": "CP", "2": "NCP"}


@pytest.mark.parametrize("hu_window", [None, (-1000, 400)])
def test_folder_that_cannot_be_read_is_a_bad_scan(tmp_path, lock, hu_window):
    for name in ("0", "1"):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.linear_gradient("L").save(tmp_path / name / f"{number}.png")
    lock("1")
    items = scan_items(tmp_path, SliceScans(hu_window), on_bad="report")
    assert [item["name"] for item in items] == ["0", "1"]
    assert items[0]["cause"] == "" and "Permission denied" in items[1]["cause"]
