"""Every dataset as unpacked and with usual renamings, and the messages about other folders."""

import time

import pytest

from mim_components.data import DataError, NoVolumesError, find_cases
from mim_components.data.cases import NO_DATA
from mim_components.data.find.layouts import LAYOUTS, all_layouts

BTCV = [{"name": "btcv"}]


def names(cases):
    return [case.name for case in cases]


def shown(found, case):
    return [path.relative_to(found.root).as_posix() for path in case.files]


def pairs(image, label, ids):
    return [text.format(each) for each in ids for text in (image, label)]


# --- BTCV


@pytest.mark.parametrize("top", ["", "RawData/", "Abdomen/RawData/"])
def test_btcv_as_it_unpacks(touch, top):
    labelled = pairs(top + "Training/img/img{}.nii.gz", top + "Training/label/label{}.nii.gz", ["0010", "0002"])
    root = touch([*labelled, f"{top}Testing/img/img0061.nii.gz"])
    found = find_cases(root, layouts=BTCV)
    assert (found.root, found.layout, found.label_set, found.notes) == (root, "btcv", None, [])
    assert names(found.cases) == ["0002", "0010"] and names(found.unlabelled) == ["0061"]
    assert shown(found, found.cases[0]) == [
        f"{top}Training/img/img0002.nii.gz",
        f"{top}Training/label/label0002.nii.gz",
    ]
    assert shown(found, found.unlabelled[0]) == [f"{top}Testing/img/img0061.nii.gz"]
    assert found.cases[0].group == "0002"


def test_btcv_from_the_folder_of_the_training_part(touch):
    root = touch(pairs("Training/img/img{}.nii", "Training/label/label{}.nii", ["0001"]))
    assert names(find_cases(root / "Training", layouts=BTCV).cases) == ["0001"]


def test_btcv_renamed(touch):
    root = touch(
        [*pairs("imagesTr/img{}.nii.gz", "labelsTr/label{}.nii.gz", ["0001", "0021"]), "imagesTs/img0061.nii.gz"]
    )
    found = find_cases(root, layouts=BTCV)
    assert names(found.cases) == ["0001", "0021"] and names(found.unlabelled) == ["0061"]


def test_pairs_that_are_not_complete_are_noted(touch):
    files = pairs("img/img{}.nii.gz", "label/label{}.nii.gz", ["0001"])
    found = find_cases(touch([*files, "img/img0003.nii.gz", "img/img0002.nii.gz", "label/label0004.nii"]), None, BTCV)
    assert names(found.cases) == ["0001"] and found.unlabelled == []
    assert found.notes == [
        "2 images without label left out: 0002, 0003",
        "1 label without image left out: 0004",
    ]


def test_many_orphans_are_cut_short(touch):
    files = [f"img/img{number:04d}.nii.gz" for number in range(1, 14)]
    found = find_cases(touch([*files, "label/label0001.nii.gz"]), None, BTCV)
    assert found.notes[0].endswith("0002, 0003, 0004, 0005, 0006, 0007, 0008, 0009, 0010, 0011 and 2 more")


def test_no_pair_is_an_error(touch):
    root = touch(["img/img0001.nii.gz", "label/label0002.nii.gz"])
    with pytest.raises(DataError, match="no image of BTCV has a label; expected Training/img/img0001.nii.gz and"):
        find_cases(root, None, BTCV)


def test_dataset_that_is_there_twice(touch):
    files = pairs("img/img{}.nii.gz", "label/label{}.nii.gz", ["0001"])
    root = touch([*(f"a/{file}" for file in files), *(f"b/{file}" for file in files)])
    with pytest.raises(DataError, match="holds BTCV 2 times: a/, b/; give one of these folders as dataset_dir"):
        find_cases(root, None, BTCV)
    assert len(find_cases(root / "b", None, BTCV)) == 1


def test_file_that_is_there_packed_and_unpacked(touch):
    root = touch(["img/img0001.nii", "img/img0001.nii.gz", "label/label0001.nii.gz"])
    found = find_cases(root, None, BTCV)
    assert shown(found, found.cases[0]) == ["img/img0001.nii", "label/label0001.nii.gz"]
    assert found.notes == ["img/img0001.nii.gz is skipped: img/img0001.nii exists too"]


def test_hidden_files_are_passed_over(touch):
    files = pairs("img/img{}.nii.gz", "label/label{}.nii.gz", ["0001"])
    root = touch([*files, "img/._img0001.nii.gz", "__MACOSX/img/img0002.nii.gz", "__MACOSX/label/label0002.nii.gz"])
    found = find_cases(root, None, BTCV)
    assert names(found.cases) == ["0001"] and found.notes == []


