"""Read a file once, to its end: hash every byte, verify the compression's checksum, count the decompressed bytes.

Memory grows with what the file really holds, never with what its header claims. Deflated data are read with ISA-L if
python-isal is installed (`pip install "mim-components[fast]"`): several times faster than the standard library,
with the same checks.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mim_components.data.volumes import VolumeError

if TYPE_CHECKING:
    from typing_extensions import Buffer

_CHUNK = 2**20
# A deflate stream cannot expand by more than this factor.
MAX_DEFLATE_RATIO = 1032
PERIOD = 16  # bytes after which equal voxels of any type repeat


class Decoder(NamedTuple):
    """One implementation of the standard library's interface to deflated data.

    Attributes:
        name: name of the package.
        gzip_file: like `gzip.GzipFile`.
        decompressobj: like `zlib.decompressobj`.
        error: like `zlib.error`.
    """

    name: str
    gzip_file: Callable[..., gzip.GzipFile]
    decompressobj: Callable[[], Any]
    error: Any  # python-isal's stub calls this class an instance


def installed_decoders() -> list[Decoder]:
    """Importable decoders, fastest first; the standard library's is always among them."""
    standard = Decoder("zlib", gzip.GzipFile, zlib.decompressobj, zlib.error)
    try:
        from isal import igzip, isal_zlib
    except ImportError:
        return [standard]
    return [Decoder("isal", igzip.GzipFile, isal_zlib.decompressobj, isal_zlib.IsalError), standard]


DECODER = installed_decoders()[0]


@dataclass(frozen=True)
class Payload:
    """Where the voxels of a volume lie.

    Attributes:
        path: file that holds them.
        start: bytes of the file before the voxels, or before the compressed stream that contains them.
        skip: bytes of the decompressed stream before the voxels.
        size: bytes of voxels that the header claims, decompressed.
        compressed: whether the stream is deflated (gzip or zlib).
    """

    path: Path
    start: int
    skip: int
    size: int
    compressed: bool


class HashingFile(io.RawIOBase):
    """File that feeds every byte read from it to a sha256 object.

    Args:
        file: opened for reading bytes, unbuffered.
        digest: object that receives the bytes.
    """

    def __init__(self, file: io.RawIOBase, digest: hashlib._Hash) -> None:
        self._file = file
        self._digest = digest

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        """Read and hash as many bytes as the buffer holds; 0 at the end of the file."""
        count = self._file.readinto(buffer) or 0
        self._digest.update(memoryview(buffer)[:count])
        return count


def check_claimed_size(payload: Payload) -> None:
    """Compare what the header claims with the size of the file, before anything is allocated.

    Raises:
        VolumeError: the file is too small for the claim.
    """
    available = payload.path.stat().st_size - payload.start
    claimed = payload.skip + payload.size
    if not payload.compressed and claimed > available:
        raise VolumeError(f"the header claims {claimed:,} bytes, the file has {max(available, 0):,} (truncated?)")
    if payload.compressed and claimed > max(available, 0) * MAX_DEFLATE_RATIO:
        raise VolumeError(f"the header claims {claimed:,} bytes, {available:,} compressed bytes cannot hold that")


def read_payload(payload: Payload, digest: hashlib._Hash) -> bytearray:
    """Read the voxels and everything after them.

    Args:
        payload: where the voxels lie.
        digest: object that receives all bytes of the file as stored.

    Returns:
        `payload.size` bytes; only the first `PERIOD` if the rest repeats them, as it does if all voxels are equal.

    Raises:
        VolumeError: truncated, a failed checksum, or much more data than the header claims.
    """
    kept = _Kept()
    position = 0
    end = payload.skip + payload.size
    # some writers pad the end of a file; much more data means that the sizes in the header are damaged
    slack = max(payload.size // 100, 4096)
    with open(payload.path, "rb", buffering=0) as raw:
        file = io.BufferedReader(HashingFile(raw, digest), _CHUNK)
        file.read(payload.start)
        for chunk in _checked_chunks(file, payload.compressed):
            part = chunk[max(payload.skip - position, 0) : max(end - position, 0)]
            position += len(chunk)
            if position - end > slack and payload.compressed:  # it could expand to a thousand times the file's size
                raise VolumeError(f"the header claims {end:,} bytes, but there are at least {position - end:,} more")
            kept.add(part)
        while file.read(_CHUNK):
            pass
    if position < end:
        raise VolumeError(f"truncated: the header claims {end:,} bytes, the data end after {position:,}")
    if position - end > slack:
        raise VolumeError(f"the header claims {end:,} bytes, but there are {position - end:,} more (damaged header?)")
    return kept.content


class _Kept:
    """Added bytes; only the first `PERIOD` while the others repeat them, since a small file can hold gigabytes.

    Attributes:
        content: the bytes kept.
    """

    def __init__(self) -> None:
        self.content = bytearray()
        self._repeated = 0  # bytes not kept

    def add(self, part: bytes) -> None:
        """Add bytes."""
        if len(self.content) < PERIOD:
            first = PERIOD - len(self.content)
            self.content += part[:first]
            part = part[first:]
        if len(self.content) == PERIOD:
            pattern, start = bytes(self.content), self._repeated % PERIOD
            if part == (pattern * (len(part) // PERIOD + 2))[start : start + len(part)]:
                self._repeated += len(part)
                return
            self.content *= self._repeated // PERIOD + 1
            self.content += pattern[:start]
        self.content += part


def _checked_chunks(file: io.BufferedReader[HashingFile], compressed: bool) -> Iterator[bytes]:
    if not compressed:
        while chunk := file.read(_CHUNK):
            yield chunk
        return
    try:
        yield from _inflated(file)
    except EOFError as error:
        raise VolumeError("truncated: the compressed data end before their end marker and checksum") from error
    except (DECODER.error, gzip.BadGzipFile) as error:
        raise VolumeError(f"damaged compressed data: {error}") from error


def _inflated(file: io.BufferedReader[HashingFile]) -> Iterator[bytes]:
    if file.peek(2)[:2] == b"\x1f\x8b":
        with DECODER.gzip_file(fileobj=file, mode="rb") as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk
        return
    inflater = DECODER.decompressobj()
    while not inflater.eof:
        data = inflater.unconsumed_tail or file.read(_CHUNK)
        # bounded output, since a few bytes can expand a thousandfold
        chunk = inflater.decompress(data, _CHUNK)
        if not data and not chunk and not inflater.eof:
            raise EOFError
        yield chunk
