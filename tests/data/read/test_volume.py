import gzip
import hashlib
import tracemalloc
import zlib

import itk
import nibabel as nib
import numpy as np
import pytest
from monai.transforms import LoadImage, Orientation

from mim_components.data import DataError
from mim_components.data.find.sources import as_source
from mim_components.data.find.walk import find_volumes
from mim_components.data.load.scans import load_volume
from mim_components.data.read import volume as reading

# a rotation by 30 degrees about z, spacings 2, 3, 4 mm, then the axes in the order P, I, R
OBLIQUE = np.array([[0.866, -0.5, 0, 5], [0.5, 0.866, 0, -7], [0, 0, 1, 11], [0, 0, 0, 1]]) @ np.diag([2, 3, 4, 1])
PIR = np.array([[0, 0, 4, 1], [-2, 0, 0, 2], [0, -3, 0, 3], [0, 0, 0, 1.0]])
LPS = np.diag([-2.0, -3.0, 4.0, 1.0]) + np.array([[0, 0, 0, 9]] * 3 + [[0] * 4])


def write_itk(path, array, affine, compressed=False):
    """Write an (x, y, z) array with the RAS affine through ITK, whose world is LPS."""
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = itk.image_from_array(np.ascontiguousarray(array.T))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection(itk.matrix_from_array(lps[:3, :3] / spacing))
    itk.imwrite(image, str(path), compression=compressed)
    return path


@pytest.mark.parametrize("affine", [LPS, PIR, OBLIQUE], ids=["LPS", "PIR", "oblique"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr"])
def test_a_voxel_stays_at_its_place_in_the_world(tmp_path, ct, suffix, affine):
    ct[2, 3, 5] = 2000
    path = tmp_path / f"a{suffix}"
    if ".nii" in suffix:
        nib.save(nib.Nifti1Image(ct, affine), path)
    else:
        write_itk(path, ct, affine)
    voxels, turned = load_volume(path)
    assert nib.aff2axcodes(turned) == ("R", "A", "S")
    index = np.argwhere(voxels == 2000)
    assert len(index) == 1
    np.testing.assert_allclose(turned @ [*index[0], 1], affine @ [2, 3, 5, 1], atol=1e-4)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".mhd"])
@pytest.mark.usefixtures("decoder")
def test_compressed_formats_equal_uncompressed_ones(tmp_path, ct, suffix):
    path = write_itk(tmp_path / f"a{suffix}", ct, PIR, compressed=True)
    voxels, affine = load_volume(path)
    expected, expected_affine = load_volume(write_itk(tmp_path / "b.mha", ct, PIR))
    np.testing.assert_array_equal(voxels, expected)
    np.testing.assert_allclose(affine, expected_affine)


@pytest.mark.parametrize("affine", [LPS, PIR, OBLIQUE], ids=["LPS", "PIR", "oblique"])
@pytest.mark.usefixtures("decoder")
def test_same_as_monai(write_nifti, affine):
    path = write_nifti("a.nii.gz", affine=affine)
    reference = Orientation("RAS", labels=None)(LoadImage(ensure_channel_first=True)(path))
    voxels, turned = load_volume(path)
    np.testing.assert_array_equal(voxels, reference[0].numpy())
    np.testing.assert_allclose(turned, reference.affine.numpy(), atol=1e-6)


def test_real_volumes_same_as_monai(real_data):
    names = ["tptbox_spine/sub-ct_label-22_ct.nii.gz", "ibsi_sts/STS_005_CT_image.nii.gz"]
    for path in [real_data / name for name in names if (real_data / name).exists()]:
        reference = Orientation("RAS", labels=None)(LoadImage(ensure_channel_first=True)(path))
        voxels, turned = load_volume(path)
        np.testing.assert_array_equal(voxels, np.rint(reference[0].numpy()))
        np.testing.assert_allclose(turned, reference.affine.numpy(), atol=1e-6)