def test_folder_that_is_called_like_a_file_is_handed_to_the_check(touch, tmp_path):
    root = touch(["label/label0001.nii.gz"])
    (tmp_path / "img" / "img0001.nii.gz").mkdir(parents=True)
    assert names(find_cases(root, None, BTCV).cases) == ["0001"]


# --- MM-WHS


@pytest.mark.parametrize("top", ["", "MM-WHS 2017 Dataset/"])
@pytest.mark.parametrize(("images", "labels"), [("", ""), ("images/", "labels/"), ("image/", "label/")])
def test_mmwhs(touch, top, images, labels):
    train = pairs(
        top + "ct_train/" + images + "ct_train_{}_image.nii.gz",
        top + "ct_train/" + labels + "ct_train_{}_label.nii.gz",
        ["1002", "1001"],
    )
    others = ["ct_test/ct_test_2001_image.nii.gz", "mr_train/mr_train_1001_image.nii.gz"]
    found = find_cases(touch([*train, *(top + other for other in others)]), None, [{"name": "mmwhs"}])
    assert names(found.cases) == ["1001", "1002"] and names(found.unlabelled) == ["2001"] and found.notes == []


def test_mmwhs_from_the_inner_folder(touch):
    root = touch(pairs("ct_train/ct_train_{}_image.nii.gz", "ct_train/ct_train_{}_label.nii.gz", ["1001"]))
    assert names(find_cases(root / "ct_train", None, [{"name": "mmwhs"}]).cases) == ["1001"]


# --- Decathlon


def task(prefix, ids, top=""):
    files = pairs(f"{top}imagesTr/{prefix}{{}}.nii.gz", f"{top}labelsTr/{prefix}{{}}.nii.gz", ids)
    return [*files, f"{top}imagesTs/{prefix}1.nii.gz", f"{top}imagesTr/._{prefix}{ids[0]}.nii.gz"]


SPLEEN = [{"name": "decathlon", "task": "Task09_Spleen"}]


@pytest.mark.parametrize("top", ["", "Task09_Spleen/"])
def test_decathlon(touch, top):
    root = touch(task("spleen_", ["10", "9", "2"], top))
    (root / top / "dataset.json").write_text('{"name": "Spleen"}')
    found = find_cases(root, None, SPLEEN)
    assert names(found.cases) == ["spleen_2", "spleen_9", "spleen_10"]
    assert names(found.unlabelled) == ["spleen_1"] and found.notes == []
    assert shown(found, found.cases[0]) == [f"{top}imagesTr/spleen_2.nii.gz", f"{top}labelsTr/spleen_2.nii.gz"]


def test_decathlon_takes_what_is_there_and_counts_what_is_listed(touch):
    root = touch(task("spleen_", ["2", "3"]))
    listed = '[{"image": "./imagesTr/spleen_2.nii.gz"}, {"image": "./imagesTr/spleen_99.nii.gz"}]'
    (root / "dataset.json").write_text(f'{{"name": "Spleen", "training": {listed}}}')
    found = find_cases(root, None, SPLEEN)
    assert len(found) == 2
    assert found.notes == ["1 of 2 training entries of dataset.json have no files here"]


@pytest.mark.parametrize("content", ["{", "[]", '{"name": "?", "training": 3}'])
def test_task_is_told_by_folder_or_files_where_the_json_says_nothing(touch, content):
    root = touch([*task("case", ["2"], "Task09_Spleen/"), *task("liver_", ["0"], "other/")])
    for top in ("Task09_Spleen", "other"):
        (root / top / "dataset.json").write_text(content)
    assert names(find_cases(root, None, SPLEEN).cases) == ["case2"]
    assert names(find_cases(root, None, [{"name": "decathlon", "task": "Task03_Liver"}]).cases) == ["liver_0"]


def test_labels_without_any_image_are_no_task(touch):
    with pytest.raises(NoVolumesError, match="found 1 file: 1 .nii.gz"):
        find_cases(touch(["labelsTr/spleen_2.nii.gz"]), None, SPLEEN)


def test_unknown_task():
    with pytest.raises(ValueError, match="task must be one of Task01_BrainTumour, .*, got 'Task11'"):
        LAYOUTS["decathlon"](task="Task11")


# --- AMOS, FLARE, COVID-19-20, BraTS 2021


