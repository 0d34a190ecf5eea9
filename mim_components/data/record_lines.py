"""Records kept on the disk, one line each, added as they come up, so that a run that is killed loses nothing.

Every line begins with its checksum: damaged lines are passed over. The last line of a key counts.
"""

from __future__ import annotations

import json
import logging
import zlib
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


class RecordLines:
    """Records by key in a file that several may share.

    Args:
        path: the file; it need not be there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records = _read(path)
        self._writable = True

    def get(self, key: str) -> dict[str, Any] | None:
        """The last record that was kept under a key."""
        return self._records.get(key)

    def keep(self, key: str, record: dict[str, Any]) -> None:
        """Add a record; a file that cannot be written costs the next start its time, not this one its success.

        Args:
            key: of the record.
            record: what JSON can hold.
        """
        self._records[key] = record
        if not self._writable:
            return
        text = json.dumps({"key": key, **record})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                # the newline goes first: the line before may have been cut off
                file.write(f"\n{zlib.crc32(text.encode()):08x} {text}")
        except OSError as error:
            self._writable = False
            logger.warning("%s: results of checks cannot be kept: %s", self.path, error.strerror)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    records: dict[str, dict[str, Any]] = {}
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return records
    for line in lines:
        crc, _, text = line.partition(b" ")
        if crc == f"{zlib.crc32(text):08x}".encode():
            record = json.loads(text)
            records[record["key"]] = record
    return records
