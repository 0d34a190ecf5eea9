"""Load pre-trained encoders from a file, a folder or the Hugging Face Hub, and upload them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from monai.utils import optional_import

from mim_components.networks.hybrid import HybridEncoder
from mim_components.networks.vit import ViTEncoder
from mim_components.utils.files import digest_file
from mim_components.weights.contract import read_contract
from mim_components.weights.pretrained import copy_encoder

ENCODER_FILE = "encoder.safetensors"


def load_encoder(source: str | Path, revision: str | None = None) -> HybridEncoder | ViTEncoder:
    """Build a pre-trained encoder from its weights; their input contract says which one it is.

    Args:
        source: `encoder.safetensors`, a folder that has it, or `owner/name` of a repository on the Hugging Face Hub.
        revision: branch, tag or commit of the repository.

    Returns:
        The encoder for dense input, in evaluation mode.

    Raises:
        FileNotFoundError: there is no such file, and `source` is not the name of a repository.
        ImportError: `source` is a repository, and huggingface_hub is not installed.
        ValueError: the file has no input contract, or does not match it.
    """
    path = Path(source)
    if path.is_dir():
        path = path / ENCODER_FILE
    if not path.is_file():
        if path.suffix or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
            raise FileNotFoundError(f"{path}: there is no such file.")
        path = Path(_hub(source).hf_hub_download(str(source), ENCODER_FILE, revision=revision))
    contract = read_contract(path)
    encoder: HybridEncoder | ViTEncoder
    if contract.encoder == "hybrid":
        encoder = HybridEncoder(contract.in_channels, contract.preset, dense_only=True, input_size=contract.input_size)
    else:
        encoder = ViTEncoder(contract.in_channels, contract.preset, contract.input_size)
    copy_encoder(encoder, path)
    return encoder.eval()


def push_encoder(path: str | Path, repo_id: str, private: bool = True, revision: str | None = None) -> str:
    """Upload `encoder.safetensors` and its digest to the Hugging Face Hub; the repository is created if needed.

    Args:
        path: file with an input contract, which is checked first.
        repo_id: `owner/name`.
        private: whether a newly created repository is private.
        revision: branch to upload to.

    Returns:
        URL of the upload.

    Raises:
        ImportError: huggingface_hub is not installed.
        ValueError: the file has no input contract.
    """
    path = Path(path)
    read_contract(path)
    api = _hub(repo_id).HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    files = [(path, ENCODER_FILE), (digest_file(path), f"{ENCODER_FILE}.sha256")]
    addresses = [
        api.upload_file(path_or_fileobj=str(file), path_in_repo=name, repo_id=repo_id, revision=revision)
        for file, name in files
        if file.is_file()
    ]
    return str(addresses[0])


def _hub(repository: str | Path) -> Any:
    hub, installed = optional_import("huggingface_hub")
    if not installed:
        raise ImportError(
            f"{repository}: no such file or folder here, and for the Hugging Face Hub the package huggingface_hub is "
            'missing: pip install -e ".[hub]".'
        )
    return hub
