"""Load trained weights after validating them against the configuration."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from mim_components.data.resample import Spacing, as_spacing
from mim_components.data.volumes import per_axis
from mim_components.utils.tensor_files import check_finite, read_checkpoint
from mim_components.utils.text import shorten
from mim_components.weights.contract import (
    InputContract,
    ModelSettings,
    WrongWeightsError,
    find_contract,
    find_facts,
    read_training_volumes,
)

logger = logging.getLogger(__name__)

TRAIN_COMMAND = "python -m monai.bundle run --config_file bundles/mim_pretrain/configs/train.json --dataset_dir DIR"
ADVICE = f"Pre-train first ({TRAIN_COMMAND}), or set --checkpoint to a model.pt."
MODEL_ADVICE = "Fine-tune first (configs/train.json), or set --checkpoint to a model.pt."
# derived from other settings, or not settings
_NOT_OPTIONS = ("patch_size", "orientation", "axes", "targets", "percentiles")


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A network with trained weights, and what is known about their training.

    Attributes:
        network: network with the weights, in evaluation mode.
        path: file that the weights came from.
        contract: contract of a pre-training, from the encoder beside the file; None if there is none.
        spacing: voxel size that volumes of a pre-training must be resampled to, mm; None = native voxels. It is that of
            the contract or, without one, of the configuration.
        facts: facts about a fine-tuning, from its `model.json` (`find_facts`); empty if there is none.
    """

    network: nn.Module
    path: Path
    contract: InputContract | None = None
    spacing: Spacing | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def training_volumes(self) -> frozenset[str]:
        """Content of the scans that the weights were trained on, see `write_training_volumes`; empty if unknown."""
        return read_training_volumes(self.path)

    @property
    def origin(self) -> str:
        """File and, where known, step and validation metric of the training."""
        if self.contract is not None:
            return f"{self.path}, step {self.contract.step}"
        if "step" not in self.facts:
            return str(self.path)
        if "metric" not in self.facts:
            return f"{self.path}, step {self.facts['step']}"
        metric, value = self.facts["metric"], self.facts["metric_value"]
        known = "the last model, no validation gave a number" if value is None else f"{metric} {value:.4f}"
        return f"{self.path}, step {self.facts['step']}, {known}"


def find_checkpoint(checkpoint: str | Path | None, folders: Sequence[str | Path], advice: str = ADVICE) -> Path:
    """The given checkpoint, else the first `models/model.pt` that exists in the folders.

    Args:
        checkpoint: file, or None to search.
        folders: folders to search.
        advice: advice for the error.

    Raises:
        FileNotFoundError: there is none; names every place searched, and the command that makes the file.
    """
    places = [Path(checkpoint)] if checkpoint else [Path(folder) / "models" / "model.pt" for folder in folders]
    for place in places:
        if place.exists():
            return place
    names = " or ".join(dict.fromkeys(str(place) for place in places))
    raise FileNotFoundError(f"{names}: there is no such file. {advice}")


