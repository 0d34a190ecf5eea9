"""What checks found, kept on the disk: a file that has not changed is not decoded again, fit or unfit.

Every line of a file of records begins with its checksum: damaged lines are passed over. The last line of a key counts.
Lines are added as they come up, so that a run that is killed loses nothing.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mim_components.data.cases import Case, CaseChecker, CaseFacts
from mim_components.data.find.walk import is_regular
from mim_components.data.names import hide
from mim_components.data.read.volume import cause_of
from mim_components.data.volumes import BadVolume, DataError, SourceState, VolumeError, VolumeSource
from mim_components.utils.files import sha256

logger = logging.getLogger(__name__)

MEMORY = "known_bad.jsonl"
# Part of the key: raise it when a check changes.
FORMAT = 2


def as_bad(
    name: str, error: Exception, files: Sequence[Path] = (), hidden: Mapping[Path, str] | None = None
) -> BadVolume:
    """What a table says of a volume, whatever was raised while it was read.

    Args:
        name: of the volume.
        error: that was raised.
        files: of the volume, for digest and state.
        hidden: files that must not be named, see `hide`.
    """
    cause = cause_of(error)
    if not isinstance(error, DataError | OSError):
        # a kind of damage that no check foresaw must not hide the other bad files; its traceback goes to the log
        logger.debug("%s", name, exc_info=None if hidden else error)
        cause = f"cannot be read: {type(error).__name__}: {cause}"
    state, lasting = state_of_files(files), isinstance(error, VolumeError) and not _may_pass(error)
    return BadVolume(name, hide(cause, hidden or {}), digest_of_files(files), state, lasting and state is not None)


def _may_pass(error: BaseException | None) -> bool:
    """Whether a refusal came of the system: a network, a right, or memory may be back at the next start."""
    while error is not None:
        if isinstance(error, OSError | MemoryError) and not isinstance(error, gzip.BadGzipFile):
            return True
        error = error.__cause__
    return False


def state_of_files(files: Sequence[Path]) -> dict[str, int] | None:
    """Number, size and time of files; None where one is missing, or there is none."""
    try:
        return dict(vars(SourceState.of(tuple(files))))
    except (OSError, RuntimeError, ValueError):  # a circular link; no file
        return None


def digest_of_files(files: Iterable[Path]) -> str | None:
    """sha256 of the bytes of files, one after the other; None where one cannot be read, or there is none."""
    files = list(files)
    try:
        return sha256(*files) if files and all(map(is_regular, files)) else None
    except OSError:
        return None


def files_in(paths: Iterable[Path]) -> list[Path]:
    """Files, and those in folders of slices by name.

    Raises:
        OSError: a folder cannot be read.
    """
    files: list[Path] = []
    for path in paths:
        files += sorted(path.iterdir()) if path.is_dir() else [path]
    return files


def record_of_bad(bad: BadVolume) -> dict[str, Any]:
    """What is kept of a volume that is bad for good."""
    return {"state": bad.state, "digest": bad.digest, "cause": bad.cause}


def bad_of_record(name: str, record: Mapping[str, Any]) -> BadVolume:
    """The bad volume of a record."""
    return BadVolume(name, record["cause"], record["digest"], record["state"], lasting=True)


class KnownBad:
    """Bad volumes in a file of the cache folder.

    Kept is what the bytes of the files decide, not what the system refused; and apart from each other what is said of a
    header, which costs nothing to read again and may depend on settings, and of voxels.

    Args:
        folder: of the cache.
    """

    def __init__(self, folder: str | Path) -> None:
        self._lines = RecordLines(Path(folder) / MEMORY)

    def recall(self, part: str, source: VolumeSource, files: Sequence[Path]) -> BadVolume | None:
        """What was said of a volume, as long as its files are the same; None where it must be read.

        Args:
            part: "header" or "voxels".
            source: the volume.
            files: that were read; of voxels everything that the header names.
        """
        record = self._lines.get(_key(part, source, files))
        if record is None or record["state"] != state_of_files(files):
            return None
        return bad_of_record(str(source), record)

    def keep(self, part: str, source: VolumeSource, files: Sequence[Path], bad: BadVolume) -> None:
        """Add a volume that is bad for good; arguments as of `recall`."""
        if bad.lasting:
            self._lines.keep(_key(part, source, files), record_of_bad(bad))


def _key(part: str, source: VolumeSource, files: Sequence[Path]) -> str:
    text = "\n".join([f"{FORMAT} {part}", str(source), *(os.path.abspath(path) for path in files)])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


STATE = "state"


def state_text(state: Mapping[str, int] | None) -> str:
    """State of files as a text; empty where one is missing."""
    return "" if state is None else " ".join(f"{name}={value}" for name, value in state.items())


def is_unchanged(item: Mapping[str, Any]) -> bool:
    """Whether the files of an item are those that were checked; true of an item that was not."""
    if STATE not in item:
        return True
    try:
        return state_text(state_of_files(files_in(_paths_of(item)))) == item[STATE]
    except OSError:
        return False


def _paths_of(item: Mapping[str, Any]) -> Iterator[Path]:
    """Files and folders of image and label."""
    for name in ("image", "label"):
        value = item.get(name)
        for each in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(each, str):
                yield Path(each)


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
