"""Safe files: atomic writes, digests, and errors of a full disk."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shutil
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

PARTIAL = ".partial"  # suffix of files being written
MAX_NAME = 200  # bytes; file systems allow 255, and suffixes such as `_reconstruction.nii.gz` follow


def write_safely(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` create a file beside `path`, flush it to disk, then rename it to `path`.

    Raises:
        OSError: writing fails; names the path and the cause. A file that was at `path` before is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{uuid.uuid4().hex}{PARTIAL}")  # `path.name` may already have the greatest length
    try:
        write(partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        cause = _system_error(error)
        if cause is None:
            raise
        raise OSError(cause.errno, f"cannot write {path}: {cause.strerror or cause}") from error
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return path


def _system_error(error: BaseException | None) -> OSError | None:
    """The operating system's error behind an error, if any: torch.save raises another one while closing."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def remove_partials(folder: Path) -> None:
    """Delete the remains of killed writes below a folder to which nobody is writing."""
    for partial in folder.rglob(f".*{PARTIAL}"):
        with suppress(OSError):  # a read-only folder
            partial.unlink()


def shorten_name(name: str, limit: int = MAX_NAME) -> str:
    """A file name of at most `limit` bytes; a digest of the whole name keeps shortened ones distinct.

    Example:
        >>> shorten_name("scan"), len(shorten_name("\u8096" * 81).encode()), shorten_name("x" * 300, 20)
        ('scan', 200, 'xxx_0d4e2ca9e9cbced7')
    """
    content = name.encode("utf-8", "surrogateescape")
    if len(content) <= limit:
        return name
    digest = hashlib.sha256(content).hexdigest()[:16]
    return f"{content[: limit - len(digest) - 1].decode('utf-8', 'ignore')}_{digest}"


def write_text_safely(path: Path, text: str, private: bool = False) -> Path:
    """`write_bytes_safely` for text in UTF-8; file names in it that are not UTF-8 keep their bytes."""
    return write_bytes_safely(path, text.encode("utf-8", "surrogateescape"), private)


def write_bytes_safely(path: Path, content: bytes, private: bool = False) -> Path:
    """`write_safely` for bytes.

    Args:
        path: path of the file.
        content: content of the file.
        private: make it readable by its owner only.

    Raises:
        FullDiskError: the disk is full; says what is missing.
        OSError: it cannot be written for another reason.
    """
    try:
        return write_safely(path, lambda partial: _write(partial, content, private))
    except OSError as error:
        if error.errno in FULL:
            raise as_full_disk(error, path, len(content)) from error
        raise


def _write(path: Path, content: bytes, private: bool) -> None:
    path.touch(0o600 if private else 0o666)
    path.write_bytes(content)


def append_line(path: Path, line: str) -> None:
    """Append a line to a file, complete or not at all: on a full disk a partial line is removed.

    Raises:
        FullDiskError: the disk is full; says what is missing.
        OSError: it cannot be written for another reason; names the file.
    """
    content = f"{line}\n".encode()
    left = memoryview(content)
    try:
        with path.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                while left:
                    left = left[file.write(left) :]
            except OSError:
                with suppress(OSError):  # it may be a device
                    file.truncate(end)
                raise
    except OSError as error:
        named = OSError(error.errno, f"cannot write {path}: {error.strerror}")
        raise as_full_disk(named, path, len(content)) from error


def read_rows(path: Path) -> list[dict[str, Any]]:
    r"""The JSON objects in the lines of a file, one each; none if there is no file.

    A line that is no object, such as the last one of a killed run, is passed over.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "metrics.jsonl")
        ...     _ = path.write_text('{"step": 1}\n{"step": 2}\n{"st')
        ...     read_rows(path), read_rows(Path(folder, "absent"))
        ([{'step': 1}, {'step': 2}], [])
    """
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        with suppress(ValueError):
            if isinstance(row := json.loads(line), dict):
                rows.append(row)
    return rows