def test_amos_pools_training_and_validation_and_leaves_mr_out(touch):
    files = pairs("amos22/imagesTr/amos_{}.nii.gz", "amos22/labelsTr/amos_{}.nii.gz", ["0001", "0507"])
    files += pairs("amos22/imagesVa/amos_{}.nii.gz", "amos22/labelsVa/amos_{}.nii.gz", ["0008", "0600", "0410"])
    found = find_cases(
        touch([*files, *(f"amos22/imagesTs/amos_{n}.nii.gz" for n in ("0003", "0555"))]), None, [{"name": "amos22"}]
    )
    assert names(found.cases) == ["0001", "0008", "0410"] and names(found.unlabelled) == ["0003"]
    assert found.notes == ["2 labelled MR scans (ids from 500) left out, CT only"]
    assert shown(found, found.cases[1]) == ["amos22/imagesVa/amos_0008.nii.gz", "amos22/labelsVa/amos_0008.nii.gz"]


def test_amos_of_ct_only_has_no_note(touch):
    root = touch(pairs("imagesTr/amos_{}.nii.gz", "labelsTr/amos_{}.nii.gz", ["0001"]))
    assert find_cases(root, None, [{"name": "amos22"}]).notes == []


@pytest.mark.parametrize("top", ["", "FLARE22Train/"])
def test_flare_has_a_channel_number_on_images_only(touch, top):
    image, label = top + "images/FLARE22_Tr_{}_0000.nii.gz", top + "labels/FLARE22_Tr_{}.nii.gz"
    found = find_cases(touch(pairs(image, label, ["0050", "0001"])), None, [{"name": "flare22"}])
    assert names(found.cases) == ["0001", "0050"] and found.notes == []


@pytest.mark.parametrize("top", ["", "COVID-19-20_v2/"])
def test_covid_with_ids_that_have_a_second_number(touch, top):
    scan = "volume-covid19-A-{}"
    train = pairs(f"{top}Train/{scan}_ct.nii.gz", f"{top}Train/{scan}_seg.nii.gz", ["0047_1", "0003", "0048"])
    root = touch([*train, f"{top}Validation/volume-covid19-A-0011_ct.nii.gz"])
    found = find_cases(root, None, [{"name": "covid19"}])
    assert names(found.cases) == ["A-0003", "A-0047_1", "A-0048"] and names(found.unlabelled) == ["A-0011"]


BRATS = [{"name": "decathlon", "task": "Task01_BrainTumour"}, {"name": "brats2021", "label_set": "brats2021"}]


@pytest.mark.parametrize("top", ["", "BraTS2021_Training_Data/"])
def test_brats2021_has_channels_in_the_order_of_task01(touch, top):
    files = [
        f"{top}BraTS2021_{case}/BraTS2021_{case}_{kind}.nii.gz"
        for case in ("00002", "00000")
        for kind in ("t1", "t1ce", "t2", "flair", "seg")
    ]
    files += [f"{top}BraTS2021_00003/BraTS2021_00003_{kind}.nii.gz" for kind in ("t1", "t2", "flair", "seg")]
    files += [
        f"BraTS2021_ValidationData/BraTS2021_00001/BraTS2021_00001_{kind}.nii.gz"
        for kind in ("t1", "t1ce", "t2", "flair")
    ]
    found = find_cases(touch(files), None, BRATS)
    assert (found.layout, found.label_set) == ("brats2021", "brats2021")
    assert names(found.cases) == ["BraTS2021_00000", "BraTS2021_00002"]
    kinds = [path.name.removesuffix(".nii.gz").split("_")[-1] for path in found.cases[0].files]
    assert kinds == ["flair", "t1", "t1ce", "t2", "seg"]
    assert names(found.unlabelled) == ["BraTS2021_00001"] and len(found.unlabelled[0].image) == 4
    assert found.notes == ["BraTS2021_00003 is left out: no file for t1ce"]


def test_brats_as_task01(touch):
    found = find_cases(touch(task("BRATS_", ["001", "002"], "Task01_BrainTumour/")), None, BRATS)
    assert (found.layout, found.label_set) == ("decathlon", None)
    assert names(found.cases) == ["BRATS_001", "BRATS_002"] and len(found.cases[0].image) == 1


# --- missing data


def test_dataset_of_another_bundle_is_named(touch):
    root = touch(task("liver_", ["0"], "Task03_Liver/"))
    with pytest.raises(NoVolumesError) as raised:
        find_cases(root, None, BTCV)
    assert str(raised.value) == (
        f"{root}: expected BTCV: Training/img/img0001.nii.gz and Training/label/label0001.nii.gz (or imagesTr/, "
        "labelsTr/); found 3 files: 3 .nii.gz. It looks like MSD Task03_Liver; use the bundle "
        "mim_msd_liver_segmentation."
    )


