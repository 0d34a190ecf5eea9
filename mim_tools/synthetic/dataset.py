"""Writes synthetic CTs as a folder of NIfTI files with a Decathlon-style `dataset.json`."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mim_components.utils.files import write_text_safely
from mim_tools.synthetic.generate import DESCRIPTION, SYNTHETIC_VERSION, check_grid, synthetic_ct
from mim_tools.synthetic.tissue import SYNTHETIC_LABELS
from mim_tools.synthetic.writer import is_complete, write_nifti

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Recipe:
    """What determines a volume; stored in the file, so that a later run recognises it."""

    seed: int
    spatial_size: tuple[int, int, int]
    spacing: tuple[float, float, float]

    def text(self, kind: str) -> str:
        facts = {
            "description": DESCRIPTION,
            "kind": kind,
            "seed": self.seed,
            "spatial_size": list(self.spatial_size),
            "spacing": list(self.spacing),
            "version": SYNTHETIC_VERSION,
        }
        return json.dumps(facts, sort_keys=True)


def write_synthetic_dataset(
    output_dir: str | os.PathLike[str],
    num_volumes: int,
    seed: int = 0,
    spatial_size: Sequence[int] = (128, 128, 96),
    spacing: Sequence[float] = (3.0, 3.0, 4.0),
    with_labels: bool = True,
    vary: bool = False,
    progress: bool = False,
) -> list[Path]:
    """Write synthetic CTs, their labels and a list of both.

    Images go to `images/synthetic_ct_0000.nii.gz`, labels to `labels/synthetic_ct_0000_label.nii.gz`, the list to
    `dataset.json`. A complete file made by the same recipe (seed, size, spacing, version) is kept; any
    other is written under another name and then renamed, so that a stopped run leaves no incomplete files.

    Args:
        output_dir: folder to write to; created if missing.
        num_volumes: number of volumes, 1 or more.
        seed: determines all volumes; volume i does not depend on `num_volumes`.
        spatial_size: (H, W, D) in voxels.
        spacing: voxel size in mm.
        with_labels: also write label maps; otherwise the list names only images.
        vary: vary size by up to 10 % and spacing by up to 20 % between volumes.
        progress: log one line per volume at level INFO.

    Returns:
        The image files, in order.

    Raises:
        ValueError: `num_volumes`, `seed`, `spatial_size` or `spacing` is out of range.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     images = write_synthetic_dataset(folder, num_volumes=1, spatial_size=(4, 4, 4))
        ...     json.loads(Path(folder, "dataset.json").read_text())["training"][0]
        {'image': './images/synthetic_ct_0000.nii.gz', 'label': './labels/synthetic_ct_0000_label.nii.gz'}
    """
    if num_volumes < 1:
        raise ValueError(f"num_volumes must be 1 or more, got {num_volumes=}.")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed=}.")
    size, steps = check_grid(spatial_size, spacing)
    root = Path(output_dir)
    images, items = [], []
    for index in range(num_volumes):
        recipe = _recipe(seed, index, size, steps, vary)
        image = root / "images" / f"synthetic_ct_{index:04d}.nii.gz"
        label = root / "labels" / f"synthetic_ct_{index:04d}_label.nii.gz" if with_labels else None
        made = _write_volume(recipe, image, label)
        if progress:
            logger.info("%s %d of %d: %s", "wrote" if made else "kept", index + 1, num_volumes, image)
        images.append(image)
        item = {"image": f"./images/{image.name}"}
        if label is not None:
            item["label"] = f"./labels/{label.name}"
        items.append(item)
    _write_list(root / "dataset.json", items, with_labels)
    return images


def write_synthetic_images(output_dir: str | os.PathLike[str], num_volumes: int, **options: Any) -> str:
    """`write_synthetic_dataset` for a configuration that trains on the images.

    Args:
        output_dir: folder to write to; created if missing.
        num_volumes: number of volumes, 1 or more.
        **options: see `write_synthetic_dataset`.

    Returns:
        The folder of the images.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     Path(write_synthetic_images(folder, num_volumes=1, spatial_size=(4, 4, 4))).name
        'images'
    """
    return str(write_synthetic_dataset(output_dir, num_volumes, **options)[0].parent)


def _recipe(
    seed: int, index: int, size: tuple[int, int, int], spacing: tuple[float, float, float], vary: bool
) -> _Recipe:
    rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
    own_seed = int(rng.integers(2**31))
    if not vary:
        return _Recipe(own_seed, size, spacing)
    sides = np.maximum(np.rint(np.array(size) * rng.uniform(0.9, 1.1, 3)), 1).astype(int).tolist()
    in_plane, between = rng.uniform(0.8, 1.2, 2)
    steps = np.round(np.array(spacing) * (in_plane, in_plane, between), 3).tolist()
    return _Recipe(own_seed, (sides[0], sides[1], sides[2]), (steps[0], steps[1], steps[2]))


def _write_volume(recipe: _Recipe, image: Path, label: Path | None) -> bool:
    """Write the missing files of one volume; False if none was missing."""
    wanted = {"image": image} if label is None else {"image": image, "label": label}
    missing = {kind: path for kind, path in wanted.items() if not is_complete(path, recipe.text(kind))}
    if not missing:
        return False
    ct = synthetic_ct(recipe.seed, recipe.spatial_size, recipe.spacing)
    for kind, path in missing.items():
        write_nifti(path, ct.image if kind == "image" else ct.label, ct.affine, recipe.text(kind), DESCRIPTION)
    return True


def _write_list(path: Path, items: list[dict[str, str]], with_labels: bool) -> None:
    content = {
        "name": "synthetic CT",
        "description": f"{DESCRIPTION}: drawn by a program, version {SYNTHETIC_VERSION}; for demos, tests and studies",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {str(number): name for number, name in SYNTHETIC_LABELS.items()} if with_labels else {},
        "numTraining": len(items),
        "numTest": 0,
        "training": items,
        "test": [],
    }
    write_text_safely(path, json.dumps(content, indent=2) + "\n")
