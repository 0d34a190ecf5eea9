import gzip
import os
import shutil
import struct
import tracemalloc
import zlib

import nibabel as nib
import numpy as np
import pytest

from mim_components.data import BadVolumesError, FoundVolumes, VolumeSource, prepare_volumes
from mim_components.data.find.walk import find_volumes
from mim_components.data.load.scans import load_volume
from mim_components.data.read.limits import check_intensities
from tests.nifti_bytes import patch


def cause(path):
    with pytest.raises(BadVolumesError) as raised:
        load_volume(path)
    (bad,) = raised.value.bad
    assert str(path) in str(raised.value)
    return bad.cause


# --- damaged bytes


@pytest.mark.usefixtures("decoder")
def test_truncated_gzip(write_nifti):
    path = write_nifti("a.nii.gz")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "truncated: the compressed data end before" in cause(path)


@pytest.mark.usefixtures("decoder")
def test_gzip_without_its_trailer(write_nifti):
    path = write_nifti("a.nii.gz")
    path.write_bytes(path.read_bytes()[:-8])
    assert "truncated: the compressed data end before their end marker and checksum" in cause(path)


@pytest.mark.usefixtures("decoder")
def test_every_bit_flip_in_compressed_voxels_is_noticed(write_nifti):
    path = write_nifti("a.nii.gz")
    content = path.read_bytes()
    for position in range(30, len(content), 211):
        flipped = bytearray(content)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        assert cause(path), position


@pytest.mark.usefixtures("decoder")
def test_bit_flip_in_compressed_metaimage_is_noticed(tmp_path, ct):
    header = b"ObjectType = Image\nNDims = 3\nDimSize = 10 12 14\nElementType = MET_SHORT\nCompressedData = True\n"
    body = bytearray(zlib.compress(ct.tobytes(order="F")))
    path = tmp_path / "a.mha"
    path.write_bytes(header + b"ElementDataFile = LOCAL\n" + body)
    np.testing.assert_array_equal(load_volume(path)[0], ct[::-1, ::-1])  # ITK alone reads wrong values silently
    body[-1] ^= 1  # in the checksum: only a reader that goes to the end sees it
    path.write_bytes(header + b"ElementDataFile = LOCAL\n" + body)
    assert "damaged compressed data" in cause(path)


@pytest.mark.usefixtures("decoder")
def test_truncated_metaimage_and_nrrd(tmp_path, ct):
    meta = b"NDims = 3\nDimSize = 10 12 14\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    (tmp_path / "a.mha").write_bytes(meta + ct.tobytes()[:-2])
    assert "the header claims 3,360 bytes, the file has 3,358 (truncated?)" in cause(tmp_path / "a.mha")
    nrrd = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 10 12 14\nencoding: gzip\nendian: little\n\n"
    (tmp_path / "b.nrrd").write_bytes(nrrd + gzip.compress(ct.tobytes())[:-20])
    assert "truncated: the compressed data end" in cause(tmp_path / "b.nrrd")


def test_more_voxels_than_the_header_claims(write_nifti):
    array = np.random.default_rng(0).integers(-1000, 1000, (20, 20, 40)).astype(np.int16)
    path = patch(write_nifti("a.nii", array), (46, struct.pack("<h", 20)))  # 20 of 40 slices of 800 bytes
    assert "the header claims 16,000 bytes, but there are 16,000 more (damaged header?)" in cause(path)


@pytest.mark.usefixtures("decoder")
def test_truncated_zlib_of_metaimage(tmp_path, ct):
    header = b"NDims = 3\nDimSize = 10 12 14\nElementType = MET_SHORT\nCompressedData = True\n"
    header += b"ElementDataFile = LOCAL\n"
    (tmp_path / "a.mha").write_bytes(header + zlib.compress(ct.tobytes())[:-6])
    assert "truncated: the compressed data end before" in cause(tmp_path / "a.mha")


