"""Every kind of damage and mistake gives a cause that names the file, what was found and what was expected."""

import gzip
import os
import struct
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from mim_components.data import Case, SegmentationChecker, VolumeError
from mim_components.data.check import voxels as voxels_module
from mim_components.data.grids import grid_fault
from mim_components.labels import LabelSet

LABELS = LabelSet(("background", "organ", "lesion"), {}, {})
HEART = LabelSet(("background", "myocardium", "atrium"), {205: 1, 420: 2}, {})
CHECK = SegmentationChecker(LABELS)
LABEL = np.arange(60).reshape(3, 4, 5).astype(np.uint8) % 3


@pytest.fixture
def pair(write):
    """A case of image and label, each given as an array, a seed, or a path."""

    def make(image=0, label="label", **options):
        paths = [
            content if isinstance(content, os.PathLike) else write(name, content, **options)
            for name, content in (("img/a.nii.gz", image), ("label/a.nii.gz", label))
        ]
        return Case("a", (paths[0],), paths[1])

    return make


def cause(case, checker=CHECK):
    with pytest.raises(VolumeError) as raised:
        checker(case)
    return str(raised.value)


def mr(seed=0, channels=0):
    shape = (3, 4, 5, channels) if channels else (3, 4, 5)
    return np.random.default_rng(seed).uniform(0, 500, shape).astype(np.float32)


# --- what passes


def test_fit_case_has_no_notes_and_a_digest_of_all_bytes(pair):
    facts = CHECK(case := pair())
    assert facts.notes == () and len(facts.digest) == len(facts.content) == 64
    assert CHECK(case) == facts
    label = LABEL.copy()
    label[0, 0, 0] = 2
    other = CHECK(pair(label=label))
    assert other.digest != facts.digest and other.content == facts.content
    assert CHECK(pair(image=1)).content != facts.content


def test_image_has_the_same_content_in_every_format_of_file(write):
    label = write("l.nii.gz", "label")
    image = np.random.default_rng(0).integers(-1000, 1000, (3, 4, 5))
    contents = {
        CHECK(Case("a", (write(name, image.astype(dtype)),), label)).content
        for name, dtype in (("a.nii", np.int16), ("b.nii.gz", np.int16), ("c.nii", np.float32))
    }
    assert len(contents) == 1


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("axes", ["LPS", "PIR", "SAL"])
@pytest.mark.parametrize("part", [2**22, 7])
def test_turned_copy_of_an_image_has_its_content(write, monkeypatch, axes, modality, part):
    monkeypatch.setattr(voxels_module, "_PART", part)
    checker = SegmentationChecker(LABELS, 1, modality)
    paths = [write(name, content) for name, content in (("i.nii", mr() - 200), ("l.nii", "label"))]
    start = nib.orientations.axcodes2ornt("RAS")
    turned = []
    for path in paths:
        to = nib.orientations.ornt_transform(start, nib.orientations.axcodes2ornt(axes))
        turned.append(path.with_stem(f"{path.stem}_{axes}"))
        nib.save(nib.load(path).as_reoriented(to), turned[-1])
    assert nib.load(turned[0]).shape != (3, 4, 5) or axes == "LPS"
    content = checker(Case("a", (paths[0],), paths[1])).content
    assert checker(Case("b", (turned[0],), turned[1])).content == content
    mirrored = write("m.nii", nib.load(turned[0]).get_fdata(dtype=np.float32)[::-1], nib.load(turned[0]).affine)
    assert checker(Case("c", (mirrored,), turned[1])).content != content


def test_what_is_odd_is_noted(write):
    image = np.random.default_rng(0).integers(-1000, 1000, (3, 4, 1)).astype(np.int16)
    facts = CHECK(Case("a", (write("i.nii", image),), write("l.nii", np.zeros((3, 4, 1), np.uint8))))
    assert facts.notes == ("a single slice, shape (3, 4, 1)", "the label holds background only")


def test_labels_stored_as_floats_with_a_scale_or_a_trailing_axis_pass(tmp_path, pair):
    CHECK(pair(label=LABEL.astype(np.float64)))
    CHECK(pair(label=LABEL[..., None]))
    image = nib.Nifti1Image(LABEL, np.diag([1, 1, 2, 1]))
    image.header.set_slope_inter(2, 0)
    nib.save(image, tmp_path / "scaled.nii")
    scaled = pair(label=tmp_path / "scaled.nii")
    SegmentationChecker(LabelSet(tuple(["background", *"abcd"]), {}, {}))(scaled)


def test_rounded_affine_passes(tmp_path, pair):
    affine = np.diag([1, 1, 2, 1.0])
    affine[:3, 3] = 0.01, -0.01, 0.01
    nib.save(nib.Nifti1Image(LABEL, affine), tmp_path / "moved.nii")
    CHECK(pair(label=tmp_path / "moved.nii"))


