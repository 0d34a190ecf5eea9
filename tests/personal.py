"""Search all files and log messages of a run for the name of a person."""

from __future__ import annotations

import gzip
import logging
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def content_of(path: Path) -> bytes:
    """Bytes of a file, decompressed."""
    raw = path.read_bytes()
    if raw.startswith(b"\x1f\x8b"):
        raw = gzip.decompress(raw)
    if raw.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(path) as archive:
            return raw + b"".join(archive.read(name) for name in archive.namelist())
    return raw


def assert_none_in(folder: Path, at_least: int, forms: Sequence[bytes], names: Sequence[str]) -> None:
    """Check that no file contains any of `forms`, no path any of `names`, and that there are enough files."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) >= at_least
    for path in files:
        content = content_of(path)
        assert not any(form in content for form in forms), path
        assert not any(name in str(path.relative_to(folder)) for name in names), path


@contextmanager
def everything_logged() -> Iterator[list[str]]:
    """Messages of all loggers at any level, as they come in."""
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in (None, "mim_components", "mim_tools")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.addHandler(handler)
        each.setLevel(logging.DEBUG)
    yield records
    for each, level in zip(loggers, levels, strict=True):
        each.removeHandler(handler)
        each.setLevel(level)
