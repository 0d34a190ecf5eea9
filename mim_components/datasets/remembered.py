"""Results of checks, kept on the disk: a case whose files have not changed is not read again.

One line per case, added when its check ends, so that a run that is killed loses nothing. Lines that are damaged are
passed over; the last line of a case counts. Cases that are unfit are not kept: they are few, and may be repaired.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from pathlib import Path
from typing import Any

from mim_components.data.cache import SourceState

from .cases import Case, CaseChecker, CaseFacts

logger = logging.getLogger(__name__)

# Part of the key: raise it when a check becomes stricter.
FORMAT = 1


class CheckMemory:
    """Results of one checker, in a file that all checkers share.

    Args:
        path: the file; it need not be there.
        checker: results count only for a checker with the same `repr`.
    """

    def __init__(self, path: Path, checker: CaseChecker) -> None:
        self.path = path
        self._settings = f"{FORMAT}\n{checker!r}"
        self._records = _read(path)
        self._writable = True

    def recall(self, case: Case) -> CaseFacts | None:
        """What the check of a case found out, or None where it must be checked: new, changed, or not readable."""
        record = self._records.get(self._key(case))
        if record is None or record["state"] != state_of(case):
            return None
        return CaseFacts(record["digest"], tuple(record["notes"]), record["content"])

    def keep(self, case: Case, state: dict[str, int] | None, facts: CaseFacts) -> None:
        """Add a result; a file that cannot be written costs the next start its time, not this one its success.

        Args:
            case: the case.
            state: of its files before they were read.
            facts: the result.
        """
        if state is None or not self._writable:
            return
        record = {"key": self._key(case), "state": state, **vars(facts)}
        text = json.dumps(record)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                # the newline goes first: the line before may have been cut off
                file.write(f"\n{zlib.crc32(text.encode()):08x} {text}")
        except OSError as error:
            self._writable = False
            logger.warning("%s: results of checks cannot be kept: %s", self.path, error.strerror)

    def _key(self, case: Case) -> str:
        text = "\n".join([self._settings, repr(case.label), *(os.path.abspath(path) for path in case.files)])
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def state_of(case: Case) -> dict[str, int] | None:
    """Number, size and time of all files of a case, also those in a folder of slices; None where one is missing."""
    files: list[Path] = []
    try:
        for path in case.files:
            files += sorted(path.iterdir()) if path.is_dir() else [path]
        return dict(vars(SourceState.of(tuple(files))))
    except (OSError, ValueError):  # ValueError: an empty folder
        return None


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