def test_names_with_odd_characters_pass(write):
    CHECK(Case("a", (write("ä \"'\n/x.nii", 0),), write("ü ,/y.nii", "label")))


# --- files and headers


@pytest.mark.parametrize("which", ["image", "label"])
def test_what_is_no_regular_file(tmp_path, pair, which):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "html.nii").write_text("<!DOCTYPE html>" * 50)
    for name, message in (
        ("folder", "is a folder, expected a file"),
        ("empty", "the file is empty (0 bytes)"),
        ("pipe", "is not a regular file (FIFO, socket or device)"),
        ("loop", "a link that leads in a circle"),
        ("gone", "no such file"),
        ("html.nii", "not a NIfTI file: it is a web page (a download that asked for a login?)"),
    ):
        where = "" if which == "image" else f"{tmp_path.name}/{name}: "
        assert cause(pair(**{which: tmp_path / name})) == where + message


def test_faults_of_image_and_label_are_named_together(tmp_path, pair):
    assert cause(pair(image=tmp_path / "a", label=tmp_path / "b")) == f"no such file; {tmp_path.name}/b: no such file"


@pytest.mark.parametrize("which", ["image", "label"])
def test_damaged_bytes(pair, which):
    random = np.random.default_rng(0)  # so that the files are longer than the part read for the header
    image = random.integers(-1000, 1000, (12, 12, 12)).astype(np.int16)
    case = pair(image, random.integers(0, 3, (12, 12, 12)).astype(np.uint8))
    path = case.image[0] if which == "image" else case.label
    content = path.read_bytes()
    where = "" if which == "image" else "label/a.nii.gz: "
    path.write_bytes(content[:-8])
    assert cause(case).startswith(where + "truncated: the compressed data end before")
    flipped = bytearray(content)
    flipped[-6] ^= 1  # in the checksum
    path.write_bytes(flipped)
    assert cause(case).startswith(where + "damaged compressed data: CRC check failed")


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ((3, 32767, 32767, 32767), "more than max_voxels=2,147,483,648"),
        ((3, -3, 4, 5), "has an empty or negative axis"),
        ((3, 1400, 1200, 1200), "the header claims"),
        ((2, 3, 4), "2D, shape (3, 4); expected a 3D volume"),
        ((4, 3, 4, 2, 2), "4D, shape (3, 4, 2, 2); expected one 3D volume per file"),
    ],
)
def test_absurd_headers_are_refused_without_allocating(pair, dims, message):
    case = pair()
    content = bytearray(gzip.decompress(case.label.read_bytes()))
    content[40 : 40 + 2 * len(dims)] = struct.pack(f"<{len(dims)}h", *dims)
    case.label.write_bytes(gzip.compress(content))
    tracemalloc.start()
    try:
        assert "label/a.nii.gz: " in (text := cause(case)) and message in text
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_affine_that_is_missing_singular_or_not_finite(pair):
    case = pair()
    content = bytearray(gzip.decompress(case.label.read_bytes()))
    content[252:256] = struct.pack("<2h", 0, 0)  # qform_code, sform_code
    case.label.write_bytes(gzip.compress(content))
    assert "label/a.nii.gz: the affine is missing" in cause(case)
    content[252:256] = struct.pack("<2h", 0, 2)
    for row, message in (((0, 0, 0, 0), "singular"), ((np.nan, 0, 0, 0), "not finite")):
        content[280:296] = struct.pack("<4f", *row)
        case.label.write_bytes(gzip.compress(content))
        assert f"label/a.nii.gz: the affine is {message}" in cause(case)


@pytest.mark.parametrize("label", [None, 3])
def test_case_without_a_label_map(pair, label):
    found = "none" if label is None else "the number 3"
    assert cause(Case("a", pair().image, label)) == f"a label map is needed, the label is {found}"


def test_unknown_modality():
    with pytest.raises(ValueError, match="modality must be one of CT, MR, got 'PET'"):
        SegmentationChecker(LABELS, 1, "PET")


# --- where a volume lies


def test_grid_is_that_of_the_qform_where_only_that_has_the_spacing_of_pixdim(pair):
    # the sform says 1 x 1 x 2 mm, pixdim and qform 1 x 1 x 1
    case = pair()
    content = bytearray(gzip.decompress(case.label.read_bytes()))
    content[80:92] = struct.pack("<3f", 1, 1, 1)
    content[252:254] = struct.pack("<h", 1)
    case.label.write_bytes(gzip.compress(content))
    assert cause(case) == "label/a.nii.gz: its spacing is 1 x 1 x 1 mm, expected 1 x 1 x 2"


