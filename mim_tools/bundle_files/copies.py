"""Write the shared files into a bundle and update its table of options, or report what differs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from mim_components.utils.files import write_text_safely
from mim_tools.bundle_files.compose import as_overlay, as_text, merge, read_fragment, with_literals
from mim_tools.bundle_files.options import BEGIN, with_options

SOURCES = Path(__file__).parent
# folders of the fragments of a workflow; later ones take precedence
FRAGMENTS = {
    "pretraining": ("common", "pretraining"),
    "segmentation": ("common", "fine_tuning", "segmentation"),
    "classification": ("common", "fine_tuning", "classification"),
}
BOTH = "train_and_inference.json"  # fragment of both files
METADATA = Path("configs", "metadata.json")
INFERENCE = Path("configs", "inference.json")
README = Path("docs", "README.md")
KEY = "workflow"
NOT_FILES = {"__pycache__", ".DS_Store"}


class BundleFilesError(Exception):
    """A folder is not a bundle, or its metadata names no workflow with files here."""


def workflows() -> list[str]:
    """Names that `workflow` in a bundle's metadata may have."""
    return sorted(FRAGMENTS)


def shared_files(workflow: str) -> dict[Path, bytes]:
    """Files that the bundles of a workflow share, by their path below the bundle."""
    return {name: _content(paths) for name, paths in fragments_of(workflow).items()}


def fragments_of(workflow: str) -> dict[Path, list[Path]]:
    """Fragments of each shared file; later ones take precedence."""
    places: dict[Path, list[Path]] = {}
    for folder in (SOURCES / name for name in FRAGMENTS[workflow]):
        for path in sorted(folder.rglob("*"), key=lambda each: (each.name != BOTH, each)):
            if path.is_file() and not NOT_FILES.intersection(path.parts):
                name = path.relative_to(folder)
                for made in ("train.json", "inference.json") if name.name == BOTH else (name.name,):
                    places.setdefault(name.with_name(made), []).append(path)
    return places


def _content(paths: Sequence[Path]) -> bytes:
    """A configuration merged from its fragments; for any other file, the last one."""
    if paths[0].suffix == ".json":
        config = merge(map(read_fragment, paths))
        return as_text(config if "bundle_root" in config else as_overlay(config)).encode()
    return paths[-1].read_bytes()


def bundle_files(folder: Path) -> dict[Path, bytes]:
    """The shared files as they are in a bundle: its `inference.json` contains the values of its metadata.

    MONAI Label reads that file without the metadata.

    Raises:
        BundleFilesError: no readable metadata, or it names no known workflow.
    """
    files = shared_files(_workflow(folder / METADATA))
    if INFERENCE in files:
        config = with_literals(json.loads(files[INFERENCE]), _metadata(folder / METADATA))
        files[INFERENCE] = as_text(config).encode()
    return files


def find_bundles(root: str | Path = "bundles") -> list[Path]:
    """Folders directly below `root` whose metadata names a workflow, by name."""
    return [path.parents[1] for path in sorted(Path(root).glob(f"*/{METADATA.as_posix()}")) if KEY in _metadata(path)]


def update_bundle(folder: str | Path, check: bool = False) -> dict[str, Literal["missing", "differs"]]:
    """Update the shared files of a bundle.

    A copy that differs is replaced, whatever was changed in it: changes belong in the metadata or in the source here.

    Args:
        folder: a bundle; its `configs/metadata.json` names the `workflow`.
        check: write nothing, only report what would be written.

    Returns:
        The files that were (or would be) written, by path below the bundle, and what was wrong with them.

    Raises:
        BundleFilesError: no readable metadata, or it names no known workflow.
    """
    folder = Path(folder)
    stale: dict[str, Literal["missing", "differs"]] = {}
    for name, content in bundle_files(folder).items():
        copy = folder / name
        if copy.is_file() and copy.read_bytes() == content:
            continue
        stale[name.as_posix()] = "differs" if copy.exists() else "missing"
        if not check:
            write_text_safely(copy, content.decode())
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
        reason = error.strerror if isinstance(error, OSError) else f"invalid JSON, {error}"
        raise BundleFilesError(f"{path}: cannot be read ({reason}); a bundle's folder has this file.") from error
    if not isinstance(content, dict):
        raise BundleFilesError(f"{path}: must hold a JSON object, got {type(content).__name__}.")
    return content
