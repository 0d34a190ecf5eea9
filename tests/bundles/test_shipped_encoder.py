"""The encoder shipped with the project: intact, with its contract, and usable in its target networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mim_components import load_pretrained, read_contract
from mim_components.networks import HybridEncoder, segmentation_network
from mim_components.utils.files import check_digest
from mim_components.weights import PretrainedError

FILE = Path(__file__).resolve().parents[2] / "bundles" / "mim_pretrain" / "models" / "encoder_tiny.safetensors"


def test_whole_with_its_contract() -> None:
    assert check_digest(FILE)
    contract = read_contract(FILE)
    assert (contract.encoder, contract.preset, contract.in_channels) == ("hybrid", "tiny", 1)
    assert contract.hu_window == (-160, 240) and contract.level_sizes == ((96,) * 3, (48,) * 3, (16,) * 3)


def test_all_of_it_goes_into_a_segmentation_network() -> None:
    network = segmentation_network("hybrid_swin_unetr", 1, 2, (64, 64, 32), preset="tiny")
    assert load_pretrained(network, FILE).share == 1


def test_features_tell_tissue_from_air() -> None:
    encoder = HybridEncoder.from_pretrained(FILE)
    scan = torch.zeros(1, 1, 48, 48, 48)
    scan[..., :24] = 0.5  # soft tissue below, air above
    with torch.no_grad():
        deepest = encoder(scan)[-1]  # 3 x 3 x 3 tokens
    same = torch.cosine_similarity(deepest[0, :, 1, 1, 0], deepest[0, :, 0, 1, 0], dim=0)
    other = torch.cosine_similarity(deepest[0, :, 1, 1, 0], deepest[0, :, 1, 1, 2], dim=0)
    assert other < same


def test_changed_by_a_byte(tmp_path: Path) -> None:
    data = bytearray(FILE.read_bytes())
    data[-1] ^= 1
    copy = tmp_path / FILE.name
    copy.write_bytes(data)
    (tmp_path / f"{FILE.name}.sha256").write_bytes(FILE.with_name(f"{FILE.name}.sha256").read_bytes())
    with pytest.raises(PretrainedError, match=r"encoder_tiny\.safetensors: not the file that was written"):
        HybridEncoder.from_pretrained(copy)
