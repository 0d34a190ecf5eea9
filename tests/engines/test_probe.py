"""Weights that are probed: which input they get, and which are refused."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import mlflow
import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from mim_components.data.prepare.volumes import prepare_volumes
from mim_components.data.volumes import VolumeSource
from mim_components.engines import load_probed, run_probe
from mim_components.engines import probe as module
from mim_components.engines.probe import seen_scans
from mim_components.handlers import RunTracker
from mim_components.metrics import FeatureProbe
from mim_components.networks import HybridEncoder, MiM
from mim_components.run.folder import RunFolder
from mim_components.utils.tensor_files import save_safely
from mim_components.weights.contract import InputContract, WrongWeightsError
from mim_components.weights.pretrained import save_encoder

CONTRACT = InputContract("hybrid", "nano", 1, 8, (16, 16, 16), ((16, 16, 16),), step=40, hu_window=(-100.0, 200.0))
OTHER = InputContract("hybrid", "nano", 1, 8, (16, 16, 16), ((16, 16, 16),))


@pytest.fixture
def network() -> MiM:
    return MiM(input_size=(16, 16, 16), preset="nano", num_levels=1)


def checkpoint(folder: Path, network: nn.Module) -> Path:
    return save_safely(folder / "checkpoints" / "step_00000020.pt", {"step": 20, "network": network.state_dict()})


def test_checkpoint_of_a_run_has_the_input_of_the_run_and_its_own_step(
    tmp_path: Path, network: MiM, caplog: pytest.LogCaptureFixture
) -> None:
    path = checkpoint(tmp_path, network)
    save_encoder(network.encoder, tmp_path / "models" / "encoder.safetensors", CONTRACT)
    probed = load_probed(path, [], OTHER)
    assert probed.contract.hu_window == (-100.0, 200.0) and probed.contract.step == 20
    assert probed.origin == f"{path}, step 20" and "assumed" not in caplog.text


@pytest.mark.parametrize(("kind", "preset", "patch_size"), [("hybrid", "nano", 8), ("vit", "nano", 8)])
def test_weights_without_a_contract_get_a_warning_or_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, preset: str, patch_size: int
) -> None:
    path = checkpoint(tmp_path, MiM(input_size=(16, 16, 16), preset=preset, encoder=kind, num_levels=1))
    same = InputContract(kind, preset, 1, patch_size, (16, 16, 16), ((16, 16, 16),), spacing=(1.5, 1.5, 2.0))
    with caplog.at_level(logging.WARNING):
        probed = load_probed(path, [], same)
    assert "as in the configuration: modality ct, window [-1000.0, 1000.0] HU, 1.5 x 1.5 x 2 mm voxels" in caplog.text
    assert probed.origin == f"{path}, step 20, input as in the configuration" and probed.contract.step == 20
    other = InputContract(kind, preset, 1, patch_size, (24, 16, 16), ((24, 16, 16),))
    with pytest.raises(WrongWeightsError, match=r"not those of the configuration's input_size \[24, 16, 16\]"):
        load_probed(path, [], other)


def test_weights_without_what_dense_features_need_are_refused(tmp_path: Path) -> None:
    state = HybridEncoder(preset="nano").state_dict()
    del state["blocks.0.norm1.weight"]
    path = save_safely(tmp_path / "model.pt", state)
    with pytest.raises(WrongWeightsError, match="lacks 1 tensor of the encoder, such as blocks.0.norm1.weight; with"):
        load_probed(path, [], OTHER)


def test_weights_saved_for_dense_features_alone_give_the_same_features(tmp_path: Path) -> None:
    full = HybridEncoder(preset="nano", input_size=(16, 16, 16))
    dense = HybridEncoder(preset="nano", input_size=(16, 16, 16), dense_only=True)
    dense.load_state_dict({name: value for name, value in full.state_dict().items() if name in dense.state_dict()})
    image = torch.rand(1, 1, 16, 16, 16)
    found = load_probed(save_encoder(dense, tmp_path / "encoder.safetensors", OTHER), [], OTHER).network(image)
    assert all(torch.equal(one, two) for one, two in zip(found, full(image), strict=True))


def test_validation_scans_of_the_pre_training_are_found(tmp_path: Path) -> None:
    random, affine = np.random.default_rng(0), np.diag([-2.0, -2.0, 3.0, 1.0])  # LPS, so that both are turned
    items = []
    for name in "abc":
        path = tmp_path / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(random.integers(-900, 900, (12, 10, 8), dtype=np.int16), affine), path)
        items.append({"image": str(path), "name": name})
    contract = replace(OTHER, spacing=(1.0, 1.0, 2.0))
    weights = save_encoder(HybridEncoder(preset="nano"), tmp_path / "models" / "encoder.safetensors", contract)
    assert seen_scans(items, load_probed(weights, [], OTHER)) is None
    found = [VolumeSource(Path(item["image"]), (Path(item["image"]),)) for item in items[:2]]
    volumes = prepare_volumes(found, tmp_path / "cache", spacing=contract.spacing, progress=False).volumes
    weights.with_name("training_volumes.txt").write_text("".join(f"{volume.content}\n" for volume in volumes))
    assert seen_scans(items, load_probed(weights, [], OTHER)) == ["a", "b"]


def test_a_probe_is_no_pre_training_but_a_child_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ProbeReport", lambda *given: SimpleNamespace(write=lambda folder: []))
    weights = save_encoder(HybridEncoder(preset="nano"), tmp_path / "models" / "encoder.safetensors", CONTRACT)
    (tmp_path / "run.json").write_text(json.dumps({"name": "mim_pretrain-1", "mlflow_run_id": "0ab"}))

    def probe(network: Any, pictures: bool = False, title: str = "") -> Any:
        return SimpleNamespace(dice=0.5, knn=0.25)

    probe.prepared = SimpleNamespace(digest="0cd", contents={}, training=[{}], validation=[{}, {}])  # type: ignore[attr-defined]
    probe.settings = {"draws": 3}  # type: ignore[attr-defined]
    folder = RunFolder(tmp_path / "probe")
    config = {"_meta_": {"bundle": "mim_pretrain", "workflow": "pretraining", "description": "Learns from CT."}}
    monkeypatch.setattr("mim_components.run.folder.current_config", lambda: config)
    tracker = RunTracker(folder, store_dir=tmp_path, experiment_name="tests")
    run_probe(cast(FeatureProbe, probe), load_probed(weights, [], CONTRACT), folder, tracker)
    run = mlflow.MlflowClient(tracker.tracking_uri).get_run(folder.state["mlflow_run_id"])
    expected = {"stage": "probe", "mlflow.note.content": f"Probe of {weights}, step {CONTRACT.step}.",
                "mlflow.parentRunId": "0ab", "bundle": "mim_pretrain"}  # fmt: skip
    assert {name: run.data.tags.get(name) for name in expected} == expected
    found = [(each.dataset.name, each.dataset.digest, each.dataset.profile) for each in run.inputs.dataset_inputs]
    assert found == [("probe", "0cd", '{"scans": 1}'), ("probe validation", "0cd", '{"scans": 2}')]
    assert run.data.metrics["probe_dice"] == 0.5 and run.info.status == "FINISHED"
