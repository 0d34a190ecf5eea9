"""What a fine-tuned network was made with, kept beside its weights; and the way back into a network."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mim_components import __version__
from mim_components.utils.tensor_files import read_checkpoint
from mim_components.weights.trained import WrongWeightsError, describe_misfit, find_checkpoint

logger = logging.getLogger(__name__)

ADVICE = "Fine-tune first (configs/train.json), or set --checkpoint to a model.pt."


@dataclass(frozen=True)
class ModelSettings:
    """What has to agree between the training of a network and its use.

    Attributes:
        bundle: name of the bundle.
        settings: values by the name of the option that sets them.
        targets: what the output channels stand for.
    """

    bundle: str
    settings: Mapping[str, Any]
    targets: Sequence[str]

    def as_dict(self) -> dict[str, Any]:
        """For `model.json`; tuples become lists, as JSON has them."""
        values = {"bundle": self.bundle, "settings": dict(self.settings), "targets": list(self.targets)}
        return {**json.loads(json.dumps(values)), "version": __version__}


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
    path = find_checkpoint(checkpoint, folders, ADVICE)
    state = read_checkpoint(path)
    state = state.get("network", state)
    facts = _read_facts(path.with_suffix(".json"))
    if facts:
        _compare(path, facts, expected.as_dict())
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


def _compare(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
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
