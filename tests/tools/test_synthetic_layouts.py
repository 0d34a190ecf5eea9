import csv
import json
import zlib

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from mim_components.data.load.scans import load_volume
from mim_tools.synthetic import write_synthetic_layout
from mim_tools.synthetic.__main__ import main
from mim_tools.synthetic.generate import SyntheticCT
from mim_tools.synthetic.layouts import LAYOUTS
from mim_tools.synthetic.scenes import choose, numbers, unused
from mim_tools.synthetic.tissue import FINE_LABELS, LABEL_NUMBERS
from mim_tools.synthetic.writer import turn

SMALL = {"spatial_size": (40, 33, 30)}
TINY = {"spatial_size": (8, 7, 9), "spacing": (30.0, 30.0, 30.0)}
CT_VALUES = {  # label values in the files of each dataset
    "btcv": range(14),
    "mmwhs": (0, 205, 420, 500, 550, 600, 820, 850),
    "amos22": range(16),
    "flare22": range(14),
    "covid19": range(2),
    "msd_liver": range(3),
    "msd_lung": range(2),
    "msd_pancreas": range(3),
    "msd_hepaticvessel": range(3),
    "msd_spleen": range(2),
    "msd_colon": range(2),
}
LABEL_OF = {  # image path to label path, by replacement
    "btcv": (("Training/img", "Training/label"), ("/img", "/label")),
    "mmwhs": (("_image", "_label"),),
    "flare22": (("/images/", "/labels/"), ("_0000.nii", ".nii")),
    "covid19": (("_ct.", "_seg."),),
}


def fake_ct(seed, size, spacing, center=None, phase=None, findings=None, fine_labels=False):
    """Noise with all labels, to save time."""
    rng = np.random.default_rng(seed)
    shown = len(FINE_LABELS) if findings is None or findings else LABEL_NUMBERS["lung_tumour"]
    label = np.resize(np.arange(shown, dtype=np.uint8), size)
    affine = np.diag([*spacing, 1.0])
    return SyntheticCT(rng.integers(-1000, 900, size, dtype=np.int16), label, affine, spacing, seed, "none")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("mim_tools.synthetic.writer.synthetic_ct", fake_ct)


@pytest.fixture(scope="module")
def small_sets(tmp_path_factory):
    made = {}

    def get(layout):
        if layout not in made:
            made[layout] = write_synthetic_layout(tmp_path_factory.mktemp(layout), layout, 2, **SMALL)
        return made[layout]

    return get


def files(root):
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def pairs(root, layout):
    """Labelled images of a CT set and their labels."""
    for image in sorted(root.rglob("*.nii.gz")):
        label = image.as_posix()
        for old, new in LABEL_OF.get(layout, (("/images", "/labels"),)):
            label = label.replace(old, new)
        label = type(image)(label)
        if label != image and label.exists() and not image.name.startswith("._"):
            yield image, label


def task_files(name, labelled, unlabelled):
    return {
        "dataset.json",
        *(f"{folder}/{name}_{number}.nii.gz" for number in labelled for folder in ("imagesTr", "labelsTr")),
        *(f"{folder}/._{name}_{labelled[0]}.nii.gz" for folder in ("imagesTr", "labelsTr")),
        *(f"imagesTs/{name}_{number}.nii.gz" for number in unlabelled),
    }


