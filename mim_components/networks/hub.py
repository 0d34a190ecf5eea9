"""Encoders from a file, a folder or the Hugging Face Hub, and back: one file says all about an encoder.

Methods have the names of huggingface_hub's `PyTorchModelHubMixin`. That class is not inherited: it is an optional
package, keeps a `config.json` beside the weights, and loads what fits without a word on what does not.
"""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar

from monai.utils import optional_import
from torch import nn

if TYPE_CHECKING:
    from typing_extensions import Self

    from mim_components.weights.contract import InputContract

ENCODER_FILE = "encoder.safetensors"


class HubMixin(nn.Module):
    """An encoder that can be loaded from, and written to, `encoder.safetensors` with its input contract.

    Attributes:
        kind: of encoder, as the contract names it.
        contract: of the weights; None unless they were loaded by `from_pretrained`.
    """

    kind: ClassVar[str]
    contract: InputContract | None = None

    @classmethod
    def _from_contract(cls, contract: InputContract, dense_only: bool) -> Self:
        raise NotImplementedError

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        dense_only: bool = True,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Self:
        """Make a pre-trained encoder; the input contract of its weights says of which sizes.

        Args:
            pretrained_model_name_or_path: `encoder.safetensors`, a folder that has it, or `owner/name` of a repository
                on the Hugging Face Hub.
            dense_only: of a hybrid encoder: leave out what only masked input uses.
            revision: of the repository: a branch, tag or commit.
            token: of the Hub; None = that of `hf auth login`.
            cache_dir: for what is downloaded.
            force_download: also what was downloaded before.
            local_files_only: nothing that was not.

        Returns:
            The encoder in evaluation mode.

        Raises:
            FileNotFoundError: there is no such file, and it cannot be the name of a repository.
            ImportError: a repository is named, and huggingface_hub is not installed.
            ValueError: the file has no input contract, is of another kind of encoder, or lacks a part of it.
        """
        from mim_components.weights.contract import read_contract
        from mim_components.weights.pretrained import PretrainedError, copy_encoder

        path = Path(pretrained_model_name_or_path)
        if path.is_dir():
            path = path / ENCODER_FILE
        if not path.is_file():
            repository = str(pretrained_model_name_or_path)
            if path.suffix == ".safetensors" or not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
                raise FileNotFoundError(f"{path}: there is no such file.")
            downloaded = _hub(repository).hf_hub_download(
                repository, ENCODER_FILE, revision=revision, token=token, cache_dir=cache_dir,
                force_download=force_download, local_files_only=local_files_only,
            )  # fmt: skip
            path = Path(downloaded)
        contract = read_contract(path)
        if contract.encoder != cls.kind:
            raise PretrainedError(
                f"{path}: a {contract.encoder} encoder, and {cls.__name__} is of the kind {cls.kind}."
            )
        encoder = cls._from_contract(contract, dense_only)
        new = copy_encoder(encoder, path).new
        if new:
            raise PretrainedError(f"{path}: lacks {len(new)} tensors of the encoder, such as {new[0]}.")
        encoder.contract = contract
        return encoder.eval()

    def save_pretrained(self, save_directory: str | Path, *, contract: InputContract | None = None) -> Path:
        """Write `encoder.safetensors` and its digest to a folder, which is made when missing.

        Args:
            save_directory: the folder.
            contract: of the weights, where they were not loaded by `from_pretrained`.

        Returns:
            The file.

        Raises:
            ValueError: no contract is known.
            OSError: it cannot be written.
        """
        from mim_components.weights.pretrained import save_encoder

        contract = contract or self.contract
        if contract is None:
            raise ValueError("the encoder has no input contract: give one as contract=InputContract(...).")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        return save_encoder(self, folder / ENCODER_FILE, contract)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        contract: InputContract | None = None,
        commit_message: str = "Upload a pre-trained encoder",
        private: bool = True,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
    ) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face Hub, to a repository that is made if needed.

        Args:
            repo_id: `owner/name`.
            contract: as for `save_pretrained`.
            commit_message: of the upload.
            private: of a repository that is made.
            token: of the Hub; None = that of `hf auth login`.
            branch: to upload to; None = main.
            create_pr: as a pull request.

        Returns:
            Address of the commit.

        Raises:
            ImportError: huggingface_hub is not installed.
            ValueError: no contract is known.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, contract=contract)
            api = _hub(repo_id).HfApi(token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message=commit_message, revision=branch,
                create_pr=create_pr,
            )  # fmt: skip
        return str(commit)


def _hub(repository: str) -> Any:
    hub, installed = optional_import("huggingface_hub")
    if not installed:
        raise ImportError(
            f"{repository}: no such file or folder here, and for the Hugging Face Hub the package huggingface_hub is "
            'missing: pip install -e ".[hub]".'
        )
    return hub
