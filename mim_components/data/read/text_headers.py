"""MetaImage and NRRD headers: sizes, type and position of the voxels in the file.

ITK computes the affine of these volumes. Their sizes are read here, and their voxels by our own pass over the
file, because ITK allocates what a header claims and returns arbitrary voxels if decompression fails.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mim_components.data.volumes import VolumeError

# Longer than any real header; prevents another kind of file from being read as one endless line.
_MAX_HEADER = 2**22
_META_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_NRRD_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}


@dataclass(frozen=True)
class TextHeader:
    """Sizes and position of the voxels.

    Attributes:
        shape: voxels per axis, fastest first.
        dtype: type of a stored voxel, with byte order.
        data_file: file with the voxels.
        start: byte at which the voxels or their compressed stream begin; -1: they are the last bytes of the file.
        compressed: whether the voxels are deflated.
        notes: oddities.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    data_file: Path
    start: int
    compressed: bool
    notes: tuple[str, ...] = ()


def read_metaimage(path: Path) -> TextHeader:
    """Read the header of a `.mha` or `.mhd` file.

    Raises:
        VolumeError: damaged, colour, or stored in a way that is not supported.
    """
    fields: dict[str, str] = {}
    start = 0
    for line, end in _lines(path):
        name, separator, value = line.partition("=")
        if not separator:
            raise VolumeError(f"not a MetaImage header: {line[:40]!r} instead of 'name = value'")
        fields[name.strip().lower()] = value.strip()
        start = end
        if name.strip().lower() == "elementdatafile":
            break
    data = _needed(fields, "elementdatafile", "MetaImage")
    channels = _integers(fields.get("elementnumberofchannels", "1"), "ElementNumberOfChannels")
    if channels != (1,):
        raise VolumeError(f"{channels[0]} values per voxel (colour or vectors), expected 1")
    if data.upper().startswith("LIST") or "%" in data:
        raise VolumeError("the voxels lie in a list of files, expected one .raw file")
    if not _is_true(fields.get("binarydata", "true")):
        raise VolumeError("voxels are stored as text, expected BinaryData = True")
    local = data.upper() == "LOCAL"
    big = fields.get("binarydatabyteordermsb", fields.get("elementbyteordermsb", "false"))
    skip = _integers(fields.get("headersize", "0"), "HeaderSize")[0]
    return TextHeader(
        shape=_integers(_needed(fields, "dimsize", "MetaImage"), "DimSize"),
        dtype=_type(_META_TYPES, _needed(fields, "elementtype", "MetaImage").upper(), _is_true(big)),
        data_file=path if local else _beside(path, data),
        start=start if local else max(skip, -1),
        compressed=_is_true(fields.get("compresseddata", "false")),
        notes=() if {"elementspacing", "elementsize"} & fields.keys() else ("no ElementSpacing: 1 mm is assumed",),
    )


def read_nrrd(path: Path) -> TextHeader:
    """Read the header of a `.nrrd` or `.nhdr` file.

    Raises:
        VolumeError: damaged, colour, or stored in a way that is not supported.
    """
    fields: dict[str, str] = {}
    start = -1  # unknown until the blank line
    for index, (line, end) in enumerate(_lines(path)):
        if index == 0 and not line.startswith("NRRD"):
            raise VolumeError(f"not an NRRD file: it begins with {line[:16]!r}")
        if index and not line.strip():
            start = end
            break
        name, separator, value = line.partition(":")
        if separator and not line.startswith("#") and not value.startswith("="):
            fields[name.strip().lower().replace(" ", "")] = value.strip()
    encoding = _needed(fields, "encoding", "NRRD").lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise VolumeError(f"encoding {encoding} is not supported, expected raw or gzip")
    if fields.get("lineskip", "0") != "0":
        raise VolumeError("line skip is not supported, expected byte skip")
    data = fields.get("datafile", "")
    if data.upper().startswith("LIST") or "%" in data:
        raise VolumeError("the voxels lie in a list of files, expected one data file")
    if start < 0 and not data:
        raise VolumeError("not a complete NRRD header: no blank line, after which the voxels begin")
    skip = _integers(fields.get("byteskip", "0"), "byte skip")[0]
    compressed = encoding != "raw"
    if compressed and skip:
        raise VolumeError("byte skip in compressed data is not supported")
    placed = "spacedirections" in fields
    sizes = _integers(_needed(fields, "sizes", "NRRD"), "sizes")
    kinds = fields.get("kinds", "").lower().split()
    if len(sizes) == 4 and sizes[0] > 1 and kinds and kinds[0] not in ("domain", "space", "time", "none", "???"):
        raise VolumeError(f"{sizes[0]} values per voxel (kind {kinds[0]}), expected 1")
    return TextHeader(
        shape=_channels_last(sizes),
        dtype=_type(_NRRD_TYPES, _needed(fields, "type", "NRRD").lower(), fields.get("endian", "little") == "big"),
        data_file=_beside(path, data) if data else path,
        start=skip if data or skip < 0 else start + skip,
        compressed=compressed,
        notes=() if placed else ("no space directions: orientation is guessed, left and right may be swapped",),
    )


def _channels_last(shape: tuple[int, ...]) -> tuple[int, ...]:
    # NRRD puts a channel axis first; one of length 1 is dropped like a trailing axis of length 1
    return (*shape[1:], 1) if len(shape) == 4 and shape[0] == 1 else shape


def _lines(path: Path) -> Iterator[tuple[str, int]]:
    """Lines of a header, and the byte after each, read only as far as they are needed.

    Raises:
        VolumeError: the file is empty, or the header is too long.
    """
    end = 0
    with open(path, "rb") as file:
        while line := file.readline(_MAX_HEADER - end):
            # a cut line would be another name or value; what begins the file is shown whatever its length
            if end and not line.endswith(b"\n") and len(line) == _MAX_HEADER - end:
                break
            end += len(line)
            yield line.decode("utf-8", "replace").rstrip("\r\n"), end
        if not end:
            raise VolumeError("the file is empty (0 bytes)")
        if line or file.read(1):
            raise VolumeError(f"the header is longer than {_MAX_HEADER:,} bytes (damaged?)")


def _beside(path: Path, name: str) -> Path:
    # a header must not make us open files elsewhere; the user's own links in the folder may lead anywhere
    inside = os.path.relpath(os.path.join(path.parent, name), path.parent)
    if inside.split(os.sep)[0] == os.pardir:
        raise VolumeError(f"its data file {name!r} lies outside the folder of the header")
    target = path.parent / inside
    if not target.is_file():
        raise VolumeError(f"its data file {name!r} is " + ("a broken link" if target.is_symlink() else "missing"))
    return target


def _needed(fields: dict[str, str], name: str, form: str) -> str:
    if name not in fields:
        raise VolumeError(f"not a complete {form} header: no {name}")
    return fields[name]


def _integers(text: str, name: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split())
    except ValueError as error:
        raise VolumeError(f"damaged header: {name} is {text[:40]!r}, expected whole numbers") from error


def _is_true(text: str) -> bool:
    return text.strip().lower() in ("true", "1", "t", "y", "yes")


def _type(types: dict[str, str], name: str, big_endian: bool) -> np.dtype:
    if name not in types:
        raise VolumeError(f"voxels of type {name}, expected integers or floats")
    return np.dtype((">" if big_endian else "<") + types[name])