def tensors_writer(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Callable[[Path], object]:
    """A writer of a safetensors file for `write_safely`; `save_file` creates a file only its owner can read."""
    return lambda path: path.write_bytes(save(tensors, metadata))


def write_tensors_safely(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Path:
    """`write_safely` for a safetensors file."""
    return write_safely(path, tensors_writer(tensors, metadata))


ENDING = ".sha256"
_CHUNK = 2**20


class WrongDigestError(ValueError):
    """A file does not match its digest; names it."""


def digest_file(path: Path) -> Path:
    """Path of a file's digest: `model.pt.sha256` beside `model.pt`."""
    return path.with_name(path.name + ENDING)


def write_with_digest(path: Path, write: Callable[[Path], object]) -> Path:
    """`write_safely`, then write its digest. A run killed in between leaves a file without a digest, not a wrong one.

    Raises:
        OSError: as in `write_safely`; a file that was at `path` before is kept.
    """
    digests = []

    def write_and_hash(partial: Path) -> None:
        write(partial)
        digests.append(sha256(partial))
        digest_file(path).unlink(missing_ok=True)

    write_safely(path, write_and_hash)
    write_text_safely(digest_file(path), f"{digests[0]}  {path.name}\n")
    return path


def check_digest(path: Path) -> bool:
    """Compare a file with the digest beside it; False if there is none.

    Raises:
        WrongDigestError: they differ.
    """
    beside = digest_file(path)
    if not beside.is_file():
        return False
    wanted, found = beside.read_text(encoding="utf-8", errors="replace").partition(" ")[0], sha256(path)
    if wanted != found:
        raise WrongDigestError(
            f"{path}: not the file that was written: its sha256 is {found[:12]}..., {beside.name} says "
            f"{wanted[:12]}...; remove {beside.name} if the file was changed on purpose."
        )
    return True


def hash_file(path: Path, digest: hashlib._Hash) -> None:
    """Add all bytes of a file to a digest."""
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)


def sha256(*paths: Path) -> str:
    """Hexadecimal sha256 of the concatenated bytes of files."""
    digest = hashlib.sha256()
    for path in paths:
        hash_file(path, digest)
    return digest.hexdigest()


def text_digest(text: str) -> str:
    """Hexadecimal sha256 of a text; bytes of file names in it that are not UTF-8 count as they are."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FullDiskError(OSError):
    """A file exceeds the free space, a quota or a limit; says how much is missing."""


def as_size(count: float) -> str:
    """A number of bytes in a readable unit.

    Example:
        >>> as_size(20), as_size(20_500), as_size(1_234_567), as_size(45e9)
        ('20 B', '20.5 kB', '1.2 MB', '45.0 GB')
    """
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def tensor_bytes(state: Any) -> int:
    """Bytes of all tensors in nested dictionaries and lists; a tensor that occurs several times counts once."""
    seen: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            seen[value.data_ptr() or id(value)] = value.numel() * value.element_size()
        elif isinstance(value, Mapping):
            for each in value.values():
                visit(each)
        elif isinstance(value, (list, tuple)):
            for each in value:
                visit(each)

    visit(state)
    return sum(seen.values())


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of a folder, or of its nearest existing parent."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def as_full_disk(error: OSError, path: Path, needed: int) -> OSError:
    """A `FullDiskError` that says how much is missing if a full disk or a limit is the cause; else the error itself."""
    if error.errno not in FULL:
        return error
    free = free_bytes(path.parent)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and (limit < needed or error.errno == errno.EFBIG):
        reason = f"files are limited to {as_size(limit)} (ulimit -f)"
    elif free < needed:
        reason = f"disk full: {as_size(free)} are free, {as_size(needed - free)} are missing"
    else:
        cause = (error.strerror or str(error)).removeprefix(f"cannot write {path}: ")
        reason = f"{cause}; {as_size(free)} are free"
    return FullDiskError(error.errno, f"cannot write {path}, which needs {as_size(needed)}: {reason}")
