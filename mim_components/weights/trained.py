"""Put trained weights into the network of a configuration, after checking that the two belong together."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mim_components.data.resample import Spacing, as_spacing
from mim_components.data.volumes import per_axis
from mim_components.networks.mim import MiM
from mim_components.utils.tensor_files import read_checkpoint
from mim_components.utils.text import shorten
from mim_components.weights.contract import TRAINING_VOLUMES, InputContract, ModelSettings, read_contract

logger = logging.getLogger(__name__)

TRAIN_COMMAND = "python -m monai.bundle run --config_file bundles/mim_pretrain/configs/train.json --dataset_dir DIR"
ADVICE = f"Pre-train first ({TRAIN_COMMAND}), or set --checkpoint to a model.pt."
# follow from other settings, or are no settings
_NOT_OPTIONS = ("patch_size", "orientation", "axes")


class WrongWeightsError(ValueError):
    """The checkpoint was trained with other settings than the configuration has; names file, settings and remedy."""


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A network with trained weights.

    Attributes:
        network: with the weights, in evaluation mode.
        path: the file they came from.
        contract: of the encoder beside the file; None where there is none.
        spacing: that volumes must be resampled to, mm; None = native voxels. It is what the contract says, and where
            there is none, what the configuration does.
    """

    network: MiM
    path: Path
    contract: InputContract | None
    spacing: Spacing | None = None

    @property
    def training_volumes(self) -> frozenset[str]:
        """`content` of the volumes that the weights were trained on, see `PreparedVolume`; empty where not known."""
        for folder in (self.path.parent, self.path.parent.parent / "models"):
            if (folder / TRAINING_VOLUMES).is_file():
                return frozenset((folder / TRAINING_VOLUMES).read_text(encoding="utf-8").splitlines())
        return frozenset()

    @property
    def origin(self) -> str:
        """File, and optimizer steps of the training where they are known."""
        return f"{self.path}" + (f", step {self.contract.step}" if self.contract else "")


def find_checkpoint(checkpoint: str | Path | None, folders: Sequence[str | Path], advice: str = ADVICE) -> Path:
    """The checkpoint that is given, else the first `models/model.pt` that exists in the folders.

    Args:
        checkpoint: file, or None.
        folders: where to look.
        advice: what to do where there is none.

    Raises:
        FileNotFoundError: names every place that was looked at, and the command that makes the file.
    """
    places = [Path(checkpoint)] if checkpoint else [Path(folder) / "models" / "model.pt" for folder in folders]
    for place in places:
        if place.exists():
            return place
    names = " or ".join(dict.fromkeys(str(place) for place in places))
    raise FileNotFoundError(f"{names}: there is no such file. {advice}")


def load_trained(
    network: MiM,
    checkpoint: str | Path | None,
    folders: Sequence[str | Path],
    expected: InputContract,
    same_levels: bool = True,
) -> TrainedNetwork:
    """Load a checkpoint into `network`, in place, and switch it to evaluation.

    Args:
        network: made by the configuration.
        checkpoint: `model.pt` or a checkpoint of a run; None = `models/model.pt` in the first of the folders.
        folders: where to look for it.
        expected: what the configuration says; compared with `encoder.safetensors` beside the checkpoint. Its `spacing`
            may be None: that of the weights is taken.
        same_levels: the sizes of the levels must agree; else only their number.

    Raises:
        FileNotFoundError: there is no checkpoint.
        DamagedCheckpointError: it is not whole, or not a checkpoint.
        OtherVersionError: it is from before the present hybrid encoder.
        WrongWeightsError: it was trained with other settings.
    """
    path = find_checkpoint(checkpoint, folders)
    beside = path.with_name("encoder.safetensors")
    contract = read_contract(beside) if beside.exists() else None
    if contract is not None:
        _compare(beside, contract, expected, same_levels)
    state = read_checkpoint(path)
    state = state.get("network", state)
    _check_tensors(path, state, network, expected)
    network.load_state_dict(state)
    network.eval()
    trained = TrainedNetwork(network, path, contract, as_spacing((contract or expected).spacing))
    logger.info("Weights: %s", trained.origin)
    if trained.spacing is not None:
        logger.info("Volumes are resampled to %s mm, as in its training.", per_axis(trained.spacing))
    return trained


def _compare(path: Path, found: InputContract, expected: InputContract, same_levels: bool) -> None:
    have, want = asdict(found), asdict(InputContract.from_metadata(expected.to_metadata(), path))
    names = [name for name in have if name not in ("step", "version") and have[name] != want[name]]
    if want["spacing"] is None:
        names = [name for name in names if name != "spacing"]
    if not same_levels and len(found.level_sizes) == len(expected.level_sizes):
        names = [name for name in names if name != "level_sizes"]
    if not names:
        return
    rows = "\n".join(f"  {name}: {_shown(have[name])} in the file, {_shown(want[name])} here" for name in names)
    options = " ".join(f"--{name} {_as_option(have[name])}" for name in names if name not in _NOT_OPTIONS)
    raise WrongWeightsError(
        f"{path} was trained with other settings than this configuration has:\n{rows}\nAdd the overlay of its training "
        f"to --config_file, such as demo.json, or set {options}"
    )


