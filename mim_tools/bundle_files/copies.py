"""Copy the shared files into a bundle and bring its table of options up to date, or say what differs."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mim_components.utils.files import write_safely, write_text_safely
from mim_tools.bundle_files.options import BEGIN, with_options

SOURCES = Path(__file__).parent
COMMON = "common"  # files of every workflow
METADATA = Path("configs", "metadata.json")
README = Path("docs", "README.md")
KEY = "workflow"
NOT_FILES = {"__pycache__", ".DS_Store"}


class BundleFilesError(Exception):
    """A folder is no bundle, or its metadata names no workflow that has files here."""


def workflows() -> list[str]:
    """Names that `workflow` in a bundle's metadata may have."""
    return sorted(path.name for path in SOURCES.iterdir() if path.is_dir() and path.name not in {COMMON, *NOT_FILES})


def source_files(workflow: str) -> dict[Path, Path]:
    """Shared files of a workflow: path below the bundle to the file that it is copied from."""
    files: dict[Path, Path] = {}
    for folder in (SOURCES / COMMON, SOURCES / workflow):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not NOT_FILES.intersection(path.parts):
                files[path.relative_to(folder)] = path
    return files


def find_bundles(root: str | Path = "bundles") -> list[Path]:
    """Folders directly below `root` whose metadata names a workflow, by name."""
    return [path.parents[1] for path in sorted(Path(root).glob(f"*/{METADATA.as_posix()}")) if KEY in _metadata(path)]


def update_bundle(folder: str | Path, check: bool = False) -> dict[str, Literal["missing", "differs"]]:
    """Bring the copies of the shared files in a bundle up to date.

    A copy that differs is replaced, whatever was changed in it: changes belong in the metadata, or in the source here.

    Args:
        folder: a bundle; its `configs/metadata.json` names the `workflow`.
        check: write nothing, only say what would be written.

    Returns:
        The files that were (or would be) written, by their path below the bundle, and what was wrong with them.

    Raises:
        BundleFilesError: no readable metadata, or it names no known workflow.
    """
    folder = Path(folder)
    stale: dict[str, Literal["missing", "differs"]] = {}
    for name, source in source_files(_workflow(folder / METADATA)).items():
        copy = folder / name
        if copy.is_file() and copy.read_bytes() == source.read_bytes():
            continue
        stale[name.as_posix()] = "differs" if copy.exists() else "missing"
        if not check:
            write_safely(copy, partial(shutil.copyfile, source))
    readme = folder / README
    if readme.is_file() and BEGIN in (text := readme.read_text(encoding="utf-8")):
        current = with_options(text, folder)
        if current != text:
            stale[README.as_posix()] = "differs"
            if not check:
                write_text_safely(readme, current)
    return stale


def _workflow(path: Path) -> str:
    name, known = _metadata(path).get(KEY), workflows()
    if name not in known:
        raise BundleFilesError(f"{path}: {KEY!r} must be one of {', '.join(known)}, got {name!r}.")
    return str(name)


def _metadata(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"no valid JSON, {error}"
        raise BundleFilesError(f"{path}: cannot be read ({reason}); a bundle's folder has this file.") from error
    if not isinstance(content, dict):
        raise BundleFilesError(f"{path}: must hold a JSON object, got {type(content).__name__}.")
    return content
