"""The two files at the end of a pre-training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine

from mim_components.handlers.export import ExportHandler
from mim_components.networks import HybridEncoder, MiM
from mim_components.run.folder import RunFolder
from mim_components.utils.files import FullDiskError
from mim_components.weights.contract import InputContract, read_contract
from mim_components.weights.pretrained import load_pretrained
from mim_components.weights.trained import TrainedNetwork

CONTRACT = InputContract("hybrid", "nano", 1, 8, (32, 32, 32), ((40, 40, 32), (16, 16, 16)))


@pytest.fixture
def network() -> MiM:
    torch.manual_seed(0)
    return MiM(input_size=(32, 32, 32), preset="nano", num_levels=2, projection_dim=8)


def make_handler(folder: Path, network: MiM) -> ExportHandler:
    return ExportHandler(SimpleNamespace(path=folder), network, CONTRACT)  # type: ignore[arg-type]


def test_files_at_the_end_hold_the_weights_and_the_contract(tmp_path: Path, network: MiM) -> None:
    def step(engine: Engine, batch: None) -> None:
        assert not (tmp_path / "models").exists()

    engine = Engine(step)
    make_handler(tmp_path, network).attach(engine)
    engine.run([None] * 3)
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [
        "encoder.safetensors",
        "encoder.safetensors.sha256",
        "model.pt",
        "model.pt.sha256",
    ]
    state = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert state.keys() == network.state_dict().keys()
    assert all(
        torch.equal(value, network.state_dict()[name]) and not value.requires_grad for name, value in state.items()
    )
    contract = read_contract(tmp_path / "models" / "encoder.safetensors")
    assert contract.step == 3 and contract.level_sizes == CONTRACT.level_sizes and CONTRACT.step == 0
    encoder = HybridEncoder(preset="nano")
    assert load_pretrained(encoder, tmp_path / "models" / "encoder.safetensors").share == 1.0
    assert all(torch.equal(value, network.encoder.state_dict()[name]) for name, value in encoder.state_dict().items())


def test_training_that_ended_early_exports_nothing(tmp_path: Path, network: MiM) -> None:
    engine = Engine(lambda engine, batch: engine.terminate() if engine.state.iteration == 2 else None)
    make_handler(tmp_path, network).attach(engine)
    engine.run([None] * 3)
    assert engine.state.iteration == 2 and not (tmp_path / "models").exists()


def test_files_of_an_earlier_export_are_replaced_whole(tmp_path: Path, network: MiM) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.pt").write_bytes(b"old")
    engine = Engine(lambda engine, batch: None)
    make_handler(tmp_path, network).attach(engine)
    engine.run([None])
    assert len(torch.load(tmp_path / "models" / "model.pt", weights_only=True)) == len(network.state_dict())
    assert not list((tmp_path / "models").glob(".*"))


@pytest.mark.parametrize("file", ["model.pt", "encoder.safetensors"])
def test_full_disk_ends_the_run_whatever_may_be_missing(
    file: str, tmp_path: Path, network: MiM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, write: Any) -> Path:
        if path.name == file:
            raise OSError(28, f"cannot write {path}: No space left on device")
        return path

    folder = RunFolder(tmp_path, on_full_disk="continue")
    monkeypatch.setattr("mim_components.utils.tensor_files.write_with_digest", full)
    monkeypatch.setattr("mim_components.weights.pretrained.write_with_digest", full)
    engine = Engine(lambda engine, batch: None)
    ExportHandler(folder, network, CONTRACT).attach(engine)
    with pytest.raises(FullDiskError, match=f"cannot write .*{file}, which needs .*Make room; the same command"):
        engine.run([None])
    folder.release()


def test_voxels_of_the_training_are_listed(tmp_path: Path, network: MiM) -> None:
    volumes = [SimpleNamespace(content=content) for content in ("b", "a")]
    folder: Any = SimpleNamespace(path=tmp_path)
    engine = Engine(lambda engine, batch: None)
    ExportHandler(folder, network, CONTRACT, SimpleNamespace(volumes=volumes)).attach(engine)  # type: ignore[arg-type]
    engine.run([None])
    assert (tmp_path / "models" / "training_volumes.txt").read_text() == "a\nb\n"
    assert TrainedNetwork(network, tmp_path / "models" / "model.pt", None).training_volumes == {"a", "b"}
    assert TrainedNetwork(network, tmp_path / "checkpoints" / "step_1.pt", None).training_volumes == {"a", "b"}
    assert TrainedNetwork(network, tmp_path / "a" / "b" / "model.pt", None).training_volumes == frozenset()
