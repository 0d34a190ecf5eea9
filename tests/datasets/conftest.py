"""Folders of datasets: empty files where names are enough, tiny volumes where they are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


@pytest.fixture
def touch(tmp_path: Path) -> Callable[[Iterable[str]], Path]:
    """Make empty files below `tmp_path`, which is returned."""

    def make(names: Iterable[str]) -> Path:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path

    return make


@pytest.fixture
def metadata() -> Callable[[str], dict[str, Any]]:
    """Section `dataset` of a bundle's metadata, by the middle of the bundle's name."""

    def read(name: str) -> dict[str, Any]:
        path = BUNDLES / f"mim_{name}_segmentation" / "configs" / "metadata.json"
        return json.loads(path.read_text())["dataset"]

    return read


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a NIfTI file below `tmp_path`: an array, or one made of a seed: an int the CT, "label" values 0 to 2."""

    def make(name: str, content: Any = 0, affine: np.ndarray = AFFINE) -> Path:
        if isinstance(content, int):
            content = ct(content)
        elif isinstance(content, str):
            content = np.arange(60).reshape(3, 4, 5).astype(np.uint8) % 3
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(content, affine), path)
        return path

    return make


def ct(seed: int = 0) -> np.ndarray:
    """int16 (3, 4, 5) in HU."""
    return np.random.default_rng(seed).integers(-1000, 1000, (3, 4, 5)).astype(np.int16)
