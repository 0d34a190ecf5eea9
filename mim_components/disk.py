"""What a full disk says: how much was needed, how much is free, and of what."""

from __future__ import annotations

import errno
import resource
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

# torch.save hides the reason when a disk is full; `write_safely` gives it EIO
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class FullDiskError(OSError):
    """A file does not fit on its disk, into a quota or below a limit; says how many bytes are missing."""


def as_size(count: float) -> str:
    """Bytes as a person reads them.

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
    """Bytes of all tensors in nested dictionaries and lists; a tensor that stands in several places counts once."""
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
    """Bytes that are free on the disk of a folder, or of the nearest one above it that exists."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def as_full_disk(error: OSError, path: Path, needed: int) -> OSError:
    """The same error with what is missing, where a full disk or a limit is the reason; else the error itself."""
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
