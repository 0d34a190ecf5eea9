"""Change bytes of a NIfTI file at known offsets."""

from __future__ import annotations

import gzip
from pathlib import Path


def patch(path: Path, *changes: tuple[int, bytes]) -> Path:
    """Overwrite bytes at offsets of the content; a compressed file gets a matching checksum."""
    packed = path.suffix == ".gz"
    content = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    for offset, data in changes:
        content[offset : offset + len(data)] = data
    path.write_bytes(gzip.compress(content, compresslevel=1) if packed else content)
    return path
