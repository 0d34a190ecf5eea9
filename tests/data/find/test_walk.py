import logging
import os

import pytest

from mim_components.data import NoVolumesError, VolumeError
from mim_components.data.find.walk import find_volumes, walk
from mim_components.data.read.volume import inspect_source


def names(found):
    return [source.name for source in found]


def test_every_format_is_found_at_any_depth_and_in_a_fixed_order(tmp_path):
    for name in ("b.nii", "a.nii.gz", "x/c.mha", "x/d.MHD", "x/y/e.nrrd", "x/y/f.nhdr", "x/d.raw", "x/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert names(find_volumes(tmp_path)) == ["a", "b", "c", "d", "e", "f"]


def test_hidden_files_are_skipped_and_counted(tmp_path, caplog):
    for name in ("a.nii", "._a.nii", ".cache/b.nii", "__MACOSX/c.nii"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with caplog.at_level(logging.DEBUG):
        assert names(find_volumes(tmp_path)) == ["a"]
    assert "1 file, 3 hidden skipped" in caplog.text


@pytest.mark.parametrize("name", ["scan 1.nii", "Größe.nii", 'it\'s "q".nii', "two\nlines.nii"])
def test_odd_names_are_found(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    assert [source.path.name for source in find_volumes(tmp_path)] == [name]


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(NoVolumesError, match="nowhere: there is no such folder"):
        find_volumes(tmp_path / "nowhere")


def test_file_instead_of_folder_is_named(tmp_path):
    (tmp_path / "list.json").write_text("{}")
    with pytest.raises(NoVolumesError, match="list.json: is a file, expected a folder"):
        find_volumes(tmp_path / "list.json")


def test_empty_folder_is_said_to_be_empty(tmp_path):
    with pytest.raises(NoVolumesError, match="no CT volume found in 0 files: the folder is empty"):
        find_volumes(tmp_path)


def test_folder_without_volumes_says_what_it_saw(tmp_path):
    for name in [f"{i}.png" for i in range(10)] + ["a.txt", "b.txt"]:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(NoVolumesError, match=r"no CT volume found in 12 files: 10 \.png, 2 \.txt; expected \.nii"):
        find_volumes(tmp_path)


def test_folder_with_the_name_of_a_volume_is_listed_only_when_no_volume_lies_in_it(tmp_path):
    (tmp_path / "empty.nii").mkdir()
    (tmp_path / "full.nii").mkdir()
    (tmp_path / "full.nii" / "a.nii").write_bytes(b"x")
    assert [source.path.name for source in find_volumes(tmp_path)] == ["empty.nii", "a.nii"]


def test_links_that_lead_round_end_and_linked_folders_count_once(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.nii").write_bytes(b"x")
    os.symlink(tmp_path / "data", tmp_path / "data" / "again")
    os.symlink(tmp_path / "data", tmp_path / "other")
    assert names(find_volumes(tmp_path)) == ["a"]


def test_special_files_are_listed_without_being_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.nii.gz")
    os.mkfifo(tmp_path / "pipe")
    os.symlink(tmp_path / "gone", tmp_path / "dangling.nii")
    os.symlink(tmp_path / "loop.nii", tmp_path / "loop.nii")
    assert names(find_volumes(tmp_path)) == ["dangling", "loop", "pipe"]


def test_folder_that_cannot_be_read_is_bad(tmp_path, lock):
    (tmp_path / "a.nii").write_bytes(b"x")
    (tmp_path / "locked").mkdir()
    lock("locked")
    found = find_volumes(tmp_path)
    assert names(found) == ["a", "locked"] and found.notes == []
    with pytest.raises(VolumeError, match="the folder cannot be read: Permission denied"):
        inspect_source(found.sources[1])
    assert walk(tmp_path).notes == [f"{tmp_path}/locked: folder cannot be read"]


def test_what_may_hold_a_scan_is_not_passed_over_in_silence(tmp_path):
    for name in ("a.nii", "b.img", "b.hdr", "c.nii.bz2", "readme.txt", "lost+found/x.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "slice.dcm").write_bytes(b"no DICM")
    (tmp_path / "slice.IMA").touch()
    found = find_volumes(tmp_path)
    assert names(found) == ["a", "slice.IMA", "slice.dcm"]
    assert found.notes == [f"{tmp_path}: unsupported formats are skipped: 3 files: 1 .hdr, 1 .img, 1 .bz2"]