EXPECTED = {  # layout: folder and files of a set of five cases
    "btcv": (
        "RawData",
        {
            *(
                f"Training/{k}/{k}{n}.nii.gz"
                for n in ("0001", "0002", "0003", "0004", "0035")
                for k in ("img", "label")
            ),
            "Testing/img/img0061.nii.gz",
        },
    ),
    "mmwhs": (
        "ct_train",
        {f"ct_train_{n}_{k}.nii.gz" for n in (1001, 1005, 1006, 1007, 1008) for k in ("image", "label")},
    ),
    "flare22": (
        "FLARE22Train",
        {
            *(f"images/FLARE22_Tr_{n}_0000.nii.gz" for n in ("0001", "0011", "0012", "0013", "0014")),
            *(f"labels/FLARE22_Tr_{n}.nii.gz" for n in ("0001", "0011", "0012", "0013", "0014")),
        },
    ),
    "amos22": (
        "amos22",
        {
            "dataset.json",
            *(f"{k}Tr/amos_{n}.nii.gz" for n in ("0001", "0004", "0005", "0006", "0507") for k in ("images", "labels")),
            *(f"{k}Va/amos_{n}.nii.gz" for n in ("0008", "0518") for k in ("images", "labels")),
            "imagesTs/amos_0002.nii.gz",
        },
    ),
    "covid19": (
        "COVID-19-20_v2",
        {
            *(
                f"Train/volume-covid19-A-{n}_{k}.nii.gz"
                for n in ("0003", "0011", "0047_1", "0012", "0013")
                for k in ("ct", "seg")
            ),
            "Validation/volume-covid19-A-0501_ct.nii.gz",
        },
    ),
    "brats2021": (
        "BraTS2021_Training_Data",
        {
            f"BraTS2021_{n}/BraTS2021_{n}_{k}.nii.gz"
            for n in ("00000", "00002", "00003", "00005", "00006")
            for k in ("flair", "t1", "t1ce", "t2", "seg")
        },
    ),
    "brats": ("Task01_BrainTumour", task_files("BRATS", ["001", "002", "003", "004", "005"], ["485"])),
    "msd_liver": ("Task03_Liver", task_files("liver", [0, 1, 2, 3, 4], [131])),
    "msd_lung": ("Task06_Lung", task_files("lung", ["001", "003", "004", "005", "006"], ["002"])),
    "msd_pancreas": ("Task07_Pancreas", task_files("pancreas", ["001", "004", "005", "006", "010"], ["002"])),
    "msd_hepaticvessel": (
        "Task08_HepaticVessel",
        task_files("hepaticvessel", ["001", "002", "004", "005", "007"], ["003"]),
    ),
    "msd_spleen": ("Task09_Spleen", task_files("spleen", [2, 3, 6, 8, 9], [4])),
    "msd_colon": ("Task10_Colon", task_files("colon", ["001", "005", "006", "007", "008"], ["002"])),
}


def test_there_is_a_layout_for_every_dataset():
    assert set(LAYOUTS) == {*EXPECTED, "ccccii"}


@pytest.mark.parametrize("layout", EXPECTED)
def test_names_are_those_of_the_dataset(layout, tmp_path, quick):
    folder, expected = EXPECTED[layout]
    root = write_synthetic_layout(tmp_path, layout, 5, **TINY)
    assert root == tmp_path / folder
    assert files(root) == expected
    volumes = [nib.load(root / name) for name in expected if name.endswith("gz") and "._" not in name]
    assert len({nib.aff2axcodes(volume.affine) for volume in volumes}) > 1


@pytest.mark.parametrize(
    ("layout", "labels"),
    [
        ("brats", ["background", "edema", "non-enhancing tumor", "enhancing tumour"]),
        ("msd_liver", ["background", "liver", "cancer"]),
        ("msd_lung", ["background", "cancer"]),
        ("msd_pancreas", ["background", "pancreas", "cancer"]),
        ("msd_hepaticvessel", ["background", "Vessel", "Tumour"]),
        ("msd_spleen", ["background", "spleen"]),
        ("msd_colon", ["background", "colon cancer primaries"]),
    ],
)
def test_list_of_a_task_is_as_the_decathlon_writes_it(layout, labels, tmp_path, quick):
    root = write_synthetic_layout(tmp_path, layout, 6, **TINY)
    content = json.loads((root / "dataset.json").read_text())
    assert content["labels"] == {str(value): name for value, name in enumerate(labels)}
    channels = ["FLAIR", "T1w", "t1gd", "T2w"] if layout == "brats" else ["CT"]
    assert content["modality"] == {str(number): name for number, name in enumerate(channels)}
    assert content["tensorImageSize"] == ("4D" if layout == "brats" else "3D")
    assert content["numTraining"] == len(content["training"]) == 6 and content["numTest"] == len(content["test"]) == 1
    for item in content["training"]:
        assert (root / item["image"]).is_file() and (root / item["label"]).is_file()
        assert item["image"].startswith("./imagesTr/") and item["label"].startswith("./labelsTr/")
    names = [item["image"] for item in content["training"]]
    assert len(set(names)) == 6 and names != sorted(names)
    assert (root / content["test"][0]).is_file()