@pytest.mark.parametrize("dtype", ["u1", "i2", ">i2", "u2", "i4", "f4", "f8", ">f4"])
def test_types_of_one_volume_give_equal_voxels(tmp_path, dtype):
    values = np.random.default_rng(0).integers(0, 256, (10, 12, 14)).astype(np.int16)
    header = nib.Nifti1Header(endianness=">" if ">" in dtype else "<")
    header.set_data_dtype(np.dtype(dtype))
    nib.save(nib.Nifti1Image(values.astype(dtype), np.eye(4), header), tmp_path / "a.nii.gz")
    voxels, _ = load_volume(tmp_path / "a.nii.gz")
    assert voxels.dtype == np.int16
    np.testing.assert_array_equal(voxels, values)


def test_byte_order_of_metaimage_and_nrrd(tmp_path, ct):
    body = ct.astype(">i2").tobytes(order="F")
    head = "NDims = 3\nDimSize = 10 12 14\nBinaryDataByteOrderMSB = True\nElementType = MET_SHORT\n"
    (tmp_path / "a.mha").write_bytes(head.encode() + b"ElementDataFile = LOCAL\n" + body)
    head = "NRRD0004\ntype: short\ndimension: 3\nsizes: 10 12 14\nencoding: raw\nendian: big\n\n"
    (tmp_path / "b.nrrd").write_bytes(head.encode() + body)
    for name in ("a.mha", "b.nrrd"):
        np.testing.assert_array_equal(load_volume(tmp_path / name)[0], ct[::-1, ::-1])


@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "f4", "f8"])
def test_types_of_one_metaimage_give_equal_voxels(tmp_path, dtype):
    values = np.random.default_rng(0).integers(0, 256, (10, 12, 14)).astype(np.int16)
    path = write_itk(tmp_path / "a.mha", values.astype(dtype), np.eye(4))
    np.testing.assert_array_equal(load_volume(path)[0], values)


def test_slope_and_intercept_are_applied(tmp_path):
    stored = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)
    image = nib.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(8, -1024)
    nib.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(load_volume(tmp_path / "a.nii.gz")[0], stored.astype(int) * 8 - 1024)


def test_slope_of_zero_means_no_scaling(tmp_path, write_nifti, ct):
    data = bytearray(write_nifti("a.nii").read_bytes())
    data[112:120] = np.array([0, 7], dtype="<f4").tobytes()  # scl_slope, scl_inter
    (tmp_path / "b.nii").write_bytes(data)
    np.testing.assert_array_equal(load_volume(tmp_path / "b.nii")[0], ct)


@pytest.mark.usefixtures("decoder")
def test_nifti2_and_4d_with_one_volume(tmp_path, ct):
    nib.save(nib.Nifti2Image(ct[..., None], np.eye(4)), tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(load_volume(tmp_path / "a.nii.gz")[0], ct)


NRRD = (
    "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 10 12 14\nencoding: raw\n"
    "space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\nendian: little\n"
)
MHA = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nElementSpacing = 1 1 1\nDimSize = 10 12 14\n"
    "ElementType = MET_SHORT\n"
)


@pytest.mark.parametrize("length", [100, 2**16, 70_000, 2**20])
def test_voxels_behind_a_long_header(tmp_path, ct, length):
    body = ct.tobytes(order="F")
    lines, text = length // 1000 + 1, "x" * min(length, 1000)
    (tmp_path / "a.nrrd").write_bytes((NRRD + f"key:={text}\n" * lines + "\n").encode() + body)
    (tmp_path / "a.mha").write_bytes((MHA + f"key = {text}\n" * lines + "ElementDataFile = LOCAL\n").encode() + body)
    for name in ("a.nrrd", "a.mha"):
        np.testing.assert_array_equal(load_volume(tmp_path / name)[0], ct[::-1, ::-1])


