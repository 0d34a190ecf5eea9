"""Load encoders from, and save them to, a file, a folder or the Hugging Face Hub; one file fully describes an encoder.

The methods are named as in huggingface_hub's `PyTorchModelHubMixin`. That class is not inherited: its package is
optional, it keeps a `config.json` beside the weights, and it silently ignores weights that do not match.
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
        kind: kind of encoder, as named in the contract.
        contract: input contract of the weights; None unless they were loaded by `from_pretrained`.
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
        """Create a pre-trained encoder of the sizes stated in the input contract of its weights.

        Args:
            pretrained_model_name_or_path: `encoder.safetensors`, a folder that contains it, or `owner/name` of a
                repository on the Hugging Face Hub.
            dense_only: leave out the parts of a hybrid encoder that only masked input uses.
            revision: branch, tag or commit of the repository.
            token: token for the Hub; None = that of `hf auth login`.
            cache_dir: folder for downloaded files.
            force_download: download files again even if they are cached.
            local_files_only: use only files that are cached.

        Returns:
            The encoder in evaluation mode.

        Raises:
            FileNotFoundError: there is no such file, and the name cannot be that of a repository.
            ImportError: a repository is named, but huggingface_hub is not installed.
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
                f"{path}: holds a {contract.encoder} encoder, but {cls.__name__} loads the kind {cls.kind}."
            )
        encoder = cls._from_contract(contract, dense_only)
        new = copy_encoder(encoder, path).new
        if new:
            raise PretrainedError(f"{path}: lacks {len(new)} tensors of the encoder, such as {new[0]}.")
        encoder.contract = contract
        return encoder.eval()

    def save_pretrained(self, save_directory: str | Path, *, contract: InputContract | None = None) -> Path:
        """Write `encoder.safetensors` and its digest to a folder, which is created if missing.

        Args:
            save_directory: folder to write to.
            contract: input contract of the weights, if they were not loaded by `from_pretrained`.

        Returns:
            The file.

        Raises:
            ValueError: no contract is known.
            OSError: the file cannot be written.
        """
        from mim_components.weights.pretrained import save_encoder

        contract = contract or self.contract
        if contract is None:
            raise ValueError("the encoder has no input contract: pass one as contract=InputContract(...).")
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
        """Upload the files of `save_pretrained` to a repository on the Hugging Face Hub, which is created if needed.

        Args:
            repo_id: `owner/name`.
            contract: as for `save_pretrained`.
            commit_message: message of the commit.
            private: make a newly created repository private.
            token: token for the Hub; None = that of `hf auth login`.
            branch: branch to upload to; None = main.
            create_pr: open a pull request instead of committing to the branch.

        Returns:
            URL of the commit.

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
            f"{repository}: not a file or folder here, and the Hugging Face Hub needs the package huggingface_hub, "
            'which is not installed: pip install -e ".[hub]".'
        )
    return hub