def test_hidden_files_are_no_volumes(tmp_path, quick):
    root = write_synthetic_layout(tmp_path, "msd_spleen", 2, **TINY)
    hidden = (root / "imagesTr" / "._spleen_2.nii.gz").read_bytes()
    assert hidden[:4] == bytes.fromhex("00051607")  # AppleDouble's magic number, not that of gzip


def test_list_of_amos(tmp_path, quick):
    root = write_synthetic_layout(tmp_path, "amos22", 6, **TINY)
    content = json.loads((root / "dataset.json").read_text())
    assert content["labels"]["8"] == "arota" and content["labels"]["15"] == "prostate/uterus"
    images = [item["image"] for item in content["training"] + content["validation"]]
    assert len(images) == 6 + 2  # with an MR in each part
    mr = nib.load(root / "imagesTr" / "amos_0507.nii.gz")
    assert np.asarray(mr.dataobj).min() == 0


@pytest.mark.parametrize("layout", CT_VALUES)
def test_labels_and_images(layout, small_sets):
    root = small_sets(layout)
    seen = set()
    cases = list(pairs(root, layout))
    assert len(cases) == (4 if layout == "amos22" else 2)  # AMOS with an MR
    for path, label_path in cases:
        image, label = nib.load(path), nib.load(label_path)
        assert image.shape == label.shape and sorted(image.shape) == sorted(SMALL["spatial_size"])
        assert image.get_data_dtype() == np.int16
        np.testing.assert_array_equal(image.affine, label.affine)
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-3)
        seen |= set(np.unique(np.asarray(label.dataobj)).tolist())
        voxels, _ = load_volume(path)  # the checks of the preparation
        assert voxels.min() >= -1024
    assert seen == set(CT_VALUES[layout])


def test_orientations_do_not_mirror_the_body(small_sets):
    for path, label_path in pairs(small_sets("btcv"), "btcv"):
        label = nib.load(label_path)
        where = {}
        for value in (2, 3, 6):  # right kidney, left kidney, liver
            voxels = np.argwhere(np.asarray(label.dataobj) == value)
            where[value] = nib.affines.apply_affine(label.affine, voxels.mean(0))
        assert where[2][0] > 20 > -20 > where[3][0], path  # RAS: right is positive
        assert where[6][0] > 0 and where[6][2] > where[2][2], path


@pytest.mark.parametrize(
    ("layout", "value", "beside", "least", "most"),
    [  # median HU of a structure minus that of adjacent voxels with another label
        ("msd_liver", 2, 1, -70, -15),
        ("msd_pancreas", 2, 1, -70, -10),
        ("msd_hepaticvessel", 2, 0, -70, -10),
        ("msd_lung", 1, 0, 300, 900),
        ("covid19", 1, 0, 30, 500),
        ("msd_colon", 1, 0, 5, 200),
        ("mmwhs", 500, 205, 60, 400),
    ],
)
def test_structures_differ_from_what_is_beside_them(layout, value, beside, least, most, small_sets):
    for path, label_path in pairs(small_sets(layout), layout):
        image, label = (np.asarray(nib.load(file).dataobj).astype(int) for file in (path, label_path))
        inside = label == value
        around = np.any([np.roll(inside, step, axis) for axis in range(3) for step in (-2, 2)], axis=0)
        around &= label == beside
        assert least < np.median(image[inside]) - np.median(image[around]) < most, path


