"""Checkpoint files: written atomically with a digest, and checked when read."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mim_components.utils.files import WrongDigestError, as_full_disk, check_digest, tensor_bytes, write_with_digest

logger = logging.getLogger(__name__)

# of the weights, see `InputContract`: 2 since GELU in the patch embeddings and a projection before the transformer
CONTRACT_VERSION = 2


class DamagedCheckpointError(ValueError):
    """A file is truncated, altered, not a checkpoint, or not finite; names it."""


class OtherVersionError(ValueError):
    """Weights, or a run, of a version of the networks that this package does not support; names both and the remedy."""

    def __init__(self, source: object, found: object) -> None:
        super().__init__(
            f"{source}: contract version {found}, but this package takes only version {CONTRACT_VERSION}: the hybrid "
            "encoder has changed; pre-train (and fine-tune) again, or install the version that wrote it."
        )


def read_checkpoint(path: str | Path, parts: Sequence[str] = ()) -> dict[str, Any]:
    """Read a file written by `torch.save` after checking every byte, without unpickling code.

    Args:
        path: file to read.
        parts: keys that it must have.

    Raises:
        DamagedCheckpointError: the file is damaged (CRC of every part), not a checkpoint, lacks a part, holds values
            that are not finite, or does not match the digest beside it.
        OtherVersionError: its weights predate the present hybrid encoder.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise DamagedCheckpointError(f"{path}: damaged, its part {broken} fails the checksum.")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except DamagedCheckpointError:
        raise
    except FileNotFoundError:
        raise
    except Exception as error:  # torch and zipfile raise many kinds of errors for damaged or foreign files
        raise DamagedCheckpointError(f"{path}: not a readable checkpoint ({what_it_is(path) or error}).") from error
    if not isinstance(state, dict):
        raise DamagedCheckpointError(f"{path}: holds a {type(state).__name__}, expected a dictionary.")
    network = state.get("network", state)
    if not isinstance(network, dict):
        raise DamagedCheckpointError(f"{path}: its network is a {type(network).__name__}, expected a dictionary.")
    check_version(network, path)
    check_finite(network, path)
    missing = [part for part in parts if part not in state]
    if missing:
        raise DamagedCheckpointError(f"{path}: has no {', '.join(missing)}.")
    try:
        check_digest(Path(path))  # last: the other checks are more specific
    except WrongDigestError as error:
        raise DamagedCheckpointError(str(error)) from error
    return state


def save_to(path: Path, state: dict[str, Any]) -> None:
    """`torch.save` with equal bytes for equal content: given a path, it would write the file's name into the file."""
    with path.open("wb") as file:
        torch.save(state, file)


def save_safely(path: Path, state: dict[str, Any]) -> Path:
    """`save_to`, atomically and with a digest.

    Raises:
        FullDiskError: the disk is full; says how much is missing. A file that was at `path` before is kept.
        OSError: writing fails for another reason.
    """
    try:
        return write_with_digest(path, lambda partial: save_to(partial, state))
    except OSError as error:
        raise as_full_disk(error, path, tensor_bytes(state)) from error


def what_it_is(path: str | Path) -> str:
    """Describe a file without weights if it is a common mistake; else an empty string."""
    if Path(path).is_dir():
        return "a folder"
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        return "the file is empty"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, the weights were not fetched; run: git lfs pull"
    return "an HTML page, not weights" if head.lstrip().startswith(b"<") else ""


def check_version(state: Mapping[str, Any], path: str | Path) -> None:
    """Raise OtherVersionError for weights of a hybrid encoder without a projection, alone or within a network."""
    for name in state:
        prefix, first, _ = str(name).partition("embeddings.0.conv.weight")
        if first and f"{prefix}projection.weight" not in state:
            raise OtherVersionError(path, f"1 (no {prefix}projection.weight)")


def check_finite(state: dict[str, Any], path: str | Path) -> None:
    """Raise DamagedCheckpointError if a tensor is not finite; names the file and the first such tensor."""
    for name, value in state.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise DamagedCheckpointError(f"{path}: weights are not finite: {name}.")
