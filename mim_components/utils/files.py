"""Write files so that a reader never sees half of one, whatever happens meanwhile."""

from __future__ import annotations

import errno
import hashlib
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from mim_components.disk import FULL, as_full_disk

PARTIAL = ".partial"  # ending of files that are being written
MAX_NAME = 200  # bytes; file systems allow 255, and endings such as `_reconstruction.nii.gz` follow


def write_safely(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` make a file beside `path`, bring it to the disk, then rename it to `path`.

    Raises:
        OSError: with the path and the cause; what was at `path` before is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{uuid.uuid4().hex}{PARTIAL}")  # short: `path.name` may be as long as names can be
    try:
        write(partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path}: {error.strerror or error}") from error
    except RuntimeError as error:  # torch.save's form of a full disk
        raise OSError(errno.EIO, f"cannot write {path}, is the disk full? ({error})") from error
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return path


def remove_partials(folder: Path) -> None:
    """Delete what writes that were killed have left below a folder in which nobody writes now."""
    for partial in folder.rglob(f".*{PARTIAL}"):
        with suppress(OSError):  # of a folder that is only read
            partial.unlink()


def shorten_name(name: str, limit: int = MAX_NAME) -> str:
    """A file name of at most `limit` bytes; what is cut off is told apart by a digest of the whole.

    Example:
        >>> shorten_name("scan"), len(shorten_name("\u8096" * 81).encode()), shorten_name("x" * 300, 20)
        ('scan', 200, 'xxx_98a59b7b8a28f142')
    """
    content = name.encode("utf-8", "surrogateescape")
    if len(content) <= limit:
        return name
    digest = hashlib.sha256(content).hexdigest()[:16]
    return f"{content[: limit - len(digest) - 1].decode('utf-8', 'ignore')}_{digest}"


def write_text_safely(path: Path, text: str, private: bool = False) -> Path:
    """`write_bytes_safely` of a text in UTF-8; file names that are not UTF-8 keep their bytes."""
    return write_bytes_safely(path, text.encode("utf-8", "surrogateescape"), private)


def write_bytes_safely(path: Path, content: bytes, private: bool = False) -> Path:
    """`write_safely` of what is at hand.

    Args:
        path: of the file.
        content: of the file.
        private: only the owner may read it.

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
    """Add a line to a file, whole or not at all: on a full disk, what was written of it is taken back.

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
                with suppress(OSError):  # a device, say
                    file.truncate(end)
                raise
    except OSError as error:
        named = OSError(error.errno, f"cannot write {path}: {error.strerror}")
        raise as_full_disk(named, path, len(content)) from error


def tensors_writer(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Callable[[Path], object]:
    """What writes a safetensors file; its own `save_file` makes a file that others may not read."""
    return lambda path: path.write_bytes(save(tensors, metadata))


def write_tensors_safely(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Path:
    """`write_safely` of a safetensors file."""
    return write_safely(path, tensors_writer(tensors, metadata))
