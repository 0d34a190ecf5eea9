"""Encoders from a file, a folder, or a hub that is played by a folder."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from mim_components.networks import HybridEncoder, ViTEncoder
from mim_components.weights import InputContract, load_encoder, push_encoder, save_encoder

SIZE = (16, 16, 16)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    encoder = HybridEncoder(1, "nano", input_size=SIZE)
    return save_encoder(encoder, tmp_path / "encoder.safetensors", InputContract("hybrid", "nano", 1, 8, SIZE, (SIZE,)))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for huggingface_hub: repositories are folders."""
    root, module = tmp_path / "hub", ModuleType("huggingface_hub")

    class HfApi:
        def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None:
            assert private and exist_ok
            (root / repo_id).mkdir(parents=True, exist_ok=True)

        def upload_file(self, *, path_or_fileobj: str, path_in_repo: str, repo_id: str, revision: str | None) -> str:
            return str(shutil.copy(path_or_fileobj, root / repo_id / path_in_repo))

    def hf_hub_download(repo_id: str, filename: str, *, revision: str | None) -> str:
        assert revision == "v1"
        return str(root / repo_id / filename)

    fake: Any = module
    fake.HfApi, fake.hf_hub_download = HfApi, hf_hub_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return root


def test_file_and_folder(file: Path) -> None:
    torch.manual_seed(0)
    expected, image = HybridEncoder(1, "nano", input_size=SIZE).eval(), torch.rand(1, 1, *SIZE)
    for source in (file, str(file), file.parent):
        encoder = load_encoder(source)
        assert isinstance(encoder, HybridEncoder) and not encoder.training and encoder.trained_grid == (2, 2, 2)
        assert torch.equal(encoder(image)[-1], expected(image)[-1])


def test_plain_vit(tmp_path: Path) -> None:
    contract = InputContract("vit", "nano", 1, 8, SIZE, (SIZE,))
    save_encoder(ViTEncoder(1, "nano", SIZE), tmp_path / "encoder.safetensors", contract)
    assert isinstance(load_encoder(tmp_path), ViTEncoder)


def test_up_and_down_again(file: Path, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = push_encoder(file, "me/mim")
    assert address == str(hub / "me/mim/encoder.safetensors")
    assert sorted(path.name for path in (hub / "me/mim").iterdir()) == [
        "encoder.safetensors",
        "encoder.safetensors.sha256",
    ]
    state = load_encoder("me/mim", revision="v1").state_dict()
    assert all(torch.equal(value, state[name]) for name, value in load_encoder(file).state_dict().items())


def test_without_the_package(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    load_encoder(file)  # needs nothing
    for call in (lambda: load_encoder("me/mim"), lambda: push_encoder(file, "me/mim")):
        with pytest.raises(ImportError, match=r'me/mim: .*huggingface_hub is missing: pip install -e "\.\[hub\]"'):
            call()


@pytest.mark.parametrize("source", ["no/such/encoder.safetensors", "a/b/c", "me/encoder.safetensors", "alone"])
def test_no_such_file(source: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"{source}: there is no such file"):
        load_encoder(source)


def test_a_file_without_contract_stays_here(tmp_path: Path, hub: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "encoder.safetensors")
    with pytest.raises(ValueError, match="no input contract in its metadata"):
        push_encoder(tmp_path / "encoder.safetensors", "me/mim")
    assert not hub.exists()
