"""Loading and saving encoders: a file, a folder, or the Hub, simulated by a folder."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mim_components.networks import HybridEncoder, ViTEncoder
from mim_components.weights import InputContract, PretrainedError, read_contract, save_encoder

SIZE = (16, 16, 16)
CONTRACT = InputContract("hybrid", "nano", 1, 8, SIZE, (SIZE,), hu_window=(-160.0, 240.0), step=40)
VIT = InputContract("vit", "nano", 1, 8, SIZE, (SIZE,))
FILES = ["encoder.safetensors", "encoder.safetensors.sha256"]


@pytest.fixture
def encoder() -> HybridEncoder:
    """An encoder as after a pre-training."""
    torch.manual_seed(0)
    return HybridEncoder(1, "nano", input_size=SIZE).eval()


@pytest.fixture
def file(encoder: HybridEncoder, tmp_path: Path) -> Path:
    return save_encoder(encoder, tmp_path / "encoder.safetensors", CONTRACT)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replaces huggingface_hub: repositories are folders."""
    root, module = tmp_path / "hub", ModuleType("huggingface_hub")

    class HfApi:
        def __init__(self, token: str | None = None) -> None:
            assert token == "secret"

        def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
            assert private and exist_ok
            (root / repo_id).mkdir(parents=True, exist_ok=True)

        def upload_folder(
            self, *, repo_id: str, folder_path: str, commit_message: str, revision: str | None, create_pr: bool | None
        ) -> str:
            assert (commit_message, revision, create_pr) == ("Upload a pre-trained encoder", "v1", None)
            return str(shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True))

    def hf_hub_download(
        repo_id: str, filename: str, *, revision: str, token: str, cache_dir: Path, force_download: bool,
        local_files_only: bool,
    ) -> str:  # fmt: skip
        assert (revision, token, force_download, local_files_only) == ("v1", "secret", False, True)
        return str(root / repo_id / filename)

    fake: Any = module
    fake.HfApi, fake.hf_hub_download = HfApi, hf_hub_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return root


def features(network: nn.Module) -> Tensor:
    last: Tensor = network(torch.rand(1, 1, *SIZE, generator=torch.Generator().manual_seed(0)))[-1]
    return last


def test_file_and_folder(encoder: HybridEncoder, file: Path) -> None:
    for source in (file, str(file), file.parent):
        loaded = HybridEncoder.from_pretrained(source)
        assert not loaded.training and loaded.trained_grid == (2, 2, 2) and loaded.contract == CONTRACT
        assert torch.equal(features(loaded), features(encoder))


def test_round_trip_of_all_of_it(encoder: HybridEncoder, file: Path, tmp_path: Path) -> None:
    loaded = HybridEncoder.from_pretrained(file, dense_only=False)
    again = loaded.save_pretrained(tmp_path / "new" / "folder")
    assert again == tmp_path / "new" / "folder" / "encoder.safetensors"
    before, after = load_file(file), load_file(again)
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())
    assert read_contract(again) == CONTRACT


def test_round_trip_of_what_whole_images_use(encoder: HybridEncoder, file: Path, tmp_path: Path) -> None:
    again = HybridEncoder.from_pretrained(file).save_pretrained(tmp_path / "dense")
    assert not [name for name in load_file(again) if name.startswith(HybridEncoder.MASKED_ONLY)]
    assert torch.equal(features(HybridEncoder.from_pretrained(again)), features(encoder))
    with pytest.raises(PretrainedError, match=r"safetensors: lacks 6 tensors of the encoder, such as stage_out"):
        HybridEncoder.from_pretrained(again, dense_only=False)


def test_plain_vit(tmp_path: Path) -> None:
    encoder = ViTEncoder(1, "nano", SIZE).eval()
    file = encoder.save_pretrained(tmp_path, contract=VIT)
    assert torch.equal(features(ViTEncoder.from_pretrained(tmp_path)), features(encoder))
    with pytest.raises(PretrainedError, match=f"{file}: holds a vit encoder, but HybridEncoder loads the kind hybrid"):
        HybridEncoder.from_pretrained(tmp_path)


def test_up_and_down_again(encoder: HybridEncoder, file: Path, hub: Path) -> None:
    loaded = HybridEncoder.from_pretrained(file, dense_only=False)
    address = loaded.push_to_hub("me/mim", token="secret", branch="v1")
    assert address == str(hub / "me/mim") and sorted(path.name for path in (hub / "me/mim").iterdir()) == FILES
    back = HybridEncoder.from_pretrained("me/mim", revision="v1", token="secret", local_files_only=True)
    assert back.contract == CONTRACT and torch.equal(features(back), features(encoder))


def test_without_the_package(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    encoder = HybridEncoder.from_pretrained(file)  # needs no package
    for call in (lambda: HybridEncoder.from_pretrained("me/mim"), lambda: encoder.push_to_hub("me/mim")):
        with pytest.raises(
            ImportError, match=r'me/mim: .*huggingface_hub, which is not installed: pip install -e "\.\[hub\]"'
        ):
            call()


@pytest.mark.parametrize("source", ["no/such/encoder.safetensors", "a/b/c", "me/encoder.safetensors", "alone"])
def test_no_such_file(source: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"{source}: there is no such file"):
        HybridEncoder.from_pretrained(source)


def test_weights_without_contract(encoder: HybridEncoder, tmp_path: Path, hub: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "encoder.safetensors")
    with pytest.raises(ValueError, match="no input contract in its metadata"):
        HybridEncoder.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no input contract: pass one as contract="):
        encoder.push_to_hub("me/mim", token="secret")
    assert not hub.exists()


def test_another_file(tmp_path: Path) -> None:
    (tmp_path / "encoder.safetensors").write_text("not weights")
    with pytest.raises(ValueError, match=r"encoder\.safetensors: not a readable safetensors file"):
        HybridEncoder.from_pretrained(tmp_path)
