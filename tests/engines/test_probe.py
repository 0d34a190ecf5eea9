"""Weights that are probed: which input they get, and which are refused."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from torch import nn

from mim_components.engines import load_probed
from mim_components.networks import MiM
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
