import numpy as np
import pydicom
import pytest

from mim_components.data import DataError, NoVolumesError, prepare_volumes
from mim_components.data.find.walk import find_volumes
from mim_components.data.load.scans import load_volume
from mim_components.data.read.dicom import find_series, is_dicom, read_slice

VOLUME = np.random.default_rng(0).integers(-1000, 1000, (6, 5, 4)).astype(np.int16)


@pytest.mark.parametrize("suffix", [".dcm", ".IMA", "", ".1"])
def test_series_is_found_whatever_the_extension(tmp_path, write_dicom, suffix):
    paths = write_dicom("scan", VOLUME, suffix=suffix)
    (tmp_path / "scan" / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (source,) = find_volumes(tmp_path)
    assert (source.path, source.series_uid, source.name) == (tmp_path / "scan", "1.2.3.4", "1.2.3.4")
    assert list(source.files) == paths  # by position, not by name


def test_voxels_and_world_positions_of_a_series(write_dicom, tmp_path):
    write_dicom("scan", VOLUME)
    voxels, affine = load_volume(tmp_path / "scan")
    # LPS to RAS: the first two axes are reversed
    np.testing.assert_array_equal(voxels, VOLUME[::-1, ::-1])
    # the voxel stored first lies at LPS (-20, -30, 10) = RAS (20, 30, 10); it is the last along both reversed axes
    np.testing.assert_allclose(affine @ [5, 4, 0, 1], [20, 30, 10, 1])
    np.testing.assert_allclose(np.diag(affine), [2.5, 1.5, 3.0, 1.0])


def test_several_series_in_one_folder(tmp_path, write_dicom):
    write_dicom("scan", VOLUME, uid="1.1")
    write_dicom("scan", VOLUME, uid="1.2")
    write_dicom("scan", VOLUME[..., :1], uid="1.3", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_dicom("scan", VOLUME, uid="1.4", Modality="MR")
    write_dicom("scan", VOLUME[..., :2], uid="1.5")
    found = find_volumes(tmp_path)
    assert [source.series_uid for source in found] == ["1.1", "1.2"]
    text = "\n".join(found.notes)
    assert "[1.3]: not a CT volume: ImageType LOCALIZER" in text
    assert "[1.4]: not a CT volume: Modality MR, expected CT" in text
    assert "[1.5]: not a CT volume: 2 slices, expected at least 3" in text
    assert len(found.notes) == 3


def test_localizer_inside_a_series_is_left_out(tmp_path, write_dicom):
    paths = write_dicom("scan", VOLUME)
    write_dicom("scan", VOLUME[..., :1], suffix=".scout", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    (source,) = find_volumes(tmp_path)
    assert list(source.files) == paths


@pytest.mark.parametrize(
    ("positions", "changes", "reason"),
    [
        (
            (0, 3, 6, 12),
            {},
            r"uneven slice distances from 3.00 to 6.00 mm \(a slice missing\?\): slices lie up to 2.0 mm",
        ),
        ((0, 3, 3, 6), {}, "2 slices share one position"),
        (None, {"SamplesPerPixel": 3}, "colour pictures with 3 values per pixel"),
        (None, {"NumberOfFrames": 9}, "a multi-frame file with 9 frames"),
        (None, {"PixelSpacing": None}, "or PixelSpacing is missing"),
        (None, {"SeriesInstanceUID": ""}, "SeriesInstanceUID is missing"),
        (
            None,
            {"ImageOrientationPatient": [1, 0, 0, 0, 0.8, 0.6]},
            "gantry tilt of 36.9 degrees: slices lie up to 5.4 mm sideways; convert the series with dcm2niix",
        ),
    ],
)
def test_series_that_are_no_ct_volume(tmp_path, write_dicom, positions, changes, reason):
    write_dicom("scan", VOLUME, positions=positions, **changes)
    with pytest.raises(NoVolumesError, match=f"not a CT volume: .*{reason}"):
        find_volumes(tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"PixelSpacing": [2, 2]}, "several pixel spacings"),
        ({"ImageOrientationPatient": [0, 1, 0, 1, 0, 0]}, "several orientations"),
        ({"Modality": "PT"}, "Modality"),
    ],
)
def test_series_whose_slices_differ(tmp_path, write_dicom, changes, reason):
    write_dicom("scan", VOLUME)
    write_dicom("scan", VOLUME[..., :1], suffix=".odd", positions=[22], **changes)
    with pytest.raises(NoVolumesError, match=reason):
        find_volumes(tmp_path)