def _check_tensors(path: Path, state: dict[str, Tensor], network: MiM, expected: InputContract) -> None:
    if misfit := describe_misfit(state, network):
        raise WrongWeightsError(
            f"{path} does not fit preset {expected.preset!r} with encoder {expected.encoder!r} and "
            f"{len(expected.level_sizes)} levels: {misfit}. Set --preset, --encoder, --level_sizes "
            "and --projection_dim as in the training, or add its overlay, such as demo.json, to --config_file."
        )


def describe_misfit(state: Mapping[str, Any], network: nn.Module) -> str:
    """The first three tensors that differ in name or shape between a file and a network, and how many more; else ""."""
    own = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(getattr(value, "shape", ())) for name, value in state.items()}
    wrong = [
        f"{name} is {found.get(name, 'absent')} in the file, {own.get(name, 'absent')} in the network"
        for name in sorted(own.keys() | found.keys())
        if own.get(name) != found.get(name)
    ]
    return shorten(wrong, 3, "; ")


def _shown(value: object) -> str:
    return json.dumps(value).replace('"', "'")


def _as_option(value: object) -> str:
    text = "None" if value is None else json.dumps(value, separators=(",", ":"))
    return f'"{text}"' if text.startswith("[") else text.strip('"')


MODEL_ADVICE = "Fine-tune first (configs/train.json), or set --checkpoint to a model.pt."


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A network with fine-tuned weights.

    Attributes:
        network: with the weights, in evaluation mode.
        path: the file they came from.
        facts: content of `model.json` beside it; empty where there is none.
    """

    network: nn.Module
    path: Path
    facts: Mapping[str, Any]

    @property
    def origin(self) -> str:
        """File, and step and validation metric of the training where they are known."""
        if "step" not in self.facts:
            return str(self.path)
        metric, value = self.facts["metric"], self.facts["metric_value"]
        known = "the last model, no validation was a number" if value is None else f"{metric} {value:.4f}"
        return f"{self.path}, step {self.facts['step']}, {known}"


def on_device(network: nn.Module, device: torch.device) -> nn.Module:
    """`network.to(device)`, for configurations that must load weights first (`_requires_`)."""
    return network.to(device)


def load_model(
    network: nn.Module,
    checkpoint: str | Path | None,
    folders: Sequence[str | Path],
    expected: ModelSettings,
) -> TrainedModel:
    """Load fine-tuned weights into `network`, in place, and switch it to evaluation.

    Args:
        network: made by the configuration.
        checkpoint: `model.pt` or a checkpoint of a run; None = `models/model.pt` in the first of the folders.
        folders: where to look for it.
        expected: what the configuration says; compared with `model.json` beside the file.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedCheckpointError: it is not whole, or not a checkpoint.
        OtherVersionError: it has weights from before the present hybrid encoder.
        WrongWeightsError: it belongs to other settings; names them.
    """
    path = find_checkpoint(checkpoint, folders, MODEL_ADVICE)
    state = read_checkpoint(path)
    state = state.get("network", state)
    facts = _read_facts(path.with_suffix(".json"))
    if facts:
        _compare_settings(path, facts, expected.as_dict())
    if misfit := describe_misfit(state, network):
        raise WrongWeightsError(
            f"{path} does not fit the network of this configuration: {misfit}. Set --network, --preset and "
            "--label_set as in the training."
        )
    network.load_state_dict(state)
    network.eval()
    trained = TrainedModel(network, path, facts)
    logger.info("Weights: %s", trained.origin)
    return trained


def _read_facts(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        facts: dict[str, Any] = json.loads(path.read_text())
        facts["settings"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WrongWeightsError(f"{path}: is damaged ({error}); remove it to use the weights unchecked.") from error
    return facts


def _compare_settings(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    have, want = found["settings"], expected["settings"]
    # an option that is not in the file is younger than it
    differing = [name for name in want if have.get(name, want[name]) != want[name]]
    if found.get("targets") != expected["targets"]:
        differing.append("targets")
        have, want = {**have, "targets": found.get("targets")}, {**want, "targets": expected["targets"]}
    if differing:
        rows = "\n".join(f"  {name}: {have.get(name)} in the file, {want[name]} here" for name in differing)
        options = " ".join(f'--{name} "{have.get(name)}"' for name in differing if name != "targets")
        raise WrongWeightsError(
            f"{path} (bundle {found.get('bundle')}) was trained with other settings than this configuration has:\n"
            f"{rows}\nSet {options or 'the bundle it was trained with'}"
        )
