import json
import os

import pytest

from mim_components.data import DataError, NoVolumesError
from mim_components.data.find.datalist import load_datalist


@pytest.fixture
def write_list(tmp_path):
    def write(content):
        path = tmp_path / "list.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def test_paths_are_relative_to_the_list(tmp_path, write_list):
    path = write_list({"name": "x", "training": [{"image": "b.nii", "label": "l.nii"}, {"image": "sub/a.nii.gz"}]})
    assert [source.path for source in load_datalist(path)] == [tmp_path / "b.nii", tmp_path / "sub/a.nii.gz"]


def test_dataset_dir_and_another_section(tmp_path, write_list):
    path = write_list({"training": [], "test": ["a.nii"]})
    with pytest.raises(NoVolumesError, match="d: there is no such folder, expected the folder that .*list.json is rel"):
        load_datalist(path, tmp_path / "d", "test")
    (tmp_path / "d").mkdir()
    assert [source.path for source in load_datalist(path, tmp_path / "d", "test")] == [tmp_path / "d" / "a.nii"]


def test_folder_of_a_dicom_series_is_one_item(tmp_path, write_list, write_dicom, ct):
    write_dicom("scan", ct)
    (source,) = load_datalist(write_list({"training": [{"image": "scan"}]}))
    assert source.series_uid == "1.2.3.4"


def test_folder_of_two_volumes_is_refused(tmp_path, write_list, write_nifti):
    write_nifti("two/a.nii")
    write_nifti("two/b.nii")
    with pytest.raises(DataError, match="item 0: key 'image': .*two holds 2 volumes, expected one"):
        load_datalist(write_list({"training": [{"image": "two"}]}))


def test_all_damaged_items_are_named_with_index_and_key(write_list):
    items = [{"image": "ok.nii"}, {"label": "l.nii"}, {"image": None}, {"image": 3}, "a.nii", 7, {"image": ["a", "b"]}]
    with pytest.raises(DataError) as raised:
        load_datalist(write_list({"training": items}))
    text = str(raised.value)
    assert "list.json: 6 faults in 7 items:" in text
    assert "item 1: has no key 'image'; keys: ['label']" in text
    assert "item 2: key 'image' is null, expected a path" in text
    assert "item 3: key 'image' is 3, expected a path" in text
    assert "item 4: is \"a.nii\", expected an object with the key 'image'" in text
    assert "item 5: is 7, expected an object" in text
    assert 'item 6: key \'image\' is ["a", "b"], expected a path' in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"training": []}, "section 'training' is empty"),
        ({"validation": []}, r"there is no section 'training'; sections: \['validation'\]"),
        ([{"image": "a.nii"}], "the list is a list at its top level, expected an object with the section 'training'"),
        ({"training": {"image": "a.nii"}}, "section 'training' is a dict, expected a list"),
        ('{"training": [', "the list is not readable JSON"),
    ],
)
def test_damaged_lists(write_list, content, message):
    with pytest.raises(DataError, match=f"list.json: {message}"):
        load_datalist(write_list(content))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_encodings_that_editors_write_are_read(tmp_path, encoding):
    path = tmp_path / "list.json"
    path.write_text('{"training": [{"image": "Müller.nii"}]}', encoding=encoding)
    assert [source.path.name for source in load_datalist(path)] == ["Müller.nii"]


def test_what_is_no_list_says_what_it_is(tmp_path):
    with pytest.raises(DataError, match="is a folder, expected a JSON list; give a folder with scans as --dataset_dir"):
        load_datalist(tmp_path)
    table = tmp_path / "scans.csv"
    table.write_text("image,label\na.nii,1\n")
    with pytest.raises(DataError, match=r"scans.csv: is a table that begins with 'image,label', expected a JSON list"):
        load_datalist(table)
    table.rename(tmp_path / "scans.json")
    with pytest.raises(DataError, match="is not readable JSON: .*; it begins with 'image,label', expected an object"):
        load_datalist(tmp_path / "scans.json")


def test_list_that_may_not_be_read(write_list, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    path = write_list({"training": []})
    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(DataError, match="list.json: the list cannot be read: Permission denied"):
        load_datalist(path)


def test_missing_list(tmp_path):
    with pytest.raises(NoVolumesError, match="there is no such list"):
        load_datalist(tmp_path / "list.json")


def test_paths_that_leave_the_folder_are_refused(tmp_path, write_list):
    (tmp_path / "data").mkdir()
    (tmp_path / "secret.nii").write_bytes(b"x")
    os.symlink(tmp_path / "secret.nii", tmp_path / "data" / "link.nii")
    items = [{"image": name} for name in ("../secret.nii", str(tmp_path / "secret.nii"), "link.nii", "fine.nii")]
    with pytest.raises(DataError, match="3 faults in 4 items") as raised:
        load_datalist(write_list({"training": items}), tmp_path / "data")
    assert str(raised.value).count("leads out of") == 3


def test_repeated_item_is_noted(write_list):
    found = load_datalist(write_list({"training": [{"image": "a.nii"}, {"image": "a.nii"}]}))
    assert len(found) == 2
    assert "a.nii is listed more than once" in found.notes[0]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([{"image": "sub/../a.nii"}], "volumes in both sections, training and validation: .*/a.nii"),
        ([{"image": "link.nii"}], "volumes in both sections"),
        ([{"image": "b.nii", "group": "p1"}], "patients in both sections, training and validation: p1"),
    ],
)
@pytest.mark.parametrize("key", ["training", "validation"])
def test_what_is_in_training_is_not_in_validation(tmp_path, items, message, key):
    for name in ("a.nii", "b.nii"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.nii").symlink_to("a.nii")
    content = {"training": [{"image": "a.nii", "group": "p1"}], "validation": items}
    path = tmp_path / "list.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        load_datalist(path, key=key)
    content["validation"] = [{"image": "b.nii", "group": "p2"}]
    path.write_text(json.dumps(content))
    assert len(load_datalist(path, key=key)) == 1
    content["training" if key == "validation" else "validation"] = ["no item", 3]
    path.write_text(json.dumps(content))
    assert len(load_datalist(path, key=key)) == 1


def test_reason_of_a_series_that_is_no_volume_is_kept(write_list, write_dicom, ct):
    positions = [3.0 * (z + (z > 2)) for z in range(14)]
    write_dicom("broken", ct, positions=positions)
    with pytest.raises(DataError, match="item 0: key 'image': .*broken: no CT volume(.|\n)*uneven slice distances"):
        load_datalist(write_list({"training": [{"image": "broken"}]}))


def test_series_beside_the_one_that_is_used_is_noted(write_list, write_dicom, tmp_path, ct):
    positions = [3.0 * (z + (z > 2)) for z in range(14)]
    write_dicom("patient/whole", ct, uid="1.2")
    write_dicom("patient/broken", ct, uid="1.3", positions=positions)
    found = load_datalist(write_list({"training": [{"image": "patient"}]}))
    assert [source.series_uid for source in found] == ["1.2"]
    (note,) = found.notes
    used = f"{tmp_path}/patient: {tmp_path}/patient/whole [1.2] is used; passed over: {tmp_path}/patient/broken [1.3]: "
    assert note.startswith(used) and "uneven slice distances" in note
