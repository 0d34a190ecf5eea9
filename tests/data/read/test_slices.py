from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mim_components.data.read.slices import decode_slice, is_slice, read_bytes, read_slices, slice_files
from mim_components.data.volumes import VolumeError


def encoded(pixels: np.ndarray, form: str = "PNG") -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 20)).astype(np.uint8)


def test_png_is_read_to_the_bit(noise):
    np.testing.assert_array_equal(decode_slice(encoded(noise)), noise)


def test_grey_in_three_colours_is_the_same_picture(noise):
    np.testing.assert_array_equal(decode_slice(encoded(np.stack([noise] * 3, -1))), noise)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("lost", [12, 300])
def test_truncated_picture_is_refused(noise, form, lost):
    with pytest.raises(VolumeError, match="damaged: "):
        decode_slice(encoded(noise, form)[:-lost])


def test_flipped_bit_in_png_is_refused(noise):
    content = bytearray(encoded(noise))
    content[len(content) // 2] ^= 1
    with pytest.raises(VolumeError, match="damaged: broken PNG file"):
        decode_slice(bytes(content))


def test_web_page_is_no_picture():
    with pytest.raises(VolumeError, match=r"not a picture: it begins with b'<html><body>404<'"):
        decode_slice(b"<html><body>404</body></html>")


def test_sixteen_bits_are_refused(noise):
    with pytest.raises(VolumeError, match="pixels of mode 'I;16', expected 8-bit grey"):
        decode_slice(encoded(noise.astype(np.uint16) * 100))


def test_picture_larger_than_any_slice_is_refused():
    with pytest.raises(VolumeError, match="5000 x 5000 pixels, larger than any CT slice"):
        decode_slice(encoded(np.zeros((5000, 5000), np.uint8)))


def test_empty_and_missing_files_are_refused(tmp_path):
    (tmp_path / "0.png").touch()
    with pytest.raises(VolumeError, match="the file is empty"):
        read_bytes(tmp_path / "0.png")
    with pytest.raises(VolumeError, match="no such file"):
        read_bytes(tmp_path / "1.png")


def test_slices_come_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 9, 100):
        Image.fromarray(np.full((2, 2), number, np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "._9.png").write_bytes(b"macOS")
    (tmp_path / "notes.txt").write_text("")
    assert [picture[0, 0] for picture in read_slices(tmp_path)] == [9, 10, 100]


def test_damaged_slice_is_named(write_scan: Callable[..., Path]):
    folder = write_scan("scan")
    (folder / "0002.png").write_bytes(b"<html>")
    with pytest.raises(VolumeError, match=r"^0002\.png: not a picture"):
        read_slices(folder)


def test_folder_without_slices_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(VolumeError, match=r"holds no slices \(.png, .jpg, .jpeg\), but 1 other files"):
        slice_files(tmp_path)
    with pytest.raises(VolumeError, match="cannot be read as a folder of slices: No such file"):
        slice_files(tmp_path / "absent")


def test_names_of_slices():
    assert [is_slice(name) for name in ("1.PNG", "a.jpeg", "._1.png", "1.dcm")] == [True, True, False, False]
