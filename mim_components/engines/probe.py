"""Probe trained weights and the baselines to compare them with, and write the report."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from torch import nn

from mim_components.data.cache.volumes import content_of
from mim_components.data.read.volume import decode_volume, inspect_source
from mim_components.data.resample import as_spacing
from mim_components.data.volumes import VolumeSource, per_axis
from mim_components.handlers.reports.probe import ProbeReport
from mim_components.handlers.tracked_facts import NOTE, run_of_weights
from mim_components.handlers.tracking import RunTracker
from mim_components.metrics.probe.probe import FeatureProbe
from mim_components.run.folder import RunFolder
from mim_components.transforms.intensity import HU_RANGE
from mim_components.utils.text import counted, shorten
from mim_components.weights.contract import (
    InputContract,
    WrongWeightsError,
    find_contract,
    read_training_volumes,
    step_in_name,
)
from mim_components.weights.pretrained import LoadReport, load_pretrained, random_encoders
from mim_components.weights.trained import find_checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ProbedEncoder:
    """An encoder with its weights, and the same network with random ones.

    Attributes:
        network: encoder with the weights.
        untrained: the same encoder with random weights.
        contract: input contract of the encoder.
        origin: weights file, and its step if known.
        training_volumes: `content` of the volumes that the weights were trained on, see `PreparedVolume`; empty if
            unknown.
        path: weights file.
    """

    network: nn.Module
    untrained: nn.Module
    contract: InputContract
    origin: str
    training_volumes: frozenset[str] = frozenset()
    path: Path | None = None


def load_probed(
    checkpoint: str | Path | None,
    folders: Sequence[str | Path],
    expected: InputContract,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> ProbedEncoder:
    """Build the encoder of a weights file from its input contract, which holds for the whole probe.

    Without a contract, input is prepared as in the configuration, with a warning.

    Args:
        checkpoint: `encoder.safetensors`, `model.pt` or a checkpoint of a pre-training; None = `models/model.pt` in
            the first of the folders.
        folders: folders to search for it.
        expected: input contract of the configuration, for weights without one, see `find_contract`.
        device: device of the networks.
        seed: seed of the random weights.

    Raises:
        FileNotFoundError: there is no such file.
        PretrainedError: the weights do not fit.
        WrongWeightsError: tensors that the encoder needs for a whole image are missing, or weights without a contract
            were trained on another token grid than the configuration's.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from mim_components.weights import save_encoder
        >>> contract = InputContract("hybrid", "nano", 1, 8, (16, 16, 16), ((16, 16, 16),), step=500)
        >>> encoder = random_encoders(contract, seed=1, count=1)[0]
        >>> with TemporaryDirectory() as folder:
        ...     file = save_encoder(encoder, Path(folder, "encoder.safetensors"), contract)
        ...     probed = load_probed(file, folders=[], expected=contract)
        >>> name, weight = next(iter(encoder.named_parameters()))
        >>> [torch.equal(network.get_parameter(name), weight) for network in (probed.network, probed.untrained)]
        [True, False]
        >>> probed.origin.split(", ")[1]
        'step 500'
    """
    path = find_checkpoint(checkpoint, folders)
    found = find_contract(path)
    contract = found[0] if found else replace(expected, step=step_in_name(path) or 0)
    network, untrained = random_encoders(contract, seed, 2)
    report = load_pretrained(network, path)
    masked_only = getattr(network, "MASKED_ONLY", ())  # the probe masks nothing
    if missing := [name for name in report.new if not name.startswith(masked_only)]:
        raise WrongWeightsError(
            f"{path}: lacks {counted(len(missing), 'tensor')} of the encoder, such as {missing[0]}; with "
            "random weights in their place the probe would be meaningless."
        )
    origin = f"{path}" + (f", step {contract.step}" if found or contract.step else "")
    if not found:
        origin += ", input as in the configuration"
        _check_assumed(path, contract, report)
    encoders = (network.to(device).eval(), untrained.to(device).eval())
    return ProbedEncoder(*encoders, contract, origin, read_training_volumes(path), path)


def _check_assumed(path: Path, contract: InputContract, report: LoadReport) -> None:
    """Refuse weights that the configuration's contract cannot be of, and warn that it is assumed."""
    for name, how in report.adapted:
        if "position" in name:
            raise WrongWeightsError(
                f"{path}: no input contract is known, and its positions are not those of the configuration's "
                f"input_size {list(contract.input_size)} ({how}). Set --input_size as in its training, or put the "
                "encoder.safetensors of its training beside it."
            )
    scaled = "percentiles" if contract.percentiles else f"window {list(contract.hu_window or HU_RANGE)} HU"
    spacing = "native" if contract.spacing is None else f"{per_axis(contract.spacing)} mm"
    logger.warning(
        "%s: no input contract in the file, its folder or its run. Input is assumed to be as in the configuration: "
        "modality %s, %s, %s voxels. If it was trained otherwise, the figures are too low.",
        path, contract.modality, scaled, spacing,
    )  # fmt: skip