def test_slices_of_several_sizes(tmp_path, write_dicom):
    write_dicom("scan", VOLUME)
    write_dicom("scan", VOLUME[:4, :, :1], suffix=".odd", positions=[22])
    with pytest.raises(NoVolumesError, match=r"slices of several sizes: \[\(4, 5\), \(6, 5\)\]"):
        find_volumes(tmp_path)


def test_one_series_in_two_folders_is_reported(tmp_path, write_dicom):
    write_dicom("a", VOLUME)
    write_dicom("b", VOLUME)
    found = find_volumes(tmp_path)
    assert len(found) == 2
    assert found.notes == ["series 1.2.3.4 lies in more than one folder; each folder is one volume"]


def test_damaged_header_and_truncated_slice_are_bad_not_skipped(tmp_path, write_dicom):
    paths = write_dicom("scan", VOLUME)
    paths[1].write_bytes(paths[1].read_bytes()[:-20])
    (tmp_path / "broken").write_bytes(paths[0].read_bytes().replace(b"1.5\\2.5", b"x.y\\2.5"))
    with pytest.raises(DataError) as raised:
        prepare_volumes(find_volumes(tmp_path), tmp_path / "cache", progress=False)
    causes = {item.path.removeprefix(f"{tmp_path}/"): item.cause for item in raised.value.bad}
    assert set(causes) == {"scan [1.2.3.4]", "broken"}
    assert "cannot be decoded" in causes["scan [1.2.3.4]"]
    assert "the DICOM header cannot be read" in causes["broken"]


def test_nothing_personal_reaches_cache_or_notes(tmp_path, write_dicom, caplog):
    write_dicom("scan", VOLUME)
    write_dicom("scan", VOLUME, uid="1.9", Modality="PT")
    found = find_volumes(tmp_path)
    dataset = prepare_volumes(found, tmp_path / "cache", progress=False)
    written = b"".join(path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file())
    said = "\n".join([*found.notes, *dataset.notes, dataset.summary(), caplog.text])
    assert b"SECRET" not in written and "SECRET" not in said


