"""Promises of every decoder of deflated data: verified checksums, verified end of data, bounded output."""

from __future__ import annotations

import builtins
import gzip
import hashlib
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest

from mim_components.data.read import stream
from mim_components.data.read.stream import Payload, read_payload
from mim_components.data.volumes import VolumeError

ZEROS = bytes(5 * 2**20)  # deflates a thousandfold
PACK = {"gzip": gzip.compress, "zlib": zlib.compress}


def read(path: Path, content: bytes, size: int = len(ZEROS), digest: Any = None) -> bytearray:
    path.write_bytes(content)
    return read_payload(Payload(path, 0, 0, size, compressed=True), digest or hashlib.sha256())


@pytest.mark.parametrize("kind", PACK)
def test_voxels_and_digest(tmp_path: Path, decoder: stream.Decoder, kind: str) -> None:
    content = PACK[kind](ZEROS + b"abc") + bytes(100 if kind == "zlib" else 0)
    digest = hashlib.sha256()
    assert read(tmp_path / "a", content, len(ZEROS) + 3, digest) == ZEROS + b"abc"
    assert digest.digest() == hashlib.sha256(content).digest()


@pytest.mark.parametrize("kind", PACK)
def test_little_is_expanded_at_a_time(tmp_path: Path, decoder: stream.Decoder, kind: str) -> None:
    (tmp_path / "a").write_bytes(PACK[kind](ZEROS))
    with open(tmp_path / "a", "rb") as file:
        sizes = [len(chunk) for chunk in stream._checked_chunks(file, compressed=True)]  # type: ignore[arg-type]
    assert max(sizes) <= 2**20 and sum(sizes) == len(ZEROS)


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("left", [3, 20, -1, -4])
def test_truncated(tmp_path: Path, decoder: stream.Decoder, kind: str, left: int) -> None:
    with pytest.raises(VolumeError, match="truncated: the compressed data end before their end marker and checksum"):
        read(tmp_path / "a", PACK[kind](ZEROS)[:left])


@pytest.mark.parametrize(("kind", "byte"), [("gzip", -8), ("gzip", -1), ("zlib", -1), ("gzip", 2), ("zlib", 0)])
def test_checksum_length_and_method(tmp_path: Path, decoder: stream.Decoder, kind: str, byte: int) -> None:
    content = bytearray(PACK[kind](ZEROS))
    content[byte] ^= 1
    with pytest.raises(VolumeError, match="damaged compressed data: "):
        read(tmp_path / "a", content)


def test_what_follows_a_gzip_stream(tmp_path: Path, decoder: stream.Decoder) -> None:
    content = gzip.compress(ZEROS)
    assert read(tmp_path / "a", content + bytes(100)) == ZEROS[:16]  # padding of tapes
    with pytest.raises(VolumeError, match="damaged compressed data|truncated"):
        read(tmp_path / "a", content + b"garbage, no gzip member")
    with pytest.raises(VolumeError, match=r"claims 5,242,880 bytes, but there are at least [0-9,]+ more"):
        read(tmp_path / "a", content + content)  # a second member holds more voxels


def test_standard_library_where_isal_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without_isal(name: str, *rest: Any) -> Any:
        if name == "isal":
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_isal)
    (only,) = stream.installed_decoders()
    assert only.name == "zlib" and only.gzip_file is gzip.GzipFile


@pytest.mark.parametrize("kind", PACK)
def test_more_than_the_header_claims_ends_the_decoding(tmp_path: Path, decoder: stream.Decoder, kind: str) -> None:
    content = PACK[kind](bytes(2**26))
    tracemalloc.start()
    with pytest.raises(VolumeError, match=r"claims 1,000 bytes, but there are at least 1,047,576 more"):
        read(tmp_path / "a", content, 1000)  # after the first MiB
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize("kind", PACK)
def test_equal_voxels_need_no_memory(tmp_path: Path, decoder: stream.Decoder, kind: str) -> None:
    content = PACK[kind](b"\x18\xfc" * 2**25)  # -1000
    tracemalloc.start()
    assert read(tmp_path / "a", content, 2**26) == b"\x18\xfc" * 8
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize("tail", [b"", b"x", b"x" * 40])
@pytest.mark.parametrize("repeats", [0, 1, 3, 2**18 + 1])
def test_bytes_that_repeat_for_a_while_come_back(tmp_path: Path, repeats: int, tail: bytes) -> None:
    content = b"0123456789abcdef" * repeats + b"01234" + tail
    kept = read(tmp_path / "a", gzip.compress(content), len(content))
    assert kept == (content if tail or repeats < 1 else content[:16])