# --- not a volume at all


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty (0 bytes)"),
        (b"<!DOCTYPE html><html>log in</html>" * 20, "not a NIfTI file: it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n" * 10, "not a NIfTI file: it is a Git LFS pointer"),
        (b"\x93NUMPY" * 100, "not a NIfTI file: it begins with"),
        (b"\x1f\x8b" + b"\0" * 400, "damaged compressed data"),
        (struct.pack("<i", 348) + b"\0" * 10, "truncated: 14 bytes, the header alone has 348"),
    ],
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.usefixtures("decoder")
def test_content_of_another_kind(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert message in cause(tmp_path / name)


def test_what_is_no_regular_file(tmp_path):
    (tmp_path / "folder.nii").mkdir()
    os.mkfifo(tmp_path / "pipe.nii.gz")
    os.symlink(tmp_path / "gone", tmp_path / "dangling.nii")
    os.symlink(tmp_path / "loop.nii", tmp_path / "loop.nii")
    found = find_volumes(tmp_path)
    missing = tmp_path / "missing.nii"
    found.sources.append(VolumeSource(missing, (missing,)))
    with pytest.raises(BadVolumesError) as raised:
        prepare_volumes(found, tmp_path / "cache", progress=False)
    causes = {os.path.basename(item.path): item.cause for item in raised.value.bad}
    assert causes == {
        "folder.nii": "is a folder, expected a file",
        "pipe.nii.gz": "is not a regular file (FIFO, socket or device)",
        "dangling.nii": "a link to a file that does not exist",
        "loop.nii": "a link that leads in a circle",
        "missing.nii": "no such file",
    }


# --- headers


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ((3, 32767, 32767, 32767), "more than max_voxels=2,147,483,648"),
        ((3, -3, 12, 14), "shape (-3, 12, 14) has an empty or negative axis"),
        ((3, 10, 0, 14), "shape (10, 0, 14) has an empty or negative axis"),
        ((2, 10, 12, 14), "2D, shape (10, 12); expected a 3D volume"),
        ((4, 10, 12, 7, 2), "4D, shape (10, 12, 7, 2); expected one 3D volume per file"),
        ((9, 10, 12, 14), "damaged NIfTI header: dim[0] is 9, expected 3"),
        ((3, 1400, 1200, 1200), "the header claims 4,032,000,"),
    ],
)
def test_absurd_sizes_are_refused_without_allocating(write_nifti, name, dims, message):
    path = patch(write_nifti(name), (40, struct.pack(f"<{len(dims)}h", *dims)))
    tracemalloc.start()
    try:
        assert message in cause(path)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


@pytest.mark.usefixtures("decoder")
def test_small_gzip_that_claims_more_than_it_holds_is_read_only_as_far_as_it_goes(write_nifti):
    path = patch(write_nifti("a.nii.gz"), (40, struct.pack("<4h", 3, 100, 120, 70)))  # 1.7 MB of 3 kB: possible
    assert "truncated: the header claims 1,680,352 bytes, the data end after 3,712" in cause(path)


@pytest.mark.parametrize("text", ["100000 100000 100000", "-5 12 14", "10 12", "ten 12 14"])
@pytest.mark.parametrize("form", ["mha", "nrrd"])
def test_absurd_sizes_of_text_headers(tmp_path, form, text):
    heads = {
        "mha": f"NDims = 3\nDimSize = {text}\nElementType = MET_SHORT\nElementDataFile = LOCAL\n",
        "nrrd": f"NRRD0004\ntype: short\ndimension: 3\nsizes: {text}\nencoding: raw\nendian: little\n\n",
    }
    path = tmp_path / f"a.{form}"
    path.write_bytes(heads[form].encode() + b"\0" * 3360)
    message = cause(path)
    expected = ("more than max_voxels", "empty or negative axis", "2D, shape (10, 12)", "expected whole numbers")
    assert any(part in message for part in expected)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("ElementNumberOfChannels = 3", "3 values per voxel (colour or vectors), expected 1"),
        ("BinaryData = False", "voxels are stored as text"),
        ("ElementType = MET_STRING", "voxels of type MET_STRING"),
    ],
)
def test_metaimage_of_another_kind(tmp_path, ct, field, message):
    head = f"NDims = 3\nDimSize = 10 12 14\nElementType = MET_SHORT\n{field}\nElementDataFile = LOCAL\n"
    (tmp_path / "a.mha").write_bytes(head.encode() + ct.tobytes())
    assert message in cause(tmp_path / "a.mha")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("NRRD0004\ntype: block\nsizes: 10 12 14\nencoding: raw\n\n", "voxels of type block"),
        ("NRRD0004\ntype: short\nsizes: 10 12 14\nencoding: bzip2\n\n", "encoding bzip2 is not supported"),
        ("NRRD0004\ntype: short\nsizes: 10 12 14\nencoding: raw\nline skip: 2\n\n", "line skip is not supported"),
        ("NRRD0004\ntype: short\nsizes: 10 12 14\nencoding: gzip\nbyte skip: 2\n\n", "byte skip in compressed data"),
        ("NRRD0004\ntype: short\nencoding: raw\n\n", "not a complete NRRD header: no sizes"),
        ("<html>", "not an NRRD file: it begins with '<html>'"),
        ("", "the file is empty (0 bytes)"),
    ],
)
def test_nrrd_of_another_kind(tmp_path, head, message):
    (tmp_path / "a.nrrd").write_bytes(head.encode())
    assert message in cause(tmp_path / "a.nrrd")