@pytest.mark.parametrize("line", ["x" * 2**22, "x" * 1000 + "\n"], ids=["one line", "many lines"])
def test_header_without_an_end_is_refused(tmp_path, ct, line):
    endless = line * (2**22 // len(line) + 1)
    for name, text in (("a.nrrd", f"{NRRD}#{endless}"), ("a.mha", f"{MHA}a = {endless}".replace("\nx", "\nb = x"))):
        (tmp_path / name).write_bytes(text.encode() + ct.tobytes(order="F"))
        with pytest.raises(DataError, match=f"{name}: the header is longer than 4,194,304 bytes"):
            load_volume(tmp_path / name)


def test_nrrd_without_a_blank_line(tmp_path, ct):
    (tmp_path / "a.nrrd").write_bytes(NRRD.encode())
    with pytest.raises(DataError, match="a.nrrd: not a complete NRRD header: no blank line, after which the voxels"):
        load_volume(tmp_path / "a.nrrd")
    (tmp_path / "a.raw").write_bytes(ct.tobytes(order="F"))
    (tmp_path / "a.nhdr").write_text(f"{NRRD}data file: a.raw\n")  # complete
    np.testing.assert_array_equal(load_volume(tmp_path / "a.nhdr")[0], ct[::-1, ::-1])


def test_nrrd_and_metaimage_with_one_channel_in_4d(tmp_path, ct):
    body = ct.tobytes(order="F")
    nrrd = (
        b"NRRD0004\ntype: short\ndimension: 4\nspace: right-anterior-superior\nsizes: 1 10 12 14\n"
        b"space directions: none (2,0,0) (0,3,0) (0,0,4)\nkinds: list domain domain domain\nendian: little\n"
        b"encoding: raw\nspace origin: (1,2,3)\n\n"
    )
    (tmp_path / "a.nrrd").write_bytes(nrrd + body)
    meta = b"ObjectType = Image\nNDims = 4\nDimSize = 10 12 14 1\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    (tmp_path / "b.mha").write_bytes(meta + body)
    voxels, affine = load_volume(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(voxels, ct)
    np.testing.assert_allclose(affine, [[2, 0, 0, 1], [0, 3, 0, 2], [0, 0, 4, 3], [0, 0, 0, 1]])
    # MetaImage is LPS by default
    np.testing.assert_array_equal(load_volume(tmp_path / "b.mha")[0], ct[::-1, ::-1])


def test_voxels_at_the_end_of_a_raw_file(tmp_path, ct):
    head = "NDims = 3\nDimSize = 10 12 14\nElementType = MET_SHORT\nHeaderSize = -1\nElementDataFile = a.raw\n"
    (tmp_path / "a.mhd").write_text(head)
    (tmp_path / "a.raw").write_bytes(b"some header" + ct.tobytes(order="F"))
    np.testing.assert_array_equal(load_volume(tmp_path / "a.mhd")[0], ct[::-1, ::-1])


def test_single_dicom_file_is_no_volume(write_dicom, ct):
    with pytest.raises(DataError, match="a single DICOM file, expected the folder of a series"):
        load_volume(write_dicom("scan", ct)[0])


@pytest.mark.usefixtures("decoder")
def test_gzip_of_several_members_and_wrong_extension(tmp_path, write_nifti, ct):
    data = write_nifti("a.nii").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(data[:1000]) + gzip.compress(data[1000:]))
    (tmp_path / "c.nii.gz").write_bytes(data)
    for name in ("b.nii.gz", "c.nii.gz"):
        np.testing.assert_array_equal(load_volume(tmp_path / name)[0], ct)


def test_voxels_are_turned_in_whole_blocks_and_rests():
    voxels = np.arange(65 * 130 * 17, dtype=np.int32).reshape(65, 130, 17, order="F")[::-1, :, ::-1]
    turned = reading._in_c_order(voxels)
    assert turned.flags.c_contiguous and turned.dtype == voxels.dtype
    np.testing.assert_array_equal(turned, voxels)


def test_rounding_to_the_nearest_and_clipping(write_nifti):
    values = np.zeros((10, 10, 10), dtype=np.float32)
    values[0, 0, :5] = [-999.6, 10.4, 10.6, 40000, -900]
    voxels, _ = load_volume(write_nifti("a.nii", values, np.eye(4)))
    assert voxels.dtype == np.int16
    assert voxels[0, 0, :5].tolist() == [-1000, 10, 11, 32767, -900]


def test_folder_of_two_volumes_is_no_volume(tmp_path, write_nifti):
    write_nifti("a.nii")
    write_nifti("b.nii")
    with pytest.raises(DataError, match="holds 2 volumes, expected one"):
        load_volume(tmp_path)


def test_file_that_is_no_volume_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"a.png: not a volume: expected \.nii"):
        load_volume(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["scan 1.nii.gz", "Größe.mha", 'it\'s "q".nii', "two\nlines.nrrd"])
