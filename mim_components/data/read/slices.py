"""Scans that are folders of 8-bit pictures, one per axial slice: find, order, read and stack the slices.

A picture shows a slice as viewers do: row 0 is anterior, column 0 is the patient's right.
Axes of a volume: (H, W, D) as in RAS, so that axis 0 grows to the patient's right and axis 1 to anterior, for slices
shown as viewers do. Axis 2 is the order of the slices: nothing in a folder of pictures says which end is up.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from monai.transforms import SpatialPad
from PIL import Image, UnidentifiedImageError

from mim_components.data.read.limits import check_file
from mim_components.data.volumes import VolumeError
from mim_components.transforms.intensity import window_to_grey

SLICE_SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_PIXELS = 4096 * 4096  # no scanner makes larger slices
EIGHT_BIT_MODES = ("L", "LA", "P", "RGB", "RGBA")


def is_slice(name: str) -> bool:
    """Whether a file name is that of a slice; hidden files, such as `._0001.png` of macOS, are not."""
    return not name.startswith(".") and name.lower().endswith(SLICE_SUFFIXES)


def slice_number(path: Path) -> int | None:
    """The last number in a file name; None if there is none.

    Example:
        >>> slice_number(Path("0012.png")), slice_number(Path("IM3_slice7.jpg")), slice_number(Path("a.png"))
        (12, 7, None)
    """
    digits = re.findall(r"\d+", path.stem)
    return int(digits[-1]) if digits else None


def in_slice_order(files: list[Path]) -> list[Path]:
    """Slices by number, not by text; slices without a number last, equal numbers by name.

    Example:
        >>> [path.name for path in in_slice_order([Path("10.png"), Path("9.png"), Path("010.png"), Path("a.png")])]
        ['9.png', '010.png', '10.png', 'a.png']
    """

    def key(path: Path) -> tuple[bool, int, str]:
        number = slice_number(path)
        return number is None, number or 0, path.name

    return sorted(files, key=key)


def slice_files(folder: Path) -> list[Path]:
    """The slices directly in a folder, in order.

    Raises:
        VolumeError: the folder is missing, is a file, or holds no slices.
    """
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise VolumeError(f"cannot be read as a folder of slices: {error.strerror}") from error
    files = in_slice_order([folder / name for name in names if is_slice(name)])
    if not files:
        raise VolumeError(f"holds no slices ({', '.join(SLICE_SUFFIXES)}), but {len(names)} other files or folders")
    return files


def read_bytes(path: Path) -> bytes:
    """The content of a regular file.

    Raises:
        VolumeError: the file is missing, a folder, a FIFO, a broken link, empty, or not readable.
    """
    check_file(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise VolumeError(f"cannot be read: {error.strerror}") from error


def decode_slice(content: bytes) -> np.ndarray:
    """Decode one slice completely.

    Args:
        content: bytes of an 8-bit PNG or JPEG file; colour becomes grey.

    Returns:
        uint8 (rows, columns).

    Raises:
        VolumeError: damaged, too large or not 8-bit; the message does not name the file.
    """
    try:
        with Image.open(BytesIO(content)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise VolumeError(f"{image.width} x {image.height} pixels, larger than any CT slice")
            if image.mode not in EIGHT_BIT_MODES:
                raise VolumeError(f"pixels of mode {image.mode!r}, expected 8-bit grey")
            image.verify()  # checksums of a PNG; afterwards the picture must be reopened for decoding
        with Image.open(BytesIO(content)) as image:
            return np.array(image.convert("L"))
    except VolumeError:
        raise
    except UnidentifiedImageError as error:
        raise VolumeError(f"not a picture: it begins with {content[:16]!r}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise VolumeError(f"damaged: {error}") from error


def read_slices(folder: Path) -> list[np.ndarray]:
    """All slices of a scan in order, uint8 (rows, columns) each.

    Raises:
        VolumeError: names the slice and the cause.
    """
    slices = []
    for path in slice_files(folder):
        try:
            slices.append(decode_slice(read_bytes(path)))
        except VolumeError as error:
            raise VolumeError(f"{path.name}: {error}") from error
    return slices


HU_ADVICE = "for CT in HU set --hu_window '[low,high]', the HU that become black and white"


def holds_slices(path: Path) -> bool:
    """Whether a folder directly holds slices."""
    return path.is_dir() and any(is_slice(each.name) for each in path.iterdir())


def stack_slices(slices: Sequence[np.ndarray]) -> np.ndarray:
    """Stack pictures into a volume; those smaller than the largest are padded with 0 on all sides.

    Slices are not resized: pictures of one scan that differ in size are cropped or padded copies of one matrix.

    Args:
        slices: uint8 (rows, columns) each, row 0 anterior, column 0 the patient's right.

    Returns:
        uint8 (H, W, D) = (columns, rows, slices).

    Example:
        >>> picture = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8)  # 1 is right anterior, 6 is left posterior
        >>> stack_slices([picture])[..., 0].tolist()
        [[6, 3], [5, 2], [4, 1]]
    """
    size = np.max([each.shape for each in slices], axis=0)
    if any(each.shape != tuple(size) for each in slices):
        pad = SpatialPad(size)
        slices = [np.asarray(pad(torch.from_numpy(each[None])))[0] for each in slices]
    return np.ascontiguousarray(np.stack([each.T[::-1, ::-1] for each in slices], axis=-1))


def hu_to_8_bit(voxels: np.ndarray, window: Sequence[float]) -> np.ndarray:
    """Map HU to 0 ... 255 with a window.

    Example:
        >>> hu_to_8_bit(np.array([-2000, -1000, -500, 0, 400]), (-1000.0, 0.0)).tolist()
        [0, 0, 128, 255, 255]
    """
    low, high = window
    return np.rint(255 * window_to_grey(voxels, (low, high))).astype(np.uint8)
