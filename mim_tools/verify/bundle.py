"""Judge a whole bundle, a folder or a zip archive."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from mim_tools.verify import configs, weights
from mim_tools.verify.findings import Finding
from mim_tools.verify.texts import Definitions

CODE = (".bat", ".cmd", ".exe", ".ipynb", ".jar", ".ps1", ".pth", ".py", ".pyc", ".pyz", ".sh", ".whl")
PACKAGES = ("mim_components", "mim_tools")  # ours, which a release includes
ARCHIVES = (".7z", ".bz2", ".egg", ".rar", ".tar", ".tgz", ".xz")
# limits of a zip archive
MOST_FILES = 10_000
MOST_BYTES = 32 * 2**30
MOST_RATIO = 200
_SMALL = 16 * 2**20  # bytes; up to this size any compression ratio is accepted


def judge_bundle(bundle: str | Path, overrides: Sequence[str] = ()) -> list[Finding]:
    """Judge a bundle without running or importing any of it.

    Args:
        bundle: folder with `configs/`, or a zip archive of one.
        overrides: `key=value`, as on the command line.

    Returns:
        Reasons not to run it; empty if nothing was found.

    Raises:
        ValueError: not a bundle, a damaged archive, or a wrong override.
    """
    path = Path(bundle)
    findings = configs.judge_overrides(overrides)
    if path.is_dir():
        return findings + _judge_folder(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such bundle, expected a folder with configs/ or a zip archive.")
    with tempfile.TemporaryDirectory(prefix="mim_verify_") as folder:
        if refused := _unpack(path, Path(folder)):
            return findings + refused
        return findings + _judge_folder(Path(folder))


def _judge_folder(folder: Path) -> list[Finding]:
    root = _root(folder)
    findings: list[Finding] = []
    weight_files: list[str] = []
    definitions = _definitions(root)
    for path in _files(folder):
        name = path.relative_to(root if root in path.parents else folder).as_posix()
        if (why := _why_no_plain_file(path, root)) is not None:
            findings.append(Finding(name, "", *why))
            continue
        findings += _judge_file(path, name, definitions)
        try:
            if weights.is_weights(path):
                weight_files.append(name)
        except OSError as error:
            findings.append(Finding(name, "", type(error).__name__, f"cannot be read: {error}"))
    return findings + weights.judge_digests(root, weight_files)


def _root(folder: Path) -> Path:
    """The folder with `configs/`; in an archive it may be one level down."""
    inside = [each for each in folder.iterdir() if each.is_dir() and not each.is_symlink()]
    for each in (folder, *(inside if len(inside) == 1 else ())):
        if (each / "configs").is_dir() and any((each / "configs").iterdir()):
            return each
    raise ValueError(f"{folder}: there is no folder configs/ with files in it, so it is no bundle.")


def _files(folder: Path) -> Iterator[Path]:
    """Everything that is not a folder, and links to folders; links are not followed."""
    for entry in sorted(os.scandir(folder), key=lambda each: each.name):
        if entry.is_dir(follow_symlinks=False):
            yield from _files(Path(entry.path))
        else:
            yield Path(entry.path)


def _why_no_plain_file(path: Path, root: Path) -> tuple[str, str] | None:
    if path.is_symlink():
        target, real = os.readlink(path), os.path.realpath(path)
        home = os.path.realpath(root)
        if os.path.commonpath([home, real]) != home:
            return f"link to {target}", "leads out of the bundle"
        return None if os.path.isfile(real) else (f"link to {target}", "leads to no file of the bundle")
    return None if path.is_file() else ("a special file", "is neither a file nor a folder")


def _definitions(root: Path) -> Definitions:
    """What the names in the configurations of a bundle stand for."""
    definitions = Definitions()
    for path in _files(root / "configs"):
        if path.is_file() and path.name.lower().endswith(configs.SUFFIXES):
            with contextlib.suppress(OSError, ValueError, RecursionError, MemoryError):  # reported with the file
                content = configs.read_content(path)
                definitions.add(content, "_meta_" if path.name == "metadata.json" else "")
    return definitions


def _judge_file(path: Path, name: str, definitions: Definitions) -> Iterator[Finding]:
    suffix = path.suffix.lower()
    if PurePosixPath(name).parts[0] in PACKAGES:
        if not _is_ours(path, name):
            yield Finding(name, "", "a changed file", f"is not that of the installed {PurePosixPath(name).parts[0]}")
        return
    is_config = "configs" in Path(name).parts[:-1]
    if suffix in weights.LIBRARIES or (suffix in CODE and not (suffix == ".pth" and weights.why_not(path) == "")):
        yield Finding(name, "", "a program", "is code that the configuration or Python can run; it is not judged")
    elif suffix in ARCHIVES:
        yield Finding(name, "", "an archive", "its content is not judged")
    elif path.name.lower().endswith(configs.SUFFIXES):
        yield from configs.judge_config(path, name, definitions)
    elif is_config and suffix in configs.LOGGING_SUFFIXES:
        yield from configs.judge_logging(path, name)
    elif why := weights.why_not(path):
        yield Finding(name, "", "a file of weights or arrays", why)


def _is_ours(path: Path, name: str) -> bool:
    """Whether it is, byte for byte, a file of our own packages, which a release includes."""
    own = Path(__file__).parents[2] / name
    return own.is_file() and not path.is_symlink() and own.read_bytes() == path.read_bytes()


def _unpack(path: Path, folder: Path) -> list[Finding]:
    """Judge an archive, and unpack it if nothing is found.

    Args:
        path: zip file.
        folder: target folder; nothing is written elsewhere.

    Returns:
        Findings; if there are any, nothing was unpacked.

    Raises:
        ValueError: not a zip file, or not enough disk space to judge it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            findings = [
                Finding(path.name, member.filename, "member of the archive", why)
                for member in members[:MOST_FILES]
                for why in _member_faults(member)
            ]
            findings += _archive_faults(path, members)
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


def _member_faults(member: zipfile.ZipInfo) -> Iterator[str]:
    # the raw name: Python converts backslashes to slashes on some systems, and cuts at a zero byte
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


def _archive_faults(path: Path, members: list[zipfile.ZipInfo]) -> Iterator[Finding]:
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
        shutil.copyfileobj(source, file)  # zipfile reads no more than the declared size