def test_brain_files(tmp_path):
    root = write_synthetic_layout(tmp_path, "brats", 2, **SMALL)
    other = write_synthetic_layout(tmp_path, "brats2021", 2, **SMALL)
    image, label = (nib.load(root / folder / "BRATS_001.nii.gz") for folder in ("imagesTr", "labelsTr"))
    assert image.shape == (*label.shape, 4) and image.get_data_dtype() == np.int16
    assert set(np.unique(np.asarray(label.dataobj))) == {0, 1, 2, 3}
    folder = other / "BraTS2021_00000"
    values, gd = (np.asarray(nib.load(folder / f"BraTS2021_00000_{k}.nii.gz").dataobj) for k in ("seg", "t1ce"))
    assert set(np.unique(values)) == {0, 1, 2, 4} and gd.shape == values.shape
    means = {value: gd[values == value].mean() for value in (1, 2, 4)}
    assert means[4] > 1.3 * means[2] > 1.3 * means[1]  # the rim takes up contrast agent, the core is dark


def test_slices_of_ccccii(tmp_path, quick):
    root = write_synthetic_layout(tmp_path, "ccccii", 6, spatial_size=(24, 20, 18))
    rows = list(csv.DictReader((root / "unzip_filenames.csv").read_text().splitlines()))
    assert list(rows[0]) == ["zip_file", "label", "patient_id", "scan_id", "n_slice"]
    assert [row["label"] for row in rows] == ["CP", "NCP", "Normal", "Normal", "CP", "CP", "NCP", "Normal"]
    assert [row["n_slice"] for row in rows] == ["18", "18", "18", "9", "18", "18", "18", "18"]
    assert rows[4]["patient_id"] == rows[5]["patient_id"] and rows[4]["scan_id"] != rows[5]["scan_id"]
    assert [row["zip_file"] for row in rows[:3]] == ["CP-1.zip", "COVID19-1.zip", "Normal-1.zip"]
    sizes = set()
    for row in rows:
        folder = root / row["label"] / row["patient_id"] / row["scan_id"]
        names = sorted((path.name for path in folder.iterdir()), key=lambda name: int(name.split(".")[0]))
        assert len(names) == int(row["n_slice"])
        with Image.open(folder / names[len(names) // 2]) as image:
            assert image.mode == "L"
            sizes.add(image.size)
    assert sizes == {(24, 20), (40, 36)}
    assert {path.suffix for path in root.rglob("*") if path.is_file()} == {".png", ".jpg", ".csv"}
    lexicographic = sorted(path.name for path in (root / "NCP" / rows[1]["patient_id"]).rglob("*.png"))
    assert lexicographic[:3] == ["0.png", "1.png", "10.png"]
    lesions = (root / "lesions_slices.csv").read_text().splitlines()
    assert lesions[0] == "imgpath" and len(lesions) > 10
    assert all((root / line).is_file() and not line.startswith("Normal") for line in lesions[1:])


def test_slices_show_the_head_first_and_the_front_on_top(tmp_path):
    root = write_synthetic_layout(tmp_path, "ccccii", 2, spatial_size=(32, 28, 24))
    paths = sorted((root / "CP").rglob("*.png"))
    stack = np.stack([np.asarray(Image.open(path)) for path in paths]).astype(int)  # (slices, rows, columns)
    dark = (stack < 110) & (stack > 70)  # lung, between air and tissue in the window
    inner = dark[:, 6:22, 8:24]
    assert inner[4:12].sum() > 2 * inner[20:].sum()  # the abdomen comes last
    assert stack[8:16, :14].mean() < stack[8:16, 14:].mean()  # spine and table are behind


@pytest.mark.parametrize("layout", ["btcv", "amos22", "msd_spleen", "brats", "ccccii"])
def test_same_seed_same_bytes_and_a_second_call_keeps_them(layout, tmp_path, quick):
    root = write_synthetic_layout(tmp_path / "a", layout, 3, **TINY)
    again = write_synthetic_layout(tmp_path / "b", layout, 3, **TINY)
    other = write_synthetic_layout(tmp_path / "c", layout, 3, seed=1, **TINY)

    def crc(folder):
        return {name: zlib.crc32((folder / name).read_bytes()) for name in files(folder)}

    before = crc(root)
    assert before == crc(again) and before.keys() == crc(other).keys()
    changed = {name for name, value in crc(other).items() if before[name] != value}
    assert changed >= {name for name in before if name.startswith(("imagesTr/spleen", "imagesTr/BRATS", "CP/"))}
    stamps = {path: path.stat().st_mtime_ns for path in root.rglob("*[0-9].*g*") if "._" not in path.name}
    broken = sorted(stamps)[0]
    write_synthetic_layout(tmp_path / "a", layout, 3, **TINY)
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    broken.write_bytes(broken.read_bytes()[:-9])
    write_synthetic_layout(tmp_path / "a", layout, 3, **TINY)
    assert crc(root) == before
    write_synthetic_layout(tmp_path / "a", layout, 3, seed=1, **TINY)
    assert crc(root) == crc(other)


def test_a_case_does_not_depend_on_how_many_there_are(tmp_path, quick):
    few = write_synthetic_layout(tmp_path / "few", "msd_colon", 3, **TINY)
    many = write_synthetic_layout(tmp_path / "many", "msd_colon", 6, **TINY)
    for name in ("imagesTr/colon_001.nii.gz", "labelsTr/colon_006.nii.gz"):
        assert (few / name).read_bytes() == (many / name).read_bytes()


def test_given_spacing_is_used(tmp_path, quick):
    root = write_synthetic_layout(tmp_path, "mmwhs", 2, spatial_size=(8, 7, 9), spacing=(6.0, 6.0, 7.5))
    for path in root.glob("*.nii.gz"):
        assert sorted(map(float, nib.load(path).header.get_zooms())) == [6.0, 6.0, 7.5]


def test_turning_keeps_every_voxel_in_its_place():
    array = np.arange(24).reshape(2, 3, 4)
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = (-5, 10, 20)
    turned, moved = turn(array, affine, "PIR")
    assert nib.aff2axcodes(moved) == ("P", "I", "R")
    for index in np.ndindex(turned.shape):
        place = nib.affines.apply_affine(moved, index)
        assert turned[index] == array[tuple(np.rint((place - affine[:3, 3]) / (2, 3, 4)).astype(int))]


def test_choice_of_ids():
    validation, training = [f"{n:04d}" for n in range(35, 41)], [f"{n:04d}" for n in range(1, 11)]
    assert choose(training, validation, 6) == ["0001", "0002", "0003", "0004", "0035", "0036"]
    assert choose(training, validation, 16) == training + validation
    assert numbers((2, 5), 4) == [2, 5, 6, 7]
    assert unused([2, 5, 6], 3) == [3, 4, 7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layout": "lits"}, "layout must be one of amos22, .* got layout='lits'"),
        ({"num_cases": 1}, "num_cases must be 2 to 30 for layout 'btcv', got num_cases=1"),
        ({"num_cases": 31}, "num_cases must be 2 to 30 for layout 'btcv', got num_cases=31"),
        ({"seed": -1}, "seed must be 0 or more, got seed=-1"),
        ({"spacing": (1.0, 1.0, 0.0)}, "spacing must be three positive"),
        ({"spatial_size": (8, 8)}, "spatial_size must be three"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_synthetic_layout(tmp_path, **{"layout": "btcv", **arguments})
    assert not list(tmp_path.iterdir())


def test_command(tmp_path, capsys, quick):
    arguments = [str(tmp_path), "--layout", "flare22", "--num_volumes", "2", "--spatial_size", "8", "7", "9"]
    assert main(arguments) == 0
    assert "2 labelled cases in the layout of flare22" in capsys.readouterr().out
    assert len(list((tmp_path / "FLARE22Train" / "images").iterdir())) == 2
    with pytest.raises(SystemExit):
        main([*arguments, "--vary"])
    assert "cannot be combined with --layout" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("layout", "files"),
    [
        ("msd_colon", ("imagesTr/colon_001.nii.gz", "imagesTs/colon_002.nii.gz")),
        ("amos22", ("imagesTr/amos_0507.nii.gz", "imagesVa/amos_0518.nii.gz", "imagesTs/amos_0002.nii.gz")),
    ],
)
def test_case_does_not_depend_on_the_number_of_cases(tmp_path, layout, files):
    """The scene has two centres, which the cases use in turn."""
    made = [write_synthetic_layout(tmp_path / str(count), layout, count, **TINY) for count in (3, 4, 6)]
    for file in files:
        assert len({(root / file).read_bytes() for root in made}) == 1, file
