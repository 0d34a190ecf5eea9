"""A folder with label maps beside the scans: the scans are prepared, the label maps skipped and listed."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from mim_components.data import BadVolumesError, DataError, find_sources, prepare_volumes
from mim_components.data.names import name_sources
from mim_components.data.prepare.label_maps import label_word


@pytest.fixture
def prepare(tmp_path):
    """Prepare the volumes of `data`; returns the result and the records of `passed_over.jsonl` by file name."""

    def run(datalist=None, hidden=False, **options):
        found = find_sources(tmp_path / "data", datalist)
        found = name_sources(found) if hidden else found
        dataset = prepare_volumes(found, tmp_path / "cache", progress=False, output_dir=tmp_path, **options)
        path = tmp_path / "passed_over.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return dataset, {Path(row["path"]).name: (row["how"], row["reason"]) for row in rows}

    return run


@pytest.fixture
def organs(ct):
    """uint8 labels 0 to 2."""
    return (np.arange(ct.size).reshape(ct.shape) % 3).astype(np.uint8)


@pytest.fixture
def body(ct):
    """int16 labels 0 to 117."""
    return (np.arange(ct.size).reshape(ct.shape) % 118).astype(np.int16)


@pytest.mark.parametrize(
    "name",
    [
        "labels/p1.nii.gz", "LABELS/p1.nii", "labelsTr/p1.nii.gz", "p1/segmentations/liver.nii.gz", "Mask/p1.mha",
        "p1_seg.nii.gz", "p1-label.nrrd", "p1.seg.nrrd", "p1_label.nii", "p1_mask.mhd", "label0001.nii.gz",
        "segmentation-3.nii", "sub-1_seg-vert_msk.nii.gz", "P1_GT.nii.gz", "ground_truth/p1.nii", "p1Mask.nrrd",
    ],
)  # fmt: skip
def test_names_of_label_maps(name):
    assert label_word(Path("labels", name), Path("labels"))


@pytest.mark.parametrize(
    "name",
    ["p1.nii.gz", "imagesTr/p1.nii.gz", "segment/p1.nii", "masked/p1.nii", "labelled/p1.nii.gz", "gtv.nii", "ct.nrrd"],
)
def test_names_of_scans(name):
    assert label_word(Path("labels", name), Path("labels")) == ""  # the data folder's own name does not count


def test_few_whole_numbers_are_passed_over_whatever_they_are_called(prepare, write_nifti, organs, caplog):
    write_nifti("data/a.nii.gz")
    write_nifti("data/b.nii.gz", organs)
    write_nifti("data/c.mask.nii", (organs > 0).astype(np.float32))
    with caplog.at_level(logging.WARNING):
        dataset, passed = prepare()
    assert [volume.name for volume in dataset.volumes] == ["a"] and dataset.bad == []
    assert passed == {
        "b.nii.gz": ("content", "not HU: 3 different values from 0 to 2 (a label map?)"),
        "c.mask.nii": ("content", "not HU: values from 0 to 1 (normalised, or a mask); expected CT in HU"),
    }
    assert caplog.messages == ["2 passed over that are not scans (label map by content: 2)"]


def test_names_tell_where_voxels_leave_a_doubt(prepare, write_nifti, organs, body, ct):
    write_nifti("data/images/p1.nii.gz")
    write_nifti("data/labels/empty.nii.gz", np.zeros_like(organs))
    write_nifti("data/labels/body.nii.gz", body)
    write_nifti("data/labels/classes.nii.gz", np.stack([organs, organs], axis=-1))
    cut = write_nifti("data/labels/cut.nii.gz", organs)
    cut.write_bytes(cut.read_bytes()[:-8])
    dataset, passed = prepare()
    assert [volume.name for volume in dataset.volumes] == ["p1"] and dataset.bad == []
    assert {how for how, _ in passed.values()} == {"name"}
    reasons = {name: reason for name, (_, reason) in passed.items()}
    assert reasons["empty.nii.gz"] == "called 'labels'; constant: every voxel is 0"
    assert reasons["body.nii.gz"] == "called 'labels'; 118 different values"
    assert reasons["classes.nii.gz"].startswith("called 'labels'; 4D")
    assert reasons["cut.nii.gz"].startswith("called 'labels'; truncated")
    assert prepare()[1] == passed  # from the cache


def test_scan_is_never_passed_over_for_its_name(prepare, write_nifti, ct, organs):
    write_nifti("data/a.nii.gz")
    write_nifti("data/seg_ct.nii.gz", ct[::-1])
    write_nifti("data/c_seg.nii.gz", organs)
    dataset, passed = prepare()
    assert [volume.name for volume in dataset.volumes] == ["a", "seg_ct"] and list(passed) == ["c_seg.nii.gz"]
    assert [note for note in dataset.notes if "called 'seg', but its voxels are those of a scan" in note]
    cut = write_nifti("data/cut_seg.nii.gz", ct[:, ::-1])
    cut.write_bytes(cut.read_bytes()[:-8])
    with pytest.raises(BadVolumesError, match="1 of 3 volumes cannot be used:\n.*cut_seg.nii.gz: truncated"):
        prepare()  # a scan has such a name too, so the name says nothing about a damaged file


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda ct: np.zeros_like(ct), "constant: every voxel is 0"),
        (lambda ct: np.clip(ct, -1, 0), "not HU: values from -1 to 0"),
        (lambda ct: (ct + 1000) / 2000, "not HU: values from 0 to 0.9995"),
        (lambda ct: np.clip(ct, 0, 40) + np.float32(0.25), "not HU: .* different values from 0.25 to 40.25"),
    ],
    ids=["constant", "clipped", "normalised", "fractions"],
)
def test_bad_scan_stays_an_error(prepare, write_nifti, ct, change, cause):
    write_nifti("data/a.nii.gz")
    write_nifti("data/b.nii.gz", change(ct))
    with pytest.raises(BadVolumesError, match=cause):
        prepare()


def test_where_all_have_such_names_they_tell_nothing(prepare, write_nifti, ct, organs):
    write_nifti("data/mask/a.nii.gz")
    write_nifti("data/mask/b.nii.gz", np.zeros_like(ct))
    write_nifti("data/mask/c.nii.gz", organs)
    dataset, passed = prepare(on_bad="exclude", max_bad_fraction=0.5)  # 1 of 2: label maps are not counted
    assert (
        [volume.name for volume in dataset.volumes] == ["a"] and len(dataset.bad) == 1 and list(passed) == ["c.nii.gz"]
    )


def test_label_maps_alone_are_an_error(prepare, write_nifti, organs):
    write_nifti("data/a.nii.gz", organs)
    with pytest.raises(
        DataError, match=r"data: no scan is left; 1 passed over .* \(label map by content: 1\): .*a\.nii\.gz"
    ):
        prepare()


def test_a_list_names_its_scans(prepare, tmp_path, write_nifti, organs):
    write_nifti("data/a.nii.gz")
    write_nifti("data/labels/a.nii.gz", organs)
    (tmp_path / "list.json").write_text('{"training": [{"image": "a.nii.gz"}, {"image": "labels/a.nii.gz"}]}')
    with pytest.raises(BadVolumesError, match="1 of 2 volumes cannot be used(.|\n)*3 different values"):
        prepare(tmp_path / "list.json")
    assert [volume.name for volume in prepare()[0].volumes] == ["a"]  # the cached check serves both cases


@pytest.mark.parametrize(("modality", "what"), [("SEG", "DICOM segmentation"), ("RTSTRUCT", "DICOM structure set")])
def test_dicom_objects_are_passed_over(prepare, write_dicom, modality, what, caplog):
    volume = np.arange(12 * 10 * 8).reshape(12, 10, 8)
    write_dicom("data/scan", volume)
    write_dicom("data/drawn", volume[..., :1], uid="1.2.9", Modality=modality)
    with caplog.at_level(logging.WARNING):
        dataset, passed = prepare()
    assert [volume.name for volume in dataset.volumes] == ["1.2.3.4"]
    assert passed == {"drawn [1.2.9]": ("DICOM", what)}
    assert f"1 passed over that are not scans ({what}: 1)" in caplog.messages


def test_names_can_be_digests(prepare, write_nifti, write_dicom, organs):
    write_nifti("data/a.nii.gz")
    write_nifti("data/labels/mueller.nii.gz", organs)
    write_dicom("data/mueller", organs[..., :1].astype(int), uid="1.2.9", Modality="SEG")
    _, passed = prepare(hidden=True)
    assert len(passed) == 2 and all(name.startswith("scan-") for name in passed)
    assert "mueller" not in str(passed)
