"""Lists of labelled cases: every fault is named, and a written list gives the same split when read."""

import json

import pytest

from mim_components.data import DataError, NoVolumesError
from mim_components.data.cases import Case, FoundCases
from mim_components.data.find.datalist import load_cases
from mim_components.data.prepare.report import datalist_of
from mim_components.data.prepare.splits import divide


@pytest.fixture
def read(tmp_path):
    """Write a list into `tmp_path/data` and read it."""
    (tmp_path / "data").mkdir()

    def make(content, dataset_dir=None):
        path = tmp_path / "data" / "my.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return load_cases(path, dataset_dir)

    return make


def item(number, **more):
    return {"image": f"i/{number}.nii.gz", "label": f"l/{number}.nii.gz", **more}


def faults(read, content):
    with pytest.raises(DataError) as raised:
        read(content)
    return str(raised.value).splitlines()[1:]


def test_paths_are_relative_to_the_list_or_the_folder(read, tmp_path):
    found = read({"training": [item(1), item(2)]})
    assert (found.root, found.layout) == (tmp_path / "data", "datalist")
    assert found.cases[0] == Case("1", (tmp_path / "data/i/1.nii.gz",), tmp_path / "data/l/1.nii.gz")
    (tmp_path / "other").mkdir()
    assert read({"training": [item(1)]}, tmp_path / "other").cases[0].image == (tmp_path / "other/i/1.nii.gz",)


def test_list_of_the_decathlon(read):
    content = {"training": [item("spleen_2"), item("./spleen_9")], "test": ["./t/a.nii.gz", {"image": "t/b.nii.gz"}]}
    found = read(content)
    assert [case.name for case in found.cases] == ["spleen_2", "spleen_9"]
    assert [case.section for case in found.cases] == [None, None]
    assert [(case.name, case.label, case.section) for case in found.unlabelled] == [
        ("a", None, None),
        ("b", None, None),
    ]


def test_all_keys_of_an_item(read, tmp_path):
    channels = ["c/flair.nii.gz", "c/t1.nii.gz"]
    content = {
        "training": [{"image": channels, "label": 2, "name": "first", "group": "patient", "fold": 4}],
        "test": [["t/1.nii", "t/2.nii"]],
        "label_set": "organ_only",
    }
    found = read(content)
    (case,) = found.cases
    assert [path.name for path in case.image] == ["flair.nii.gz", "t1.nii.gz"]
    assert (case.name, case.label, case.group, case.fold) == ("first", 2, "patient", 4)
    assert len(found.unlabelled[0].image) == 2 and found.label_set == "organ_only"


def test_files_of_one_name_get_that_of_their_folder(read):
    found = read({"training": [{"image": f"{folder}/ct.nii.gz", "label": 0} for folder in "ab"]})
    assert [(case.name, case.group) for case in found.cases] == [("a_ct", "a_ct"), ("b_ct", "b_ct")]


def test_group_without_a_name(read):
    assert read({"training": [item(1, group="p")]}).cases[0].group == "p"


def test_sections_are_kept_and_fold_keys_are_not(read):
    found = read({"training": [item(1, fold=0)], "validation": [item(2)]})
    assert [(case.section, case.fold) for case in found.cases] == [("training", None), ("validation", None)]
    assert read({"training": [item(1, fold=0)], "validation": []}).cases[0].fold == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("a.nii", "is \"a.nii\", expected an object with the keys 'image' and 'label'"),
        (None, "is null, expected an object"),
        ({"label": "l"}, "has no key 'image'; keys: ['label']"),
        ({"image": "i"}, "has no key 'label'; keys: ['image']"),
        ({"image": "", "label": 1}, "key 'image' is \"\", expected a path"),
        ({"image": [], "label": 1}, "key 'image' is [], expected a path or one path per channel"),
        ({"image": ["a", 3], "label": 1}, "key 'image' is 3, expected a path"),
        ({"image": "a", "label": None}, "key 'label' is null, expected a path"),
        ({"image": "a", "label": 1.5}, "key 'label' is 1.5, expected a path"),
        ({"image": "a", "label": True}, "key 'label' is true, expected a path"),
        ({"image": "a", "label": -1}, "key 'label' is -1, expected a path"),
        ({"image": "../a", "label": 1}, "key 'image': '../a' leads out of"),
        ({"image": "/etc/passwd", "label": 1}, "key 'image': '/etc/passwd' leads out of"),
        ({"image": "a", "label": "../l"}, "key 'label': '../l' leads out of"),
        ({"image": "a\0", "label": 1}, "embedded null"),
        ({"image": "a", "label": 1, "fold": "0"}, "key 'fold' is \"0\", expected a whole number from 0"),
        ({"image": "a", "label": 1, "fold": -1}, "key 'fold' is -1, expected a whole number from 0"),
        ({"image": "a", "label": 1, "fold": True}, "key 'fold' is true, expected a whole number from 0"),
        ({"image": "a", "label": 1, "name": "../x"}, "key 'name' is \"../x\", expected a text without '/'"),
        ({"image": "a", "label": 1, "name": ".."}, "key 'name' is \"..\", expected a text without '/'"),
        ({"image": "a", "label": 1, "group": 7}, "key 'group' is 7, expected a text without '/'"),
    ],
)
def test_fault_of_an_item(read, wrong, message):
    (line,) = faults(read, {"training": [item(1), wrong]})
    assert line.startswith("  training item 1: ") and message in line


