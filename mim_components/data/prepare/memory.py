"""Cached results of checks: an unchanged file is not decoded again, whether fit or unfit.

Every line of a record file begins with its checksum: damaged lines are skipped. The last line of a key counts.
Lines are appended as results arrive, so that a killed run loses nothing.
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mim_components.data.cases import CheckResult
from mim_components.data.find.walk import is_regular
from mim_components.data.names import hide
from mim_components.data.read.volume import cause_of
from mim_components.data.state import state_of
from mim_components.data.volumes import BadVolume, DataError, LabelMapError, VolumeError
from mim_components.utils.files import sha256, text_digest

logger = logging.getLogger(__name__)

MEMORY = "checks.jsonl"
# Part of the key: raise it when a check changes.
FORMAT = 5


def bad_volume(
    name: str, error: Exception, files: Sequence[Path] = (), hidden: Mapping[Path, str] | None = None
) -> BadVolume:
    """The entry of a volume in lists of bad ones, whatever was raised while it was read.

    Args:
        name: name of the volume in messages.
        error: exception that its check raised.
        files: files of the volume, for digest and state.
        hidden: files that must not be named, see `hide`.
    """
    cause = cause_of(error)
    if not isinstance(error, DataError | OSError):
        # damage that no check foresaw must not hide the other bad files; its traceback goes to the log
        logger.debug("%s", name, exc_info=None if hidden else error)
        cause = f"cannot be read: {type(error).__name__}: {cause}"
    state = state_of(files)
    permanent = state is not None and isinstance(error, VolumeError) and not _may_pass(error)
    label_map = isinstance(error, LabelMapError)
    return BadVolume(name, hide(cause, hidden or {}), digest_of_files(files), state, permanent, label_map)


def _may_pass(error: BaseException | None) -> bool:
    """Whether a refusal was caused by the system: network, permissions or memory may be back at the next start."""
    while error is not None:
        if isinstance(error, OSError | MemoryError) and not isinstance(error, gzip.BadGzipFile):
            return True
        error = error.__cause__
    return False


def digest_of_files(files: Iterable[Path]) -> str | None:
    """sha256 of the concatenated bytes of files; None if there are none or one cannot be read."""
    files = list(files)
    try:
        return sha256(*files) if files and all(map(is_regular, files)) else None
    except OSError:
        return None


class CheckMemory:
    """Results of checks, in a file of the cache folder shared by all checks.

    Only results that follow from the bytes of the files are kept, not failures of the system.

    Args:
        folder: cache folder.
        check: the check; results are valid only for the same `repr`.
    """

    def __init__(self, folder: str | Path, check: object) -> None:
        self._check = f"{FORMAT}\n{check!r}"
        self._lines = RecordLines(Path(folder) / MEMORY)

    def recall(self, part: str, name: str, paths: Sequence[Path]) -> CheckResult | BadVolume | None:
        """The cached result of a check; None if it must be repeated: the volume is new, changed or unreadable.

        Args:
            part: part of the files that is checked separately, such as "header".
            name: name of the volume or case in messages.
            paths: files and folders of slices that were read.
        """
        for key in (self._key(part, paths), self._key(part, paths, name)):
            record = self._lines.get(key)
            if record is None or record["state"] != state_of(paths):
                continue
            if "cause" in record:
                cause, digest, label_map = record["cause"], record["digest"], record["label_map"]
                return BadVolume(name, cause, digest, record["state"], permanent=True, label_map=label_map)
            return CheckResult(record["digest"], tuple(record["notes"]), record["content"])
        return None

    def keep(
        self,
        part: str,
        name: str,
        paths: Sequence[Path],
        state: Mapping[str, int] | None,
        result: CheckResult | BadVolume,
    ) -> None:
        """Keep a result, unless something other than the bytes of the files determined it.

        Args:
            part: see `recall`.
            name: see `recall`.
            paths: see `recall`.
            state: state of the files before they were read, see `state_of`.
            result: result of the check.
        """
        if state is None:
            return
        if isinstance(result, CheckResult):
            self._lines.keep(self._key(part, paths), {"state": state, **vars(result)})
        elif result.permanent:
            record = {"state": state, "digest": result.digest, "cause": result.cause, "label_map": result.label_map}
            self._lines.keep(self._key(part, paths, name), record)

    def _key(self, part: str, paths: Sequence[Path], name: str = "") -> str:
        # a cause may name files, by paths or digests: it is valid only for a volume of the same name
        text = "\n".join([self._check, part, name, *(os.path.abspath(path) for path in paths)])
        return text_digest(text)[:32]


class RecordLines:
    """Records by key in a file that several processes may share.

    Args:
        path: path of the file, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records = _read(path)
        self._writable = True

    def get(self, key: str) -> dict[str, Any] | None:
        """The last record kept under a key."""
        return self._records.get(key)

    def keep(self, key: str, record: dict[str, Any]) -> None:
        """Add a record; if the file cannot be written, only the next start takes longer.

        Args:
            key: key of the record.
            record: record that JSON can hold.
        """
        self._records[key] = record
        if not self._writable:
            return
        text = json.dumps({"key": key, **record})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                # the newline comes first: the previous line may be truncated
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