def test_odd_names_are_read(tmp_path, ct, name, write_nifti):
    path = write_nifti(name) if ".nii" in name else write_itk(tmp_path / name, ct, np.eye(4))
    assert find_volumes(tmp_path).sources[0].path == path
    assert load_volume(path)[0].shape == ct.shape


@pytest.mark.parametrize("form", ["mhd", "nhdr"])
def test_data_file_may_be_a_link_that_leads_elsewhere(tmp_path, ct, form):
    (tmp_path / "store").mkdir()
    (tmp_path / "scan").mkdir()
    (tmp_path / "store" / "SHA256E-1").write_bytes(ct.tobytes(order="F"))
    (tmp_path / "scan" / "a.raw").symlink_to("../store/SHA256E-1")
    heads = {
        "mhd": "NDims = 3\nDimSize = 10 12 14\nElementType = MET_SHORT\nElementDataFile = {}\n",
        "nhdr": "NRRD0004\ntype: short\ndimension: 3\nsizes: 10 12 14\nencoding: raw\nendian: little\ndata file: {}\n",
    }
    path = tmp_path / "scan" / f"a.{form}"
    for name in ("a.raw", "./a.raw", str(tmp_path / "scan" / "a.raw")):
        path.write_text(heads[form].format(name))
        np.testing.assert_array_equal(np.sort(load_volume(path)[0], axis=None), np.sort(ct, axis=None))
    for name in ("../store/SHA256E-1", "b/../../store/SHA256E-1", str(tmp_path / "store" / "SHA256E-1")):
        path.write_text(heads[form].format(name))
        with pytest.raises(DataError, match="lies outside the folder of the header"):
            load_volume(path)
    (tmp_path / "store" / "SHA256E-1").unlink()
    path.write_text(heads[form].format("a.raw"))
    with pytest.raises(DataError, match="its data file 'a.raw' is a broken link"):
        load_volume(path)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_small_file_that_expands_to_one_value_is_refused_without_memory(tmp_path, suffix):
    size = 256**3
    body = bytes(2 * size)
    if suffix == ".nii.gz":
        header = nib.Nifti1Header()
        header.set_data_shape((256, 256, 256))
        header.set_data_dtype(np.int16)
        header.set_sform(np.eye(4), 1)
        header["vox_offset"], header["magic"], header["scl_slope"] = 352, b"n+1", 0
        content = gzip.compress(header.binaryblock + bytes(4) + body, 1)
    elif suffix == ".nrrd":
        head = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 256 256 256\nencoding: gzip\nendian: little\n\n"
        content = head + gzip.compress(body, 1)
    else:
        packed = zlib.compress(body, 1)
        head = "NDims = 3\nDimSize = 256 256 256\nElementType = MET_SHORT\nCompressedData = True\n"
        content = f"{head}CompressedDataSize = {len(packed)}\nElementDataFile = LOCAL\n".encode() + packed
    (tmp_path / f"a{suffix}").write_bytes(content)
    del body, content
    tracemalloc.start()
    with pytest.raises(DataError, match="constant: every voxel is 0"):
        load_volume(tmp_path / f"a{suffix}")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_empty_label_of_any_size_is_read(tmp_path, write_nifti):
    path = write_nifti("a.nii.gz", np.full((64, 64, 64), 3, dtype=np.float64))
    source = as_source(path)
    raw, _ = reading.read_stored(source, reading.inspect_source(source), hashlib.sha256())
    assert raw.shape == (64, 64, 64) and raw.dtype == np.float64 and (raw == 3).all() and raw.strides == (0, 0, 0)


def test_voxels_that_repeat_but_differ_are_read(write_nifti):
    values = np.tile(np.array([1, 2, 3, 4, 5, 6, 7, 1000], dtype=np.int16), 8).reshape(8, 8, order="F")
    values = np.stack([values, values], axis=-1)
    np.testing.assert_array_equal(load_volume(write_nifti("a.nii", values))[0], values)