@pytest.mark.parametrize(
    ("data_file", "message"),
    [
        ("../a.raw", "lies outside the folder of the header"),
        ("gone.raw", "'gone.raw' is missing"),
        ("LIST", "a list of"),
    ],
)
def test_data_file_of_a_header(tmp_path, ct, data_file, message):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.raw").write_bytes(ct.tobytes())
    head = f"NDims = 3\nDimSize = 10 12 14\nElementType = MET_SHORT\nElementDataFile = {data_file}\n"
    (tmp_path / "sub" / "a.mhd").write_text(head)
    assert message in cause(tmp_path / "sub" / "a.mhd")
    (tmp_path / "sub" / "b.nhdr").write_text(
        f"NRRD0004\ntype: short\ndimension: 3\nsizes: 10 12 14\nencoding: raw\ndata file: {data_file}\n"
    )
    assert message in cause(tmp_path / "sub" / "b.nhdr")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 5, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]), "colour voxels (RGB), shape (4, 5, 6)"),
        (np.ones((4, 5, 6), dtype=np.complex64), "complex voxels, shape (4, 5, 6)"),
    ],
)
def test_voxels_that_are_no_real_numbers(write_nifti, array, message):
    assert message in cause(write_nifti("a.nii.gz", array))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((0, 0, 0, 0), "the affine is singular"),
        ((2, 0, 0, np.nan), "the affine is not finite"),
        ((0, 3, 0, 0), "the affine is singular (axes in one plane"),
    ],
)
def test_affine_that_cannot_be_inverted(write_nifti, row, message):
    assert message in cause(patch(write_nifti("a.nii.gz"), (280, struct.pack("<4f", *row))))  # srow_x


def test_header_in_front_of_its_voxels(write_nifti):
    assert "inside the header" in cause(patch(write_nifti("a.nii"), (108, struct.pack("<f", 0))))
    assert "damaged NIfTI header" in cause(patch(write_nifti("a.nii"), (108, struct.pack("<f", np.nan))))
    assert "damaged NIfTI header" in cause(patch(write_nifti("a.nii"), (70, struct.pack("<h", 9999))))
    assert "without voxels" in cause(patch(write_nifti("a.nii"), (344, b"ni1\0")))


def test_affine_that_is_missing(tmp_path, write_nifti):
    path = patch(write_nifti("a.nii.gz"), (252, struct.pack("<2h", 0, 0)))  # qform_code, sform_code
    with pytest.raises(BadVolumesError, match="the affine is missing .neither qform nor sform is set."):
        prepare_volumes([VolumeSource(path, (path,))], tmp_path / "cache", progress=False)
    assert load_volume(path)[0].shape == (10, 12, 14)  # accepted for inference, whose result goes back to the same grid


def test_affine_of_a_volume_far_away(write_nifti):
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[0, 3] = 1e30
    assert cause(write_nifti("a.nii.gz", affine=affine)) == (
        "the affine places the volume 1e+30 mm away (damaged header?)"
    )