def test_volume_of_many_metres_is_refused_before_it_is_resampled(pair):
    affine = np.diag([1000.0, 1000.0, 2000.0, 1.0])  # micrometres, say
    assert cause(pair(affine=affine)) == "the volume is 3 x 4 x 10 m large; expected mm"


# --- intensities


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((3, 4, 5), -1024, np.int16), "constant: every voxel is -1024"),
        (np.linspace(-1024, -600, 60).reshape(3, 4, 5).astype(np.int16), "air only"),
        (np.linspace(0, 1, 60).reshape(3, 4, 5), "not HU: values from 0 to 1 (normalised, or a mask)"),
        (np.arange(60).reshape(3, 4, 5).astype(np.int16) % 9, "not HU: 9 different values from 0 to 8 (a label map?)"),
    ],
)
def test_image_that_is_no_ct(pair, image, message):
    assert message in cause(pair(image=image))


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_voxel_that_only_a_damaged_float_holds(pair, modality):
    image = mr()
    image[1, 2, 3] = 1e30
    text = "to 1e+30 are no intensities (damaged voxels?)"
    assert cause(pair(image=image), SegmentationChecker(LABELS, 1, modality)).endswith(text)


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxel_that_is_not_finite(pair, modality, value):
    image = mr()
    image[1, 2, 3] = value
    assert (
        cause(pair(image=image), SegmentationChecker(LABELS, 1, modality)) == "NaN or infinite values in 1 of 60 voxels"
    )


def test_ct_of_raw_label_values_is_a_label_map(pair):
    # 205 to 420 could be HU, but only these two values are no scan
    image = np.where(LABEL > 0, 205, 420).astype(np.int16)
    label = np.where(LABEL > 0, 205, 0).astype(np.int16)
    text = cause(pair(image, label), SegmentationChecker(HEART))
    assert text == "a label map? All voxels are label values (0, 205, 420)"


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_image_and_label_that_are_swapped(pair, modality):
    scan = np.linspace(-1000, 1000, 60 * 4).reshape(3, 4, 20).astype(np.int16)
    label = np.zeros((3, 4, 20), np.uint8)
    label[1:] = 2
    assert cause(pair(image=label, label=scan), SegmentationChecker(LABELS, 1, modality)) == (
        "image and label seem to be swapped: all voxels of the image are label values (0 to 2), "
        "label/a.nii.gz holds 240 different values"
    )


# --- channels


MR4 = SegmentationChecker(LABELS, 4, "MR")


def test_four_channels_in_one_file_or_in_four(write, pair):
    image = mr(channels=4)
    assert MR4(pair(image=image)).notes == ()
    files = tuple(write(f"c/{number}.nii", image[..., number]) for number in range(4))
    assert MR4(Case("a", files, write("l.nii", "label"))).notes == ()


def test_channel_that_is_empty_is_noted_and_constant_ones_are_bad(pair):
    image = mr(channels=4)
    image[..., 1] = 0
    assert MR4(pair(image=image)).notes == ("channel 2: every voxel is 0",)
    image[..., 2] = 7
    assert cause(pair(image=image)) == "4D, shape (3, 4, 5, 4); expected one 3D volume per file"
    assert cause(pair(image=image), MR4) == "channel 3: constant: every voxel is 7"
    assert cause(pair(image=np.zeros_like(image)), MR4) == "constant: every voxel is 0"


@pytest.mark.parametrize(
    ("shape", "found"), [((3, 4, 5, 3), "4D, shape (3, 4, 5, 3)"), ((3, 4, 5), "3D, shape (3, 4, 5)")]
)
def test_wrong_number_of_channels(pair, shape, found):
    assert cause(pair(image=np.ones(shape)), MR4) == f"{found}; expected one 4D volume of 4 channels"


def test_wrong_number_of_files(pair):
    case = pair()
    text = "2 image files, expected 1 or one for each of 4 channels"
    assert cause(Case("a", case.image * 2, case.label), MR4) == text


def test_channels_on_different_grids(write):
    files = [write(f"c/{number}.nii", mr(number)) for number in range(4)]
    label = write("l.nii", "label")
    write("c/3.nii", mr(), np.diag([1, 1, 3, 1]))
    assert cause(Case("a", tuple(files), label), MR4) == "c/3.nii: its spacing is 1 x 1 x 3 mm, expected 1 x 1 x 2"
    write("c/3.nii", mr()[:2])
    assert cause(Case("a", tuple(files), label), MR4) == "c/3.nii: shape (2, 4, 5), the image has (3, 4, 5)"
    files[2].write_bytes(b"")
    assert "c/2.nii: the file is empty (0 bytes)" in cause(Case("a", tuple(files), label), MR4)


def test_mr_of_labels_only(pair):
    assert cause(pair(image=LABEL), SegmentationChecker(LABELS, 1, "MR")) == (
        "a label map? All voxels are label values (0 to 2)"
    )


