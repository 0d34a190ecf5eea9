"""A study that runs in seconds: nano networks, synthetic CT, two arms."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mim_tools.synthetic import write_synthetic_dataset

ROOT = Path(__file__).resolve().parents[2]


def content() -> dict[str, Any]:
    """The OpenKBP study with small sizes."""
    study = json.loads((ROOT / "studies" / "openkbp.json").read_text())
    study |= {"name": "small", "seeds": [0], "labels": [1], "pretraining_seed": None}
    study["data"] |= {"classes": {"1": 1, "2": 2}, "expected": {"pretraining": 3, "train": 2, "test": 1}}
    study["arms"] = {name: study["arms"][name] for name in ("scratch", "mim")}
    study["order"] = [{"arms": ["scratch", "mim"]}]
    study["report"]["primary"] |= {"arm": "mim", "against": "scratch", "labels": 1}
    study["report"] |= {"references": ["scratch"], "picture": {"scan": "pt_3", "cells": ["mim/1/seed0"]}}
    small = {"preset": "nano", "max_steps": 4, "log_interval": 1, "checkpoint_interval": 1}
    study["pretraining"]["options"] |= {
        **small, "input_size": [16, 16, 16], "level_sizes": [[32, 32, 32], [16, 16, 16]], "projection_dim": 8,
        "picture_interval": 100, "warmup_steps": 1,
    }  # fmt: skip
    study["pretraining"]["commands"]["probe"]["options"] |= {
        "probe::datalist": "{work}/lists/test_1_seed0.json", "probe::voxels_per_class": 16, "probe::neighbours": 3,
    }  # fmt: skip
    study["fine_tuning"]["options"] |= {
        **small, "validation_steps": 4, "spacing": [8, 8, 8], "roi_size": [32, 32, 32], "num_samples": 1,
    }  # fmt: skip
    return study


def write_study(folder: Path, study: dict[str, Any]) -> Path:
    """Write a study file, and its bundle's metadata with the two classes of the synthetic patients."""
    metadata = json.loads((ROOT / "studies" / "openkbp" / "metadata.json").read_text())
    metadata["dataset"] |= {
        "label_sets": {"default": {"names": ["background", "a", "b"]}},
        "nsd_tolerance_mm": {"a": 4.0, "b": 4.0},
    }
    (folder / study["name"]).mkdir(parents=True, exist_ok=True)
    (folder / study["name"] / "metadata.json").write_text(json.dumps(metadata))
    path = folder / f"{study['name']}.json"
    path.write_text(json.dumps(study))
    return path


@pytest.fixture
def small() -> dict[str, Any]:
    return content()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    return lambda study: write_study(tmp_path / "study", study)


@pytest.fixture(scope="session")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three training patients, one of them without a label map, and one test patient."""
    folder = tmp_path_factory.mktemp("patients")
    images = write_synthetic_dataset(folder / "made", 4, spatial_size=(48, 48, 48), spacing=(8.0, 8.0, 8.0))
    for number, image in enumerate(images):
        part = folder / ("validation" if number == 3 else "train")
        part.mkdir(exist_ok=True)
        shutil.copy(image, part / f"pt_{number}_ct.nii.gz")
        label = folder / "made" / "labels" / image.name.replace(".nii.gz", "_label.nii.gz")
        if number != 1:
            shutil.copy(label, part / f"pt_{number}_organs.nii.gz")
    return folder
