"""Files of a release: what of a bundle belongs into it, its weights and their list, its code, and the archive."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

import mim_components
from mim_components.utils.files import check_digest, digest_file, sha256, write_with_digest
from mim_components.utils.tensor_files import read_checkpoint
from mim_components.weights.contract import TRAINING_VOLUMES, read_facts

# all that is taken from the folder of a bundle; models/ gets what `add_weights` and `add_encoders` name
PACKED = ("configs", "docs", "LICENSE")
NOT_FILES = (".*", "__pycache__")  # of an editor or a system, in the packed folders too
ENCODERS = ("encoder.safetensors", "encoder_best.safetensors")  # of a pre-training
# what runs write into the folder of a bundle, and what a release makes again; left out without a word
KNOWN = """.lock .gitignore *.DS_Store *__pycache__ cache checkpoints demo evaluation inference pictures probe
    run_* runs mlruns* *.db *.db-* *.jsonl *.log run.json data_contents.json data_notes.txt data_report.md datalist.json
    excluded_volumes.json nonfinite_step_*.json models models/README.md models/model.pt models/model.pt.sha256
    models/model.json models/model.safetensors models/model.safetensors.sha256 models/encoder.safetensors
    models/encoder.safetensors.sha256 models/encoder_best.safetensors models/encoder_best.safetensors.sha256
    models/training_volumes.txt README.md requirements.txt large_files.yml mim_components mim_tools""".split()


class ReleaseError(ValueError):
    """A check of the release has failed; says which and why."""


def copy_bundle(bundle: Path, folder: Path) -> None:
    """Copy what a bundle is made of, and nothing that a run has written beside it."""
    for source in (bundle / name for name in PACKED):
        if source.is_dir():
            shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns(*NOT_FILES))
        elif source.is_file():
            shutil.copyfile(source, folder / source.name)


def left_out(bundle: Path, folder: Path) -> list[str]:
    """Names of what a bundle's folder holds but its release lacks, besides what runs write; folders end with a slash.

    Args:
        bundle: folder of the bundle.
        folder: release with the bundle's files and its weights.
    """

    def places() -> Iterator[Path]:
        yield from bundle.iterdir()
        yield from (bundle / "models").glob("*")
        for name in ("configs", "docs"):
            yield from (bundle / name).rglob("*")

    names = {path.relative_to(bundle).as_posix(): path for path in places()}
    unknown = [name for name in sorted(names) if not any(fnmatchcase(name, known) for known in KNOWN)]
    return [f"{name}/" if names[name].is_dir() else name for name in unknown if not (folder / name).exists()]


def add_weights(weights: Path, models: Path) -> dict[str, Any]:
    """Copy `model.pt` and its companions, and write it as safetensors; returns the facts stored beside it."""
    state = read_checkpoint(weights)
    if "network" in state:
        raise ReleaseError(f"{weights}: is a checkpoint of a run, expected its models/model.pt.")
    write_with_digest(models / "model.pt", lambda partial: shutil.copyfile(weights, partial))
    # copies, because safetensors refuses tensors that share memory
    tensors = {name: value.clone().contiguous() for name, value in state.items()}
    write_with_digest(models / "model.safetensors", lambda partial: save_file(tensors, partial))
    facts = read_facts(weights.with_suffix(".json"))
    if facts:
        shutil.copyfile(weights.with_suffix(".json"), models / "model.json")
    encoders = [weights.with_name(name) for name in ENCODERS]
    for path in (weights.with_name(TRAINING_VOLUMES), *encoders, *map(digest_file, encoders)):
        if path.is_file():
            shutil.copyfile(path, models / path.name)
    return facts


def add_encoders(source: Path, models: Path) -> None:
    """Copy weights for which a bundle has a page, such as `encoder_tiny.md`: page, weights and digest."""
    for page in sorted(each for each in source.glob("*.md") if each.name != "README.md"):
        weights = page.with_suffix(".safetensors")
        if not weights.is_file() or not check_digest(weights):
            raise ReleaseError(f"{page}: describes {weights.name}, but these or their digest are missing here.")
        for path in (page, weights, digest_file(weights)):
            shutil.copyfile(path, models / path.name)


def add_code(folder: Path) -> None:
    """Copy the packages that the configurations name into the bundle."""
    source = Path(mim_components.__file__).parents[1]
    texts = "".join(path.read_text(encoding="utf-8") for path in (folder / "configs").glob("*.json"))
    for package in ("mim_components", "mim_tools"):
        if f"{package}." in texts:
            shutil.copytree(source / package, folder / package, ignore=shutil.ignore_patterns(*NOT_FILES))


def large_files(models: Path, url: str) -> str:
    """List the weights files with digests and addresses; the Model Zoo does not store them."""
    lines = ["large_files:"]
    for path in sorted(each for each in models.iterdir() if each.suffix in (".pt", ".safetensors")):
        name = f"models/{path.name}"
        lines += [f'  - path: "{name}"', f'    url: "{url}/{name}"']
        lines += [f'    hash_val: "{sha256(path)}"', '    hash_type: "sha256"']
    return "\n".join(lines) + "\n"


def pack(folder: Path, archive: Path) -> Path:
    """Write a folder to a zip archive."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(each for each in folder.rglob("*") if each.is_file()):
            packed.write(path, path.relative_to(folder.parent))
    return archive