def test_missing_pydicom_is_said_at_once(tmp_path, write_dicom, monkeypatch):
    paths = write_dicom("scan", VOLUME)
    assert is_dicom(paths[0])
    monkeypatch.setattr("mim_components.data.read.dicom.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"needs the package pydicom \(pip install pydicom\)"):
        find_series(paths)


def tilted(degrees, slices, step):
    """Positions of slices from a tilted gantry: straight up, while their normal is inclined."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return [1, 0, 0, 0, cosine, sine], [z * step / cosine for z in range(slices)]


@pytest.mark.parametrize(
    ("degrees", "slices", "message"),
    [
        (15, 8, "gantry tilt of 15.0 degrees: slices lie up to 4.7 mm sideways; convert the series with dcm2niix"),
        # 59 steps of 2.5 mm to the side by the tangent of 5 degrees
        (5, 60, "gantry tilt of 5.0 degrees: slices lie up to 12.9 mm sideways"),
    ],
)
def test_tilt_adds_up(tmp_path, write_dicom, degrees, slices, message):
    volume = np.tile(VOLUME, (1, 1, 15))[..., :slices]
    orientation, heights = tilted(degrees, slices, 2.5)
    write_dicom("scan", volume, positions=heights, ImageOrientationPatient=orientation)
    with pytest.raises(NoVolumesError, match=message):
        find_volumes(tmp_path)


def test_distances_add_up(tmp_path, write_dicom):
    volume = np.tile(VOLUME, (1, 1, 15))
    heights = [0.0, *np.cumsum([3.0] * 30 + [3.27] * 29)]
    write_dicom("scan", volume, positions=heights)
    # an even step is (30 * 3 + 29 * 3.27) / 59 = 3.1327 mm: slice 30 lies at 90 mm and would be put at 93.98
    message = r"uneven slice distances from 3.00 to 3.27 mm \(a slice missing\?\): slices lie up to 4.0 mm from an even"
    with pytest.raises(NoVolumesError, match=message):
        find_volumes(tmp_path)


def test_rounded_positions_are_even(tmp_path, write_dicom):
    orientation, heights = tilted(0.05, 60, 2.5)
    write_dicom(
        "scan", np.tile(VOLUME, (1, 1, 15)), positions=np.round(heights, 1), ImageOrientationPatient=orientation
    )
    assert len(find_volumes(tmp_path)) == 1


@pytest.mark.parametrize(("bits", "slope", "intercept"), [(12, 1, -1024), (16, 1, -1024), (16, 2, -1000)])
def test_hu_of_monochrome1_are_not_turned_round(tmp_path, write_dicom, bits, slope, intercept):
    changes = {"BitsStored": bits, "HighBit": bits - 1, "RescaleSlope": slope, "RescaleIntercept": intercept}
    write_dicom("scan", VOLUME, PhotometricInterpretation="MONOCHROME1", **changes)
    voxels, _ = load_volume(tmp_path / "scan")
    np.testing.assert_array_equal(voxels, slope * (VOLUME[::-1, ::-1].astype(int) + 1024) + intercept)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"PhotometricInterpretation": "MONOCHROME1", "PixelRepresentation": 1}, "MONOCHROME1 with signed pixels"),
        ({"RescaleSlope": 0}, "RescaleSlope is 0"),
    ],
)
def test_scales_that_are_not_read(tmp_path, write_dicom, changes, reason):
    write_dicom("scan", VOLUME, **changes)
    with pytest.raises(NoVolumesError, match=reason):
        find_volumes(tmp_path)


def test_slices_of_both_polarities(tmp_path, write_dicom):
    write_dicom("scan", VOLUME)
    write_dicom("scan", VOLUME[..., :1], suffix=".odd", positions=[22], PhotometricInterpretation="MONOCHROME1")
    with pytest.raises(NoVolumesError, match="slices of both MONOCHROME1 and MONOCHROME2"):
        find_volumes(tmp_path)


@pytest.mark.parametrize("suffix", [".dcm", ""])
@pytest.mark.parametrize("kind", ["with group 2", "explicit", "implicit"])
def test_files_that_begin_without_the_letters_dicm(tmp_path, write_dicom, suffix, kind):
    for path in write_dicom("scan", VOLUME, suffix=suffix):
        content = path.read_bytes()[132:]
        if kind != "with group 2":
            tags = pydicom.dcmread(path)
            tags.SpecificCharacterSet = "ISO_IR 100"
            stream = pydicom.filebase.DicomBytesIO()
            stream.is_little_endian, stream.is_implicit_VR = True, kind == "implicit"
            pydicom.filewriter.write_dataset(stream, pydicom.Dataset(tags))
            content = stream.getvalue()
        path.write_bytes(content)
    (source,) = find_volumes(tmp_path)
    assert len(source.files) == 4
    np.testing.assert_array_equal(load_volume(source)[0], VOLUME[::-1, ::-1])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08\x00",
        b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100",  # one element alone
        b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100" * 2,  # not in order
        b"\x02\x00\x00\x00" + b"\xff" * 500,
        bytes(range(256)) * 4,
        b"\x02" * 1000,
        b"name,value\n" * 90,
    ],
)
def test_what_is_not_dicom(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    assert not is_dicom(tmp_path / "a")


def test_deflated_data_set_is_not_inflated(tmp_path, write_dicom):
    path = write_dicom("scan", VOLUME[..., :1])[0]
    tags = pydicom.dcmread(path)
    tags.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    tags.save_as(path)
    with pytest.raises(DataError, match="the data set is deflated as a whole \\(unsupported\\)"):
        read_slice(path)


def test_slice_that_is_too_short_for_its_claim(tmp_path, write_dicom):
    write_dicom("scan", VOLUME, Rows=20000, Columns=20000)
    with pytest.raises(DataError, match=r"the header claims 800,000,000 bytes, the file has [0-9]+ \(truncated"):
        load_volume(tmp_path / "scan")