def test_link_that_leads_out(read, tmp_path):
    (tmp_path / "data" / "link.nii").symlink_to(tmp_path / "secret.nii")
    (line,) = faults(read, {"training": [{"image": "link.nii", "label": 0}]})
    assert "'link.nii' leads out of" in line


def test_all_faults_of_all_sections_at_once(read):
    content = {"training": [{}, item(1)], "validation": [7], "test": [{"label": "x"}]}
    assert [line.split(":")[0].strip() for line in faults(read, content)] == [
        "training item 0",
        "validation item 0",
        "test item 0",
    ]
    with pytest.raises(DataError, match="my.json: 3 faults in 4 items:"):
        read(content)


def test_case_in_both_parts(read):
    lines = faults(read, {"training": [item(1), item(2)], "validation": [{"image": "i/../i/2.nii.gz", "label": 0}]})
    assert '  validation item 0: image "2.nii.gz" is also that of training item 1' in lines


def test_image_and_name_that_are_listed_twice(read, tmp_path):
    (tmp_path / "data" / "i").mkdir()
    (tmp_path / "data" / "i" / "link.nii").symlink_to("1.nii.gz")
    content = [
        item(1, name="a"),
        {"image": "i/link.nii", "label": 0},
        item(3, name="a"),
        {"image": ["x", "x"], "label": 0},
    ]
    assert faults(read, {"training": content}) == [
        '  training item 1: image "link.nii" is also that of training item 0',
        '  training item 2: name "a" is also that of training item 0',
        '  training item 3: image "x" is also that of training item 3',
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not readable JSON"),
        ([item(1)], "the list is a list at its top level"),
        ({"validation": [item(1)]}, "there is no section 'training'; sections: \\['validation'\\]"),
        ({"training": []}, "section 'training' is empty"),
        ({"training": {"a": 1}}, "section 'training' is a dict, expected a list of items"),
        ({"training": [item(1)], "validation": "x"}, "section 'validation' is a str, expected a list"),
    ],
)
def test_list_that_is_none(read, content, message):
    with pytest.raises(DataError, match=message):
        read(content)


def test_missing_list_and_missing_folder(read, tmp_path):
    with pytest.raises(NoVolumesError, match="gone.json: there is no such list"):
        load_cases(tmp_path / "gone.json")
    with pytest.raises(NoVolumesError, match="gone: there is no such folder, expected the folder that"):
        read({"training": [item(1)]}, tmp_path / "gone")


def round_trip(read, found, split, fold=0):
    division = divide(found, split, fold)
    content = datalist_of(found, division, {"name": "X"})
    again = read(content, found.root)
    assert again.unlabelled == found.unlabelled and again.label_set == found.label_set
    return content, division, again


def test_list_that_was_written_divides_as_before_in_every_fold(read, tmp_path):
    cases = [
        Case(f"c{n}", tuple(tmp_path / f"{n}_{c}.nii.gz" for c in range(2)), tmp_path / f"{n}.nii", group=f"p{n}")
        for n in range(12)
    ]
    found = FoundCases(tmp_path, "brats2021", cases, [Case("t", (tmp_path / "t.nii",))], [], "brats2021")
    split = {"rule": "fifths"}
    content, _, again = round_trip(read, found, split)
    assert content["training"][0] == {
        "fold": 1, "name": "c3", "image": ["3_0.nii.gz", "3_1.nii.gz"], "label": "3.nii", "group": "p3"
    }  # fmt: skip
    assert (content["name"], content["numTraining"], content["numTest"], content["test"]) == (
        "X", 12, 1, [{"name": "t", "image": "t.nii"}]
    )  # fmt: skip
    for fold in range(5):
        one, two = divide(found, split, fold), divide(again, split, fold)
        for part in ("training", "validation"):
            assert [(c.name, c.image, c.label, c.group) for c in getattr(one, part)] == [
                (c.name, c.image, c.label, c.group) for c in getattr(two, part)
            ]


def test_cases_that_always_train_are_written_without_fold(read, tmp_path):
    found = FoundCases(tmp_path, "x", [Case(name, (tmp_path / name,), 1) for name in "abc"])
    split = {"rule": "listed", "folds": [["a"], ["b"]]}
    content, _, again = round_trip(read, found, split)
    assert [entry.get("fold") for entry in content["training"]] == [1, None, 0]
    assert [case.name for case in divide(again, split, 1).validation] == ["b"]


def test_split_that_is_no_partition_is_written_as_sections(read, tmp_path):
    cases = [Case(str(n), (tmp_path / str(n),), n % 2) for n in range(10)]
    found = FoundCases(tmp_path, "x", cases)
    split = {"rule": "grouped_stratified", "validation_share": 0.4, "seed": 0}
    content, division, again = round_trip(read, found, split, 3)
    assert len(content["validation"]) == 4 and "fold" not in content["training"][0]
    assert [case.name for case in divide(again, split).validation] == [case.name for case in division.validation]


def test_folds_beside_a_section_for_validation_are_noted(read):
    found = read({"training": [item(1, fold=0), item(2, fold=1)], "validation": [item(3)]})
    assert [case.fold for case in found.cases] == [None, None, None]
    assert len(found.notes) == 1 and "my.json: 2 keys 'fold' not used: the list has a section 'val" in found.notes[0]
    assert read({"training": [item(1)], "validation": [item(3)]}).notes == []
