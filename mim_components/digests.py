"""A sha256 beside a file, in the form of `sha256sum -c`: a file that was swapped, altered or half copied is noticed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from mim_components.utils.files import write_safely, write_text_safely

ENDING = ".sha256"
_CHUNK = 2**20


class WrongDigestError(ValueError):
    """A file is not the one that was written; names it."""


def digest_file(path: Path) -> Path:
    """Where the digest of a file stands: `model.pt.sha256` beside `model.pt`."""
    return path.with_name(path.name + ENDING)


def write_with_digest(path: Path, write: Callable[[Path], object]) -> Path:
    """`write_safely`, then its digest. A run that is killed in between leaves a file without one, never a wrong one.

    Raises:
        OSError: as `write_safely`; what was at `path` before is still there.
    """
    digests = []

    def write_and_hash(partial: Path) -> None:
        write(partial)
        digests.append(_sha256(partial))
        digest_file(path).unlink(missing_ok=True)

    write_safely(path, write_and_hash)
    write_text_safely(digest_file(path), f"{digests[0]}  {path.name}\n")
    return path


def check_digest(path: Path) -> bool:
    """Compare a file with the digest beside it; False where there is none.

    Raises:
        WrongDigestError: they differ.
    """
    beside = digest_file(path)
    if not beside.is_file():
        return False
    wanted, found = beside.read_text(encoding="utf-8", errors="replace").partition(" ")[0], _sha256(path)
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


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    hash_file(path, digest)
    return digest.hexdigest()
