"""Unpack a zip archive of a bundle into a folder, unless it would do more than that."""

from __future__ import annotations

import re
import shutil
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mim_tools.verify.findings import Finding

MOST_FILES = 10_000
MOST_BYTES = 32 * 2**30
MOST_RATIO = 200
_SMALL = 16 * 2**20  # bytes; what is not larger may be packed as densely as it likes


def unpack(path: Path, folder: Path) -> list[Finding]:
    """Judge an archive, and unpack it where nothing is found.

    Args:
        path: the zip file.
        folder: where to; nothing is written elsewhere.

    Returns:
        What is wrong; then nothing was unpacked.

    Raises:
        ValueError: no zip file, or not enough room to judge it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            findings = [
                Finding(path.name, member.filename, "member of the archive", why)
                for member in members[:MOST_FILES]
                for why in _faults(member)
            ]
            findings += _faults_of_all(path, members)
            if findings:
                return findings
            needed, free = sum(member.file_size for member in members), shutil.disk_usage(folder).free
            if needed > free:
                raise ValueError(f"{path}: unpacks to {needed} bytes, {free} are free in {folder}.")
            for member in members:
                _extract(archive, member, folder)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError) as error:
        raise ValueError(f"{path}: not a readable zip file: {error}") from error
    return []


def _faults(member: zipfile.ZipInfo) -> Iterator[str]:
    # as it is written in the archive: Python turns backslashes into slashes on some systems, and cuts at a zero byte
    name = member.orig_filename
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or "\\" in name or "\0" in name:
        yield "an absolute path, or one of another system"
    if ".." in PurePosixPath(name).parts:
        yield "leads out of the folder it is unpacked in"
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        yield "a link or special file"
    if member.flag_bits & 1:
        yield "is encrypted and cannot be judged"
    if member.file_size > max(_SMALL, MOST_RATIO * max(member.compress_size, 1)):
        yield f"unpacks from {member.compress_size} to {member.file_size} bytes"


def _faults_of_all(path: Path, members: list[zipfile.ZipInfo]) -> Iterator[Finding]:
    names = [str(PurePosixPath(member.filename)).casefold() for member in members]
    if len(members) > MOST_FILES:
        yield Finding(path.name, "", f"{len(members)} members", f"more than {MOST_FILES}")
    elif repeated := sorted({name for name in names if names.count(name) > 1}):
        yield Finding(path.name, repeated[0], "two members of one name", "programs differ in which they take")
    if (total := sum(member.file_size for member in members)) > MOST_BYTES:
        yield Finding(path.name, "", f"unpacks to {total} bytes", f"more than {MOST_BYTES}")
    if total > _SMALL and total > MOST_RATIO * path.stat().st_size:
        yield Finding(path.name, "", f"unpacks to {total} bytes", f"from {path.stat().st_size}: made to fill the disk")


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> None:
    target = folder / PurePosixPath(member.filename)
    if member.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, target.open("xb") as file:
        shutil.copyfileobj(source, file)  # zipfile reads no more than the size that was judged