def test_spacing_of_zero_needs_a_sform(write_nifti):
    zero = struct.pack("<3f", 2, 0, 4)  # pixdim
    load_volume(patch(write_nifti("a.nii"), (80, zero)))
    path = patch(write_nifti("b.nii"), (80, zero), (252, struct.pack("<2h", 1, 0)))  # qform_code, sform_code
    assert cause(path) == "the spacing is unknown: pixdim 2 x 0 x 4 mm, and there is no sform"


# --- voxels


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_voxel_that_is_not_finite(write_nifti, ct, value):
    array = ct.astype(np.float32)
    array[3, 4, 5] = value
    assert cause(write_nifti("a.nii.gz", array)) == "NaN or infinite values in 1 of 1,680 voxels"


def test_all_voxels_nan(write_nifti, ct):
    array = np.full(ct.shape, np.nan, dtype=np.float32)
    assert cause(write_nifti("a.nii.gz", array)) == "NaN or infinite values in 1,680 of 1,680 voxels"


@pytest.mark.parametrize(
    ("low", "high", "dtype", "message"),
    [
        (-1024, -1023, "i2", "constant: every voxel is -1024"),
        (-1024, -600, "i2", "air only: values from -1024 to -601 HU"),
        (0, 2, "u1", "not HU: values from 0 to 1 (normalised, or a mask)"),
        (0, 14, "u1", "not HU: 14 different values from 0 to 13 (a label map?)"),
        (10000, 20000, "i2", "not HU: half of the voxels are above"),
        (-(2**20), 2**20, "i4", "are beyond int16"),
        (-(2**40), 2**40, "f8", "values from -1.09951e+12 to 1.09951e+12 are no intensities (damaged voxels?)"),
    ],
)
def test_intensities_that_are_no_hu(write_nifti, low, high, dtype, message):
    array = np.random.default_rng(0).integers(low, high, (20, 20, 20)).astype(dtype)
    array.flat[:2] = low, high - 1
    assert message in cause(write_nifti("a.nii.gz", array))


@pytest.mark.parametrize(
    ("low", "high"), [(-1024, 3071), (-150, 250), (-3024, 1500), (-1000, 200), (20, 120), (0, 256), (-8192, 3000)]
)
def test_crops_and_paddings_of_ct_pass(write_nifti, low, high):
    array = np.random.default_rng(0).integers(low, high, (20, 20, 20)).astype(np.int16)
    load_volume(write_nifti("a.nii.gz", array))


def test_notes_of_odd_but_usable_intensities():
    histogram = np.zeros(2**16, dtype=np.int64)
    histogram[32768 + 100 : 32768 + 300] = 10
    notes = check_intensities(histogram, 100, 40000, clipped=3)
    assert notes[0] == "3 voxels beyond int16 clipped (values 100 to 40000)"
    assert notes[1].startswith("neither air nor fat: values from 100 to 40000")


def test_notes_of_odd_geometry(tmp_path, ct, write_nifti):
    paths = [write_nifti("slice.nii", ct[..., :1]), write_nifti("metres.nii", affine=np.diag([0.001, 0.001, 0.002, 1]))]
    image = nib.Nifti1Image(ct, None)
    image.set_sform(np.diag([2, 3, 4, 1]), 1)
    image.set_qform(np.diag([2, 3, 5, 1]), 1)
    nib.save(image, tmp_path / "two.nii")
    shutil.copy(tmp_path / "two.nii", tmp_path / "turn.nii")
    patch(tmp_path / "turn.nii", (256, struct.pack("<f", 7)))  # a quaternion of no rotation
    names = ("two.nii", "turn.nii")
    sources = [VolumeSource(path, (path,)) for path in (*paths, *(tmp_path / name for name in names))]
    dataset = prepare_volumes(FoundVolumes(sources), tmp_path / "cache", progress=False)
    assert "slice.nii: a single slice, shape (10, 12, 1)" in dataset.notes[0]
    assert "metres.nii: unusual spacing of 0.001 x 0.001 x 0.002 mm" in dataset.notes[1]
    text = "two.nii: sform and qform differ: spacing 2 x 3 x 4 and 2 x 3 x 5 mm; the qform is used"
    assert text in dataset.notes[2]
    assert "turn.nii: the qform is damaged; the sform is used" in dataset.notes[3]