# --- grids


def moved(**shift):
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    for axis, value in shift.items():
        affine["xyz".index(axis), 3] = value
    return affine


MIRRORED = np.diag([-1.0, 1.0, 2.0, 1.0])
MIRRORED[0, 3] = 2.0
TURNED = moved()
TURNED[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (moved(z=2), "its position differs by 0 x 0 x 2 mm"),
        (moved(x=0.06), "its position differs by 0.06 x 0 x 0 mm"),
        (MIRRORED, "its axes are LAS, expected RAS (mirrored or turned)"),
        (np.diag([1, 1, 2.5, 1]), "its spacing is 1 x 1 x 2.5 mm, expected 1 x 1 x 2"),
        (TURNED, "it is turned: its corners are up to"),
    ],
)
def test_label_on_another_grid(pair, tmp_path, affine, message):
    nib.save(nib.Nifti1Image(LABEL, affine), tmp_path / "label.nii")
    assert cause(pair(label=tmp_path / "label.nii")).startswith(f"{tmp_path.name}/label.nii: {message}")


def test_label_of_another_shape(pair):
    assert cause(pair(label=LABEL[:2])) == "label/a.nii.gz: shape (2, 4, 5), the image has (3, 4, 5)"


def test_tolerance_is_a_share_of_the_smallest_edge():
    # 0.05 of 0.5 mm
    affine, other = np.diag([0.5, 0.5, 5, 1]), np.diag([0.5, 0.5, 5, 1])
    other[2, 3] = 0.024
    assert grid_fault((2, 2, 2), affine, other) == ""
    other[2, 3] = 0.026
    assert grid_fault((2, 2, 2), affine, other) == "its position differs by 0 x 0 x 0.026 mm"


# --- label values


def with_values(*values, dtype=np.float32):
    label = LABEL.astype(dtype)
    label.flat[: len(values)] = values
    return label


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (with_values(7, 7), "label values 7 (2 voxels) are unknown; known: 0 to 2"),
        (with_values(-1, 3, dtype=np.int16), "label values -1 (1 voxel), 3 (1 voxel) are unknown; known: 0 to 2"),
        (with_values(0.5, 0.5), "label values must be whole numbers, but not whole in 2 voxels, such as 0.5"),
        (with_values(0.9999999), "label values must be whole numbers, but not whole in 1 voxel, such as 0.9999999"),
        (with_values(np.nan), "NaN or infinite values in 1 voxel"),
        (with_values(np.inf, 0.5), "NaN or infinite values in 1 voxel"),
        (with_values(70000, dtype=np.int32), "label values 70000 (1 voxel) are unknown; known: 0 to 2"),
        (with_values(1e20), "label values 100000002004087734272 (1 voxel) are unknown; known: 0 to 2"),
        (
            with_values(*range(3, 12)),
            "label values 3 (1 voxel), 4 (1 voxel), 5 (1 voxel), 6 (1 voxel), 7 (1 voxel) and 4 more are unknown; "
            "known: 0 to 2",
        ),
    ],
)
def test_label_values_that_are_not_known(pair, label, message):
    assert cause(pair(label=label)) == f"label/a.nii.gz: {message}"


def test_raw_values_are_what_counts(pair):
    heart = np.choose(LABEL, [0, 205, 420]).astype(np.int16)
    assert SegmentationChecker(HEART)(pair(label=heart)).notes == ()
    assert cause(pair(), SegmentationChecker(HEART)) == (
        "label/a.nii.gz: label values 1 (20 voxels), 2 (20 voxels) are unknown; known: 0, 205, 420"
    )


def test_what_a_list_says_of_labels():
    assert SegmentationChecker(HEART, 1, "MR").datalist_facts() == {
        "modality": {"0": "MR"},
        "labels": {"0": "background", "205": "myocardium", "420": "atrium"},
        "tensorImageSize": "3D",
    }
    assert CHECK.datalist_facts()["labels"] == {"0": "background", "1": "organ", "2": "lesion"}


def test_real_four_channels(real_data):
    folder = real_data / "brainlesion_mri"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    image = tuple(folder / f"TCGA-FG-6692_{channel}.nii.gz" for channel in ("fla", "t1", "t1c", "t2"))
    brats = LabelSet(("background", "core", "edema", "enhancing"), {1: 1, 2: 2, 4: 3}, {})
    case = Case("glioma", image, folder / "TCGA-FG-6692_seg.nii.gz")
    assert SegmentationChecker(brats, 4, "MR")(case).notes == ()
    swapped = Case("swapped", (case.label, *image[1:]), image[0])
    assert "label values" in cause(swapped, SegmentationChecker(brats, 4, "MR"))
