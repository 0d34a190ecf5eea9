"""Digests in place of names of scans, files and patients, and the way back to the names."""

from pathlib import Path

import pytest

from mim_components.data import DataError, FoundVolumes, NoVolumesError, VolumeSource
from mim_components.data.find.sources import path_of_name
from mim_components.data.find.walk import find_volumes
from mim_components.data.names import digest_name, hide, is_anonymous, name_sources, names_of_item, path_name
from mim_tools.prepare import main

NAME = "MUELLER_ANNA_1961"


def test_name_depends_on_the_path_below_the_folder(tmp_path):
    name = path_name(tmp_path / "one" / "a" / "ct.nii", tmp_path / "one")
    assert name == digest_name("a/ct.nii") == path_name(Path("x/a/ct.nii"), Path("x"))
    assert name != path_name(tmp_path / "one" / "b" / "ct.nii", tmp_path / "one")
    assert path_name(tmp_path, tmp_path, series_uid="1.2") != path_name(tmp_path, tmp_path, series_uid="1.3")


def test_sources_and_notes(tmp_path):
    sources = [VolumeSource(tmp_path / f"{NAME}.nii", (tmp_path / f"{NAME}.nii",)), VolumeSource(tmp_path, (), NAME)]
    found = name_sources(FoundVolumes(sources, [f"{NAME}: odd"], tmp_path))
    assert [str(source) for source in found] == [source.name for source in found]
    assert str(found.sources[0]) == digest_name(f"{NAME}.nii") and NAME not in str(found.sources[1])
    assert found.notes == ["1 remark on the search hidden, as they name files; shown without anonymous_paths"]
    assert name_sources(FoundVolumes(sources, root=tmp_path)).notes == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"/data/{NAME}.nii.gz: cut", "S: cut"),
        (f"data/{NAME}.nii.gz: cut", "S: cut"),
        (f"{NAME}.nii.gz and {NAME}.raw", "S and S.raw"),
        (f"its data file '{NAME}2.raw' is missing", "its data file '...' is missing"),
        (f"begins with b'{NAME}'", "begins with '...'"),
        (f'has the key "{NAME}"', "has the key '...'"),
        ("shape (1, 2, 3) is 17 voxels", "shape (1, 2, 3) is 17 voxels"),
    ],
)
def test_messages_name_no_file(text, expected):
    assert hide(text, {Path(f"/data/{NAME}.nii.gz"): "S", Path("/data/17.nii"): "T"}) == expected
    assert hide(text, {}) == text


def test_item_says_whether_names_are_hidden():
    assert names_of_item({"image": "a", "label": "b", "source": "a"}) == {}
    assert names_of_item({"image": "a", "label": 1, "name": "x"}) == names_of_item({"image": object()}) == {}
    assert names_of_item({"image": ["a", "b"], "label": 1, "source": "S"}) == {Path("a"): "S", Path("b"): "S"}


@pytest.mark.parametrize("value", ["False", None, 1])
def test_option_is_true_or_false(value):
    with pytest.raises(DataError, match="anonymous_paths must be True or False"):
        is_anonymous(value)


def test_owner_finds_the_path_again(tmp_path, write_nifti, capsys):
    path = write_nifti(f"data/{NAME}/ct.nii")
    write_nifti("data/other/ct.nii")
    root = tmp_path / "data"
    (scan, _) = name_sources(find_volumes(root))
    assert path_of_name(str(scan), root) == str(path)
    assert path_of_name(path_name(path, root, "file-"), root) == str(path)
    assert path_of_name(path_name(path.parent, root), root) == str(path.parent)
    assert path_of_name(digest_name(NAME, "patient-"), root) == str(path.parent)
    with pytest.raises(NoVolumesError, match="nothing in it is called scan-0; give the dataset_dir"):
        path_of_name("scan-0", root)
    assert main([str(root), "--name_of", str(scan)]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert main([str(root), "--name_of", "scan-0"]) == 2


def test_command_names_scans_by_digests(tmp_path, write_nifti, capsys):
    write_nifti(f"data/{NAME}.nii")
    (tmp_path / "data" / f"{NAME}_2.mha").write_text("<html>")
    command = [str(tmp_path / "data"), "--cache_dir", str(tmp_path / "cache"), "--anonymous_paths"]
    assert main(command) == 1
    said = capsys.readouterr()
    assert digest_name(f"{NAME}_2.mha") in said.out and NAME not in said.out + said.err
