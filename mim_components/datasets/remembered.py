"""Results of checks, kept on the disk: a case whose files have not changed is not read again, fit or unfit."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from mim_components.data.cases import Case, CaseChecker, CaseFacts
from mim_components.data.prepare.memory import bad_of_record, files_in, record_of_bad, state_of_files
from mim_components.data.record_lines import RecordLines
from mim_components.data.volumes import BadVolume

# Part of the key: raise it when a check becomes stricter.
FORMAT = 2
# Headers whose voxels lie in another file, which may be repaired while the header stays.
_DETACHED = (".mhd", ".nhdr")


class CheckMemory:
    """Results of one checker, in a file that all checkers share.

    Args:
        path: the file; it need not be there.
        checker: results count only for a checker with the same `repr`.
    """

    def __init__(self, path: Path, checker: CaseChecker) -> None:
        self._settings = f"{FORMAT}\n{checker!r}"
        self._lines = RecordLines(path)

    def recall(self, case: Case) -> CaseFacts | BadVolume | None:
        """What the check of a case found out, or None where it must be checked: new, changed, or not readable."""
        for key in (self._key(case), self._bad_key(case)):
            record = self._lines.get(key)
            if record is not None and record["state"] == state_of(case):
                return _result(case, record)
        return None

    def keep(self, case: Case, state: dict[str, int] | None, result: CaseFacts | BadVolume) -> None:
        """Add a result, unless something else than the bytes of the files decided it.

        Args:
            case: the case.
            state: of its files before they were read.
            result: of the check.
        """
        if state is None:
            return
        if isinstance(result, CaseFacts):
            self._lines.keep(self._key(case), {"state": state, **vars(result)})
        elif result.lasting and not any(path.suffix.lower() in _DETACHED for path in case.files):
            self._lines.keep(self._bad_key(case), record_of_bad(result) | {"state": state})

    def _key(self, case: Case) -> str:
        text = "\n".join([self._settings, repr(case.label), *(os.path.abspath(path) for path in case.files)])
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]

    def _bad_key(self, case: Case) -> str:
        # a cause may name files, by paths or by aliases
        return hashlib.sha256(f"bad {self._key(case)} {' '.join(case.aliases)}".encode()).hexdigest()[:32]


def files_of(case: Case) -> list[Path]:
    """All files of a case, also those in a folder of slices.

    Raises:
        OSError: a folder cannot be read.
    """
    return files_in(case.files)


def state_of(case: Case) -> dict[str, int] | None:
    """Number, size and time of all files of a case; None where one is missing."""
    try:
        return state_of_files(files_of(case))
    except OSError:
        return None


def _result(case: Case, record: dict[str, Any]) -> CaseFacts | BadVolume:
    if "cause" in record:
        return bad_of_record(case.source, record)
    return CaseFacts(record["digest"], tuple(record["notes"]), record["content"])
