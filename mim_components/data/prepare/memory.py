"""What is said of a bad volume, and the memory of it: a bad file that has not changed is not decoded again."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mim_components.data.cache.volumes import SourceState
from mim_components.data.find.walk import is_regular
from mim_components.data.names import hide
from mim_components.data.read.volume import cause_of
from mim_components.data.record_lines import RecordLines
from mim_components.data.volumes import BadVolume, DataError, VolumeError, VolumeSource
from mim_components.utils.files import hash_file

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
    digest, files = hashlib.sha256(), list(files)
    try:
        for path in files:
            if not is_regular(path):
                return None
            hash_file(path, digest)
    except OSError:
        return None
    return digest.hexdigest() if files else None


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