def test_every_dataset_is_told_from_every_other(touch, tmp_path):
    covid = "volume-covid19-A-0003_{}.nii.gz"
    kinds = ("t1", "t1ce", "t2", "flair", "seg")
    files = {
        "BTCV": pairs("img/img{}.nii.gz", "label/label{}.nii.gz", ["0001"]),
        "MM-WHS": ["ct_train/ct_train_1001_image.nii.gz", "ct_train/ct_train_1001_label.nii.gz"],
        "AMOS22": ["imagesTr/amos_0001.nii.gz", "labelsTr/amos_0001.nii.gz"],
        "FLARE22": ["images/FLARE22_Tr_0001_0000.nii.gz", "labels/FLARE22_Tr_0001.nii.gz"],
        "COVID-19-20": [f"Train/{covid.format('ct')}", f"Train/{covid.format('seg')}"],
        "BraTS 2021": [f"BraTS2021_00000/BraTS2021_00000_{kind}.nii.gz" for kind in kinds],
        "CC-CCII": [f"NCP/12/34/{number:04d}.png" for number in range(20)],
        "MSD Task01_BrainTumour": task("BRATS_", ["001"]),
        "MSD Task02_Heart": task("la_", ["003"]),
        "MSD Task03_Liver": task("liver_", ["0"]),
        "MSD Task04_Hippocampus": task("hippocampus_", ["001"]),
        "MSD Task05_Prostate": task("prostate_", ["00"]),
        "MSD Task06_Lung": task("lung_", ["001"]),
        "MSD Task07_Pancreas": task("pancreas_", ["001"]),
        "MSD Task08_HepaticVessel": task("hepaticvessel_", ["001"]),
        "MSD Task09_Spleen": task("spleen_", ["2"]),
        "MSD Task10_Colon": task("colon_", ["001"]),
    }
    layouts = list(all_layouts())
    assert sorted(layout.dataset for layout in layouts) == sorted(files)
    from mim_components.data.find.layouts import Folder

    for number, (dataset, paths) in enumerate(files.items()):
        touch([f"{number}/{path}" for path in paths])
        folder = Folder(tmp_path / str(number))
        assert [layout.dataset for layout in layouts if layout.recognises(folder)] == [dataset]


def test_dataset_without_a_bundle(touch):
    with pytest.raises(NoVolumesError, match="looks like MSD Task02_Heart, for which there is no bundle"):
        find_cases(touch(task("la_", ["003"])), None, BTCV)


@pytest.mark.parametrize(("name", "what"), [("gone", "there is no such folder"), ("file", "is a file")])
def test_no_folder(touch, name, what):
    root = touch(["file"])
    with pytest.raises(NoVolumesError, match=f"{name}: {what}, expected the folder of BTCV: Training/img"):
        find_cases(root / name, None, BTCV)


def test_empty_folder_and_no_folder_at_all(tmp_path):
    with pytest.raises(NoVolumesError, match="found 0 files: the folder is empty"):
        find_cases(tmp_path, None, BTCV)
    assert (
        find_cases(None, None, BTCV).layout == NO_DATA
    )  # a workflow can be built without data; only preparing it needs them
    with pytest.raises(ValueError, match="layout must be one of btcv, .*, got 'kits'"):
        find_cases(tmp_path, None, [{"name": "kits"}])


def test_deep_folders_are_not_looked_into(touch):
    root = touch(pairs("a/b/c/img/img{}.nii.gz", "a/b/c/label/label{}.nii.gz", ["0001"]))
    with pytest.raises(NoVolumesError, match="expected BTCV"):
        find_cases(root, None, BTCV)
    assert len(find_cases(root / "a", None, BTCV)) == 1


def test_time_of_a_search_grows_with_the_number_of_files(touch):
    seconds = []
    for count in (500, 5000):
        ids = [f"{number:04d}" for number in range(count)]
        root = touch(pairs(f"{count}/img/img{{}}.nii.gz", f"{count}/label/label{{}}.nii.gz", ids)) / str(count)
        start = time.process_time()
        assert len(find_cases(root, None, BTCV)) == count
        seconds.append(time.process_time() - start)
    assert seconds[1] < 40 * seconds[0]  # in proportion it is 10, if each file met every other 100


def test_folder_that_cannot_be_read_is_named(touch, lock):
    files = ["flair", "t1", "t1ce", "t2", "seg"]
    root = touch([f"BraTS2021_0000{n}/BraTS2021_0000{n}_{file}.nii.gz" for n in range(3) for file in files])
    lock("BraTS2021_00001")
    with pytest.raises(DataError, match="1 folder cannot be read: .*/BraTS2021_00001; make readable, or give a data"):
        find_cases(root, layouts=[{"name": "brats2021"}])
    with pytest.raises(NoVolumesError, match="found .*; 1 folder cannot be read: .*/BraTS2021_00001. It looks like"):
        find_cases(root, layouts=BTCV)