def seen_scans(items: Sequence[Mapping[str, Any]], probed: ProbedEncoder) -> list[str] | None:
    """Names of the scans whose voxels the encoder was trained on; None if its training volumes are unknown.

    Args:
        items: scans of a probe, as `PreparedCases` has them.
        probed: encoder with its contract, by which the scans are prepared for the comparison.
    """
    if not probed.training_volumes:
        return None
    contract, seen = probed.contract, []
    for item in items:
        source = VolumeSource(Path(item["image"]), (Path(item["image"]),))
        decoded = decode_volume(source, inspect_source(source, sys.maxsize), contract.modality)
        voxels = decoded.at(as_spacing(contract.spacing), sys.maxsize).voxels
        if content_of(voxels) in probed.training_volumes:
            seen.append(str(item["name"]))
    return seen


def run_probe(probe: FeatureProbe, probed: ProbedEncoder, folder: RunFolder, tracker: RunTracker) -> None:
    """Probe the encoder, the same network with random weights, and intensity with position; write the report.

    Args:
        probe: probe on the labelled scans.
        probed: encoder with its weights.
        folder: for `report.md`, `metrics.json`, `cases.csv` and pictures.
        tracker: gets the figures at the weights' step, and the files.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from types import SimpleNamespace
        >>> from mim_components.data import PreparedCases
        >>> from unittest.mock import patch
        >>> dice = {"encoder": 0.75, "random weights": 0.5, "intensity and position": 0.25}
        >>> probe = lambda network, pictures=False, title="": SimpleNamespace(dice=dice[title], knn=0.9)
        >>> probe.prepared, probe.settings = PreparedCases(training=[], validation=[]), {}
        >>> contract = InputContract("hybrid", "nano", 1, 8, (16, 16, 16), ((16, 16, 16),), step=500)
        >>> probed = ProbedEncoder(nn.Identity(), nn.Identity(), contract, "encoder.safetensors")
        >>> tracker = SimpleNamespace(start=lambda engine: None, close=print)
        >>> tracker.log_numbers = lambda sent, step: print(step, {name: sent[name] for name in sent if "dice" in name})
        >>> with TemporaryDirectory() as place, patch(f"{__name__}.ProbeReport"):  # writes no files
        ...     run_probe(probe, probed, RunFolder(place), tracker)
        500 {'probe_dice': 0.75, 'random_dice': 0.5, 'raw_dice': 0.25}
        FINISHED
    """
    status = "FAILED"
    folder.begin(probe.prepared.digest, "probe", probe.prepared.contents)
    prepared = probe.prepared
    folder.facts |= {"checkpoint": probed.origin, **probe.settings, "dataset": "probe", "data_digest": prepared.digest}
    folder.facts |= {"training_cases": len(prepared.training), "validation_cases": len(prepared.validation)}
    tracker.tags = _tags(probed)
    tracker.start(Engine(lambda engine, batch: None))
    try:
        results = {"encoder": probe(probed.network, pictures=True, title="encoder")}
        results["random weights"] = probe(probed.untrained, title="random weights")
        results["intensity and position"] = probe(None, title="intensity and position")
        seen = seen_scans(probe.prepared.validation, probed)
        if seen:
            logger.warning(
                "%s in the pre-training of the weights: %s", counted(len(seen), "validation scan"), shorten(seen)
            )
        report = ProbeReport(results, {"weights": probed.origin, **probe.settings}, probe, seen)
        numbers = {
            f"{prefix}_{name}": getattr(result, name)
            for prefix, result in zip(("probe", "random", "raw"), results.values(), strict=True)
            for name in ("dice", "knn")
        }
        tracker.log_numbers(numbers, probed.contract.step)
        for path in report.write(folder.path):
            tracker.log_artifact(path)
        status = "FINISHED"
    finally:
        tracker.close(status)
        folder.update(status=status.lower())
        folder.release()


def _tags(probed: ProbedEncoder) -> dict[str, str]:
    """Tags of a probe in MLflow, where it is a child of the run that wrote the weights."""
    run_id = "" if probed.path is None else run_of_weights(probed.path).get("mlflow_run_id", "")
    tags = {"stage": "probe", NOTE: f"Probe of {probed.origin}.", "mlflow.parentRunId": str(run_id)}
    return {name: value for name, value in tags.items() if value}
