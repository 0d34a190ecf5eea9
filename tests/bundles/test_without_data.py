"""Workflows of all bundles can be built, and their networks loaded, without data; wrong options are still refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
import torch
from monai.bundle import ConfigWorkflow, create_workflow

from mim_components.utils.text import root_cause

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = sorted(path.parents[1] for path in ROOT.glob("bundles/*/configs/train.json"))
MODES = [(bundle, mode) for bundle in BUNDLES for mode in ("train", "evaluate", "inference", "probe")
         if mode != "probe" or bundle.name == "mim_pretrain"]  # fmt: skip
every_bundle = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
every_mode = pytest.mark.parametrize(("bundle", "mode"), MODES, ids=lambda each: getattr(each, "name", each))
# MONAI warns on loading any configuration that it can run code
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file")


@pytest.fixture
def copy_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A copy of a bundle outside the repository, changed only to a small network."""
    monkeypatch.chdir(tmp_path)

    def copied(bundle: Path) -> Path:
        folder = tmp_path / "zoo" / bundle.name
        shutil.copytree(bundle, folder, ignore=shutil.ignore_patterns("*.pt", "cache"))
        for path in (folder / "configs").glob("*.json"):
            config = json.loads(path.read_text())
            if "preset" in config and path.name != "demo.json":
                path.write_text(json.dumps(config | {"preset": "nano"}))
        return folder

    return copied


def build(folder: Path, mode: str, **options: Any) -> ConfigWorkflow:
    names = {"train": ["train"], "evaluate": ["train", "evaluate"], "probe": ["train", "probe"]}.get(mode, [mode])
    files = [str(folder / "configs" / f"{name}.json") for name in names]
    kind = "inference" if mode == "inference" else "train"
    made: ConfigWorkflow = create_workflow(config_file=files, workflow_type=kind, logging_file=False, **options)
    return made


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"LICENSE", "configs", "docs", "models"}


def test_all_bundles_are_there() -> None:
    assert len(BUNDLES) == 14


@every_bundle
def test_network_is_loaded_with_the_defaults(bundle: Path, copy_of: Any) -> None:
    folder = copy_of(bundle)
    network = build(folder, "train").network_def
    state = {name: value + 1 if value.is_floating_point() else value for name, value in network.state_dict().items()}
    torch.save(state, folder / "models" / "model.pt")
    loaded = monai.bundle.load(bundle.name, bundle_dir=folder.parent, device="cpu")
    assert isinstance(loaded, type(network))
    found = loaded.state_dict()
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)
    assert left_in(folder) == set()


@every_mode
def test_workflow_is_built_without_data(bundle: Path, mode: str, copy_of: Any) -> None:
    folder = copy_of(bundle)
    made = build(folder, mode)
    assert made.parser["preset"] == "nano" and isinstance(made.network_def, torch.nn.Module)
    assert left_in(folder) == set()  # no run has begun


@every_mode
def test_wrong_options_are_refused_when_a_workflow_is_built(bundle: Path, mode: str, copy_of: Any) -> None:
    with pytest.raises(RuntimeError) as refused:
        build(copy_of(bundle), mode, seed=-1)
    assert "--seed -1: expected a whole number, at least 0" in str(root_cause(refused.value))


@every_bundle
def test_training_without_data_says_what_is_missing(bundle: Path, copy_of: Any) -> None:
    made = build(copy_of(bundle), "train", tracking_uri="sqlite:///mlruns.db", **(
        {} if bundle.name == "mim_pretrain" else {"pretrained": "none"}
    ))  # fmt: skip
    with pytest.raises(RuntimeError) as missing:
        made.run()
    assert "Give the data" in str(root_cause(missing.value)) and "datalist" in str(root_cause(missing.value))
