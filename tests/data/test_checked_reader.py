"""Training reads what the checks read: the same voxels and affine as with MONAI's readers, except for damaged files."""

import gzip
import struct

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import EnsureChannelFirst, LoadImage, LoadImaged

from mim_components.data import BadVolumesError, CheckedReader
from mim_components.data.load.scans import load_volume
from tests.nifti_bytes import patch

READER = "mim_components.data.CheckedReader"
OBLIQUE = np.array([[0.866, -0.5, 0, 5], [0.5, 0.866, 0, -7], [0, 0, 1, 11], [0, 0, 0, 1]]) @ np.diag([2, 3, 4, 1])
PIR = np.array([[0, 0, 4, 1], [-2, 0, 0, 2], [0, -3, 0, 3], [0, 0, 0, 1.0]])


def load(path):
    return LoadImage(reader=READER, ensure_channel_first=True)(path)


def cause(path):
    with pytest.raises(BadVolumesError) as raised:
        load(path)
    return raised.value.bad[0].cause


@pytest.mark.parametrize("affine", [np.diag([-2.0, -3.0, 4.0, 1.0]), PIR, OBLIQUE], ids=["LPS", "PIR", "oblique"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_equals_monai_for_ordinary_files(tmp_path, ct, affine, dtype):
    image = nib.Nifti1Image(ct.astype(dtype), affine)
    image.header.set_slope_inter(2.5, -5.0)
    nib.save(image, tmp_path / "a.nii.gz")
    ours, monai = load(tmp_path / "a.nii.gz"), EnsureChannelFirst()(LoadImage()(tmp_path / "a.nii.gz"))
    assert ours.dtype == monai.dtype == torch.float32 and ours.shape == monai.shape
    assert torch.equal(ours.as_tensor(), monai.as_tensor()) and torch.equal(ours.affine, monai.affine)
    assert torch.equal(EnsureChannelFirst()(ours).as_tensor(), ours.as_tensor())


def test_equals_monai_on_real_volumes(real_data):
    paths = [*sorted(real_data.glob("*/*.nii.gz"))[:6], *sorted(real_data.glob("openkbp/labelled/pt_4_*"))]
    for path in paths:
        ours, monai = load(path), LoadImage(ensure_channel_first=True)(path)
        assert torch.equal(ours.as_tensor(), monai.as_tensor()) and torch.equal(ours.affine, monai.affine)


def test_fourth_axis_and_several_files_are_channels(tmp_path, ct, write_nifti):
    four = np.stack([ct, ct + 1, ct + 2, ct + 3], axis=-1)
    one = load(write_nifti("four.nii.gz", four))
    files = [write_nifti(f"{number}.nii", four[..., number]) for number in range(4)]
    several = LoadImaged("image", reader=READER)({"image": files})["image"]
    assert one.shape == several.shape == (4, *ct.shape) and torch.equal(one.as_tensor(), several.as_tensor())
    moved = np.diag([2.0, 3.0, 4.0, 1.0])
    moved[0, 3] = 0.003  # MONAI's own rule is 1e-5 of the number
    write_nifti("3.nii", four[..., 3], moved)
    assert torch.equal(load(files).as_tensor(), one.as_tensor())
    moved[0, 3] = 0.3
    write_nifti("3.nii", four[..., 3], moved)
    assert cause(files) == "3.nii: its position differs by 0.3 x 0 x 0 mm"
    write_nifti("3.nii", ct[1:])
    assert cause(files) == "3.nii: shape (9, 12, 14), 0.nii has (10, 12, 14)"


def test_no_other_reader_is_tried_after_an_error(tmp_path, write_nifti):
    path = write_nifti("a.nii.gz")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(BadVolumesError, match=r"a\.nii\.gz: truncated"):
        load(path)
    with pytest.raises(BadVolumesError, match=r"gone\.nii: no such file"):
        load(tmp_path / "gone.nii")
    assert CheckedReader().verify_suffix("anything")


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
def test_compression_is_seen_in_the_file(tmp_path, ct, write_nifti, name):
    content = write_nifti("a.nii").read_bytes()
    (tmp_path / name).write_bytes(content if name.endswith("gz") else gzip.compress(content))
    np.testing.assert_array_equal(load(tmp_path / name)[0].numpy(), ct)


def test_list_axis_of_length_one_is_no_axis(tmp_path, ct):
    head = (
        "NRRD0004\ntype: short\ndimension: 4\nspace: left-posterior-superior\nsizes: {} 10 12 14\n"
        "space directions: none (2,0,0) (0,3,0) (0,0,4)\nkinds: {} domain domain domain\nendian: little\n"
        "encoding: raw\nspace origin: (1,2,3)\n\n"
    )
    (tmp_path / "a.nrrd").write_bytes(head.format(1, "list").encode() + ct.tobytes(order="F"))
    image = load(tmp_path / "a.nrrd")
    assert image.shape == (1, 10, 12, 14)
    np.testing.assert_array_equal(image[0].numpy(), ct)
    np.testing.assert_array_equal(image.affine, [[-2, 0, 0, -1], [0, -3, 0, -2], [0, 0, 4, 3], [0, 0, 0, 1]])
    (tmp_path / "b.nrrd").write_bytes(head.format(3, "RGB-color").encode() + ct.tobytes(order="F") * 3)
    assert cause(tmp_path / "b.nrrd") == "3 values per voxel (kind rgb-color), expected 1"


@pytest.mark.parametrize(("slope", "inter"), [(np.nan, 0), (np.inf, 0), (1, np.nan), (2, -np.inf)])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_slope_or_intercept_that_is_no_number(write_nifti, name, slope, inter):
    path = patch(write_nifti(name), (112, struct.pack("<2f", slope, inter)))
    field, value = ("scl_inter", inter) if np.isfinite(slope) else ("scl_slope", slope)
    text = f"damaged NIfTI header: {field} is {value}, expected a number (scl_slope 0: no scaling)"
    assert cause(path) == text
    with pytest.raises(BadVolumesError, match="scl_slope 0: no scaling"):
        load_volume(path)


def test_slope_of_zero_makes_the_intercept_irrelevant(write_nifti, ct):
    path = patch(write_nifti("a.nii"), (112, struct.pack("<2f", 0, np.nan)))
    np.testing.assert_array_equal(load(path)[0].numpy(), ct)


@pytest.mark.parametrize(("unit", "factor"), [(0, 1), (1, 1000), (2, 1), (3, 0.001)])
@pytest.mark.parametrize("form", ["sform", "qform"])
def test_lengths_become_millimetres(write_nifti, unit, factor, form):
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = 5, -6, 7
    path = patch(write_nifti("a.nii", affine=np.diag([1 / factor] * 3 + [1]) @ affine), (123, bytes([unit | 8])))
    if form == "qform":
        patch(path, (254, struct.pack("<h", 0)))
        patch(path, (252, struct.pack("<h", 1)))
    np.testing.assert_allclose(load(path).affine, affine, rtol=1e-6)
    np.testing.assert_allclose(load_volume(path)[1], affine, rtol=1e-6)


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (1000, "the volume is 20 x 36 x 56 m large; expected mm"),
        (0.001, "the spacing is 0.002 x 0.003 x 0.004 mm, finer than any scanner's (metres?); expected mm"),
    ],
)
def test_lengths_that_are_no_millimetres_are_refused(write_nifti, factor, message):
    assert cause(write_nifti("a.nii", affine=np.diag([2 * factor, 3 * factor, 4 * factor, 1]))) == message
