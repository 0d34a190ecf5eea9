"""The input contract that travels with an encoder's weights."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mim_components import __version__
from mim_components.utils.tensor_files import OtherVersionError
from mim_components.weights.contract import InputContract, find_contract, read_contract

CONTRACT = InputContract(
    encoder="hybrid", preset="nano", in_channels=1, patch_size=8, input_size=(32, 32, 32),
    level_sizes=((40, 40, 32), (16, 16, 16)), hu_window=(-1000.0, 400.5), step=7,
)  # fmt: skip


def test_round_trip_through_metadata() -> None:
    metadata = CONTRACT.to_metadata()
    assert all(isinstance(value, str) for value in metadata.values())  # all that safetensors takes
    assert json.loads(metadata["level_sizes"]) == [[40, 40, 32], [16, 16, 16]]
    assert InputContract.from_metadata(metadata, "file") == CONTRACT
    assert (CONTRACT.orientation, CONTRACT.axes, CONTRACT.version) == ("RAS", "BCHWD", __version__)


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    save_file({"weight": torch.ones(2)}, path, metadata={**CONTRACT.to_metadata(), "of_a_later_version": "1"})
    assert read_contract(path) == CONTRACT


def test_spacing_is_kept() -> None:
    resampled = replace(CONTRACT, spacing=(1.5, 1.5, 2.0))
    assert InputContract.from_metadata(resampled.to_metadata(), "file") == resampled
    assert CONTRACT.to_metadata()["spacing"] == "null"
    assert InputContract.from_metadata(CONTRACT.to_metadata(), "file").spacing is None


def test_contract_of_mr_and_one_from_before_it() -> None:
    scans = replace(CONTRACT, modality="mr", hu_window=None, percentiles=(0.5, 99.5))
    metadata = scans.to_metadata()
    assert (metadata["modality"], metadata["hu_window"], metadata["percentiles"]) == ('"mr"', "null", "[0.5, 99.5]")
    assert InputContract.from_metadata(metadata, "file") == scans
    earlier = CONTRACT.to_metadata()
    del earlier["modality"], earlier["percentiles"], earlier["normalize_target"]
    assert InputContract.from_metadata(earlier, "file") == CONTRACT


def test_modality_that_this_version_cannot_scale_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    save_file({"weight": torch.ones(2)}, path, metadata={**CONTRACT.to_metadata(), "modality": '"pet"'})
    text = f"{path}: its input contract cannot be used: modality must be one of ct, mr, got 'pet'."
    for read in (read_contract, find_contract):
        with pytest.raises(ValueError, match=re.escape(text)):
            read(path)


def test_missing_entries_are_named(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    metadata = CONTRACT.to_metadata()
    del metadata["hu_window"], metadata["patch_size"]
    save_file({"weight": torch.ones(2)}, path, metadata=metadata)
    with pytest.raises(ValueError, match=f"{path}: no input contract.*missing: patch_size, hu_window"):
        read_contract(path)


@pytest.mark.parametrize(("entry", "found"), [({}, "1"), ({"contract_version": "3"}, "3")])
def test_other_versions_are_refused_in_one_line(entry: dict[str, str], found: str, tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    metadata = CONTRACT.to_metadata()
    assert metadata.pop("contract_version") == "2"
    save_file({"weight": torch.ones(2)}, path, metadata={**metadata, **entry})
    text = f"{path}: contract version {found}, but this package takes only version 2: .*; pre-train .*again"
    for read in (read_contract, find_contract):
        with pytest.raises(OtherVersionError, match=text) as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_file_without_metadata_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=f"{path}: no input contract.*missing: encoder, preset"):
        read_contract(path)


@pytest.mark.parametrize(
    "text",
    ["", "<!DOCTYPE html><html>404</html>", "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n"],
    ids=["empty", "HTML", "LFS pointer"],
)
def test_other_file_is_refused_by_name(text: str, tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{path}: not a readable safetensors file"):
        read_contract(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none.safetensors"):
        read_contract(tmp_path / "none.safetensors")


def test_entry_that_is_not_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    save_file({"weight": torch.ones(2)}, path, metadata={**CONTRACT.to_metadata(), "hu_window": "[-1000"})
    with pytest.raises(ValueError, match=f"{path}.*hu_window"):
        read_contract(path)
