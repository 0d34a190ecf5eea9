"""The JSON beside a voxel file of the cache: what the file was made from, with a checksum of its own."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

# Part of the key; raise it when the meaning of a cache file's content changes.
FORMAT = 2


def record_writer(record: dict[str, Any]) -> Callable[[BinaryIO], object]:
    """Function that writes a record with format and checksum to an open file."""
    content = {"format": FORMAT, **{name: value for name, value in record.items() if name not in ("format", "check")}}
    text = json.dumps({**content, "check": _check_of(content)}, indent=1)
    return lambda file: file.write(text.encode())


def read_record(path: Path) -> dict[str, Any] | None:
    """A record; None if it is missing, damaged or of another format."""
    try:
        record = json.loads(path.read_bytes())
        check = record.pop("check")
        return record if record["format"] == FORMAT and check == _check_of(record) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def signs_of(path: Path) -> list[int] | None:
    """Size and times of a file, which change with any write to it, and when the folder is copied."""
    try:
        info = path.stat()
    except OSError:
        return None
    return [info.st_size, info.st_mtime_ns, info.st_ctime_ns]


def recorded_digest(path: Path) -> str | None:
    """Digest of the source of a voxel file, or None; the record is only read if it is new, since crops ask for it."""
    record, signs = path.with_suffix(".json"), signs_of(path.with_suffix(".json"))
    return None if signs is None else _read_digest(record, tuple(signs))


@cache
def _read_digest(path: Path, signs: tuple[int, ...]) -> str | None:
    record = read_record(path)
    return None if record is None else record["digest"]


def _check_of(record: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())
