"""Judge a whole bundle, a folder or a zip archive."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from mim_tools.verify import configs, logging_files, weights
from mim_tools.verify.archives import unpack
from mim_tools.verify.digests import judge_digests
from mim_tools.verify.findings import Finding

CODE = (".bat", ".cmd", ".exe", ".ipynb", ".jar", ".ps1", ".pth", ".py", ".pyc", ".pyz", ".sh", ".whl")
ARCHIVES = (".7z", ".bz2", ".egg", ".rar", ".tar", ".tgz", ".xz")


def judge_bundle(bundle: str | Path, overrides: Sequence[str] = ()) -> list[Finding]:
    """Judge a bundle without running or importing anything of it.

    Args:
        bundle: folder with `configs/`, or a zip archive of one.
        overrides: `key=value`, as they would stand on the command line.

    Returns:
        What speaks against running it; empty where nothing was found.

    Raises:
        ValueError: no bundle, a damaged archive, or a wrong override.
    """
    path = Path(bundle)
    findings = configs.judge_overrides(overrides)
    if path.is_dir():
        return findings + _judge_folder(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such bundle, expected a folder with configs/ or a zip archive.")
    with tempfile.TemporaryDirectory(prefix="mim_verify_") as folder:
        if refused := unpack(path, Path(folder)):
            return findings + refused
        return findings + _judge_folder(Path(folder))


def _judge_folder(folder: Path) -> list[Finding]:
    root = _root(folder)
    findings: list[Finding] = []
    weight_files: list[str] = []
    for path in _files(folder):
        name = path.relative_to(root if root in path.parents else folder).as_posix()
        if (why := _why_no_plain_file(path, root)) is not None:
            findings.append(Finding(name, "", *why))
            continue
        findings += _judge_file(path, name, path.parent == root)
        try:
            if weights.is_weights(path):
                weight_files.append(name)
        except OSError as error:
            findings.append(Finding(name, "", type(error).__name__, f"cannot be read: {error}"))
    return findings + judge_digests(root, weight_files)


def _root(folder: Path) -> Path:
    """The folder with `configs/`: an archive holds one folder, named like the bundle."""
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


def _judge_file(path: Path, name: str, top: bool) -> Iterator[Finding]:
    suffix = path.suffix.lower()
    is_config = "configs" in Path(name).parts[:-1]
    if suffix in weights.LIBRARIES or (suffix in CODE and not (suffix == ".pth" and weights.why_not(path) == "")):
        yield Finding(name, "", "a program", "is code that the configuration or Python can run; it is not judged")
    elif suffix in ARCHIVES:
        yield Finding(name, "", "an archive", "its content is not judged")
    elif is_config and suffix in configs.SUFFIXES:
        yield from configs.judge_config(path, name)
    elif is_config and suffix in logging_files.SUFFIXES:
        yield from logging_files.judge_logging(path, name)
    elif why := weights.why_not(path):
        yield Finding(name, "", "a file of weights or arrays", why)
