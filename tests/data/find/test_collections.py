import numpy as np
import pytest

from mim_components.data import DataError, NoVolumesError
from mim_components.data.find.collections import COLLECTIONS, list_collection

SLICES = np.zeros((4, 4, 32), dtype=np.int16)


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def counts(volumes):
    return {each.name: count for each, count in volumes.rows}


def test_expected_counts_are_those_of_the_paper():
    assert sum(each.expected for each in COLLECTIONS["1k"]) == 746  # 24 + 722
    assert sum(each.expected for each in COLLECTIONS["10k"]) == 10452  # the sum of the rows of Table 1


def test_btcv_lists_the_24_training_ids_only(tmp_path):
    ids = [*range(1, 11), *range(21, 41)]
    touch(tmp_path, *(f"Abdomen/RawData/Training/img/img{i:04d}.nii.gz" for i in ids))
    touch(tmp_path, *(f"Abdomen/RawData/Training/label/label{i:04d}.nii.gz" for i in ids))
    touch(tmp_path, *(f"Abdomen/RawData/Testing/img/img{i:04d}.nii.gz" for i in range(61, 81)))
    volumes = list_collection("1k", tmp_path)
    assert [int(source.name[3:]) for source in volumes] == [*range(1, 11), *range(21, 35)]
    assert counts(volumes) == {"BTCV": 24, "TCIA Covid19": 0}


def test_every_set_is_found_as_its_archive_unpacks(tmp_path, write_dicom):
    uid = "1.3.6.1.4.1.14519.5.2.1"
    touch(
        tmp_path,
        "btcv/img/img0001.nii.gz",
        "covid/volume-covid19-A-0003.nii.gz",
        "covid/volume-covid19-A-0047_1_day007.nii.gz",
        f"LUNA16/subset0/{uid}.mhd",
        f"LUNA16/subset0/{uid}.raw",
        f"LUNA16/seg-lungs-LUNA16/{uid}.mhd",
        "stoic2021-training/data/mha/1023.mha",
        "FLARE23/imagesTr2200/FLARE23_0001_0000.nii.gz",
        "FLARE23/labelsTr2200/FLARE23_0001.nii.gz",
        "FLARE23/unlabelTr1800/FLARE23_4000_0000.nii.gz",
        "FLARE23/imagesTs/FLARE23_4001_0000.nii.gz",
        "Totalsegmentator_dataset/s0000/ct.nii.gz",
        "Totalsegmentator_dataset/s0000/segmentations/liver.nii.gz",
        "Totalsegmentator_dataset/s0864/ct.nii.gz",
    )
    write_dicom("LIDC-IDRI/LIDC-IDRI-0001/study/a", SLICES, uid=uid)
    write_dicom("LIDC-IDRI/LIDC-IDRI-0002/study/b", SLICES, uid="1.2.3.5")
    write_dicom("LIDC-IDRI/LIDC-IDRI-0002/study/x", SLICES, uid="1.2.3.6", Modality="DX")
    write_dicom("HNSCC/HNSCC-01-0001/study/c", SLICES, uid="1.2.3.7")
    write_dicom("HNSCC/HNSCC-01-0001/study/short", SLICES[..., :31], uid="1.2.3.8")
    volumes = list_collection("10k", tmp_path)
    assert list(counts(volumes).values()) == [1, 2, 1, 1, 2, 1, 1, 1]
    assert [source.series_uid for source in volumes if source.series_uid] == ["1.2.3.5", "1.2.3.7"]
    text = "\n".join(volumes.notes)
    assert "LIDC-IDRI: 1 series left out, they are in LUNA16" in text
    assert "[1.2.3.6]: not a CT volume: Modality DX" in text
    assert "[1.2.3.8]: not a CT volume: 31 slices, expected at least 32" in text


def test_the_1k_collection_needs_no_other_set(tmp_path):
    touch(tmp_path, "covid/volume-covid19-A-0003.nii.gz", "tot/s0000/ct.nii.gz")
    assert counts(list_collection("1k", tmp_path)) == {"BTCV": 0, "TCIA Covid19": 1}


def test_table_states_found_and_expected_and_that_it_is_a_subset(tmp_path):
    touch(tmp_path, "covid/volume-covid19-A-0003.nii.gz")
    lines = list_collection("1k", tmp_path).table().splitlines()
    assert lines[1].split()[:3] == ["BTCV", "0", "24"]
    assert lines[2].split()[:4] == ["TCIA", "Covid19", "1", "722"]
    assert lines[3].split() == ["sum", "1", "746", "a", "subset", "of", "the", "paper's"]


def test_second_copy_of_a_volume_is_left_out_and_noted(tmp_path):
    touch(tmp_path, "a/img0001.nii.gz", "b/img0001.nii.gz")
    volumes = list_collection("1k", tmp_path)
    assert [source.path for source in volumes] == [tmp_path / "a/img0001.nii.gz"]
    assert "BTCV volume 0001 is there twice" in volumes.notes[0]


def test_nothing_found_names_what_was_looked_for(tmp_path):
    touch(tmp_path, "a.zip")
    with pytest.raises(NoVolumesError, match=r"1 file: 1 \.zip. Looked for:\n  BTCV: .*img0001(.|\n)*covid19-A"):
        list_collection("1k", tmp_path)


def test_unknown_collection(tmp_path):
    with pytest.raises(DataError, match=r"collection must be one of \['10k', '1k'\], got '5k'"):
        list_collection("5k", tmp_path)