def load_trained(
    network: nn.Module,
    checkpoint: str | Path | None,
    folders: Sequence[str | Path],
    expected: InputContract | ModelSettings,
    same_levels: bool = True,
) -> TrainedNetwork:
    """Load weights into `network`, in place, after validating them against the configuration, and switch to evaluation.

    Args:
        network: network of the configuration.
        checkpoint: `model.pt` or a checkpoint of a run; None = `models/model.pt` in the first of the folders.
        folders: folders to search for it.
        expected: the configuration's settings. The contract of a pre-training is compared with that of the weights
            (`find_contract`); if its `spacing` is None, that of the weights is used. The settings of a fine-tuning
            are compared with those of its `model.json` (`find_facts`).
        same_levels: whether the sizes of the levels must agree, or only their number.

    Raises:
        FileNotFoundError: there is no checkpoint.
        DamagedCheckpointError: it is damaged, or not a checkpoint.
        OtherVersionError: it predates the present hybrid encoder.
        WrongWeightsError: it was trained with different settings; names them.

    Example:
        >>> import torch
        >>> from tempfile import TemporaryDirectory
        >>> settings = ModelSettings("mim_btcv_segmentation", {"preset": "base"}, ["spleen"])
        >>> with TemporaryDirectory() as folder:
        ...     torch.save({"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, f"{folder}/model.pt")
        ...     network = load_trained(nn.Linear(2, 1), f"{folder}/model.pt", [], settings).network
        >>> network.weight.tolist(), network.training
        ([[1.0, 1.0]], False)
    """
    fine_tuned = isinstance(expected, ModelSettings)
    path = find_checkpoint(checkpoint, folders, MODEL_ADVICE if fine_tuned else ADVICE)
    contract, spacing, facts = None, None, {}
    if isinstance(expected, ModelSettings):
        if facts := find_facts(path):
            _compare_settings(path, facts, expected.as_dict())
    else:
        if found := find_contract(path):
            contract, beside = found
            _compare_contracts(beside, contract, expected, same_levels)
        spacing = as_spacing((contract or expected).spacing)
    state = _validated_weights(read_checkpoint(path), path)
    if misfit := describe_misfit(state, network):
        raise WrongWeightsError(f"{path} does not fit {_misfit_advice(expected, misfit)}")
    network.load_state_dict(state)
    trained = TrainedNetwork(network.eval(), path, contract, spacing, facts)
    logger.info("Weights: %s", trained.origin)
    if spacing is not None:
        logger.info("Volumes are resampled to %s mm, as in its training.", per_axis(spacing))
    return trained


def _validated_weights(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """The weights that a training validates: of a run's checkpoint the average of `--ema_decay`, if it has one."""
    if (average := state.get("averaged")) is None:
        network: dict[str, Any] = state.get("network", state)
        return network
    check_finite(average, path)
    logger.info("%s: the average of the weights is used, as in the validations of its training (ema_decay).", path)
    return {name.removeprefix("module."): value for name, value in average.items() if name != "n_averaged"}


def _compare_contracts(path: Path, found: InputContract, expected: InputContract, same_levels: bool) -> None:
    have, want = asdict(found), asdict(InputContract.from_metadata(expected.to_metadata(), path))
    skipped = {"step", "version"}
    if want["spacing"] is None:
        skipped.add("spacing")
    if have["modality"] != want["modality"]:
        skipped |= {"hu_window", "percentiles"}  # follow from it
    if not same_levels and len(found.level_sizes) == len(expected.level_sizes):
        skipped.add("level_sizes")
    wrong = [name for name in have if name not in skipped and have[name] != want[name]]
    _refuse(str(path), wrong, have, want, "Add the overlay of its training to --config_file, such as demo.json, or set")


def _compare_settings(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    have = {**found["settings"], "targets": found.get("targets")}
    want = {**expected["settings"], "targets": expected["targets"]}
    # an option that is not in the file was added after it was written
    wrong = [name for name in want if have.get(name, want[name]) != want[name]]
    _refuse(f"{path} (bundle {found.get('bundle')})", wrong, have, want, "Set")


def _refuse(weights: str, wrong: Sequence[str], have: Mapping[str, Any], want: Mapping[str, Any], advice: str) -> None:
    """Refuse weights where settings differ; names each with what was found and expected, and the options to set."""
    if not wrong:
        return
    rows = "\n".join(f"  {name}: {_shown(have[name])} in the file, {_shown(want[name])} here" for name in wrong)
    options = " ".join(f"--{name} {_as_option(have[name])}" for name in wrong if name not in _NOT_OPTIONS)
    raise WrongWeightsError(
        f"{weights} was trained with different settings from this configuration's:\n{rows}\n"
        f"{advice} {options or 'the bundle it was trained with'}"
    )


def _misfit_advice(expected: InputContract | ModelSettings, misfit: str) -> str:
    if isinstance(expected, ModelSettings):
        options = "--architecture, --preset and --label_set"
        return f"the network of this configuration: {misfit}. Set {options} as in the training."
    return (
        f"preset {expected.preset!r} with encoder {expected.encoder!r} and {len(expected.level_sizes)} levels: "
        f"{misfit}. Set --preset, --encoder, --level_sizes and --projection_dim as in the training, or add its "
        "overlay, such as demo.json, to --config_file."
    )


def describe_misfit(state: Mapping[str, Any], network: nn.Module) -> str:
    """The first three tensors that differ in name or shape between file and network, and how many more; "" if none."""
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
