"""Probe trained weights beside what they are to be compared with, and keep what was found."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from torch import nn

from mim_components.handlers.reports.probe import ProbeReport
from mim_components.handlers.tracking import RunTracker
from mim_components.metrics.probe.probe import FeatureProbe
from mim_components.networks.mim import MiM
from mim_components.run.folder import RunFolder
from mim_components.weights.contract import InputContract, WrongWeightsError, find_contract
from mim_components.weights.pretrained import load_pretrained
from mim_components.weights.trained import find_checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ProbedEncoder:
    """An encoder with its weights, and the same network with random ones.

    Attributes:
        network: with the weights.
        untrained: the same network as its constructor leaves it.
        contract: how the input is made.
        origin: file of the weights, and their step where it is known.
    """

    network: nn.Module
    untrained: nn.Module
    contract: InputContract
    origin: str


def load_probed(
    checkpoint: str | Path | None,
    folders: Sequence[str | Path],
    expected: InputContract,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> ProbedEncoder:
    """Make the encoder that a file of weights belongs to: by its input contract, which counts for the whole probe.

    Args:
        checkpoint: `encoder.safetensors`, `model.pt` or a checkpoint of a pre-training; None = `models/model.pt` in
            the first of the folders.
        folders: where to look for it.
        expected: input contract of the configuration, for weights without one.
        device: to put the networks on.
        seed: of the random weights.

    Raises:
        FileNotFoundError: there is no such file.
        PretrainedError: the weights do not fit.
        WrongWeightsError: tensors of the encoder are missing.
    """
    path = find_checkpoint(checkpoint, folders)
    found = find_contract(path)
    contract = expected if found is None else found[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = [
            MiM(contract.in_channels, contract.input_size, contract.preset, contract.encoder, num_levels=1).encoder
            for _ in range(2)
        ]
    report = load_pretrained(networks[0], path)
    if report.new:
        raise WrongWeightsError(
            f"{path}: {len(report.new)} tensors of the encoder are not in the file, such as {report.new[0]}; with "
            "random weights in their place the probe would tell nothing."
        )
    trained, untrained = (network.to(device).eval() for network in networks)
    origin = f"{path}" + (f", step {contract.step}" if found else "")
    return ProbedEncoder(trained, untrained, contract, origin)


def run_probe(
    probe: FeatureProbe, probed: ProbedEncoder, folder: RunFolder, tracker: RunTracker, facts: Mapping[str, Any]
) -> None:
    """Probe the encoder, the same network with random weights, and intensity with position; write the report.

    Args:
        probe: of the labelled scans.
        probed: the encoder.
        folder: for `report.md`, `metrics.json`, `cases.csv` and pictures.
        tracker: gets the figures at the weights' step, and the files.
        facts: settings that the report names.
    """
    status = "FAILED"
    folder.begin(probe.prepared.digest, "probe", probe.prepared.contents)
    folder.facts |= {"checkpoint": probed.origin, **facts}
    tracker.start(Engine(lambda engine, batch: None))
    try:
        results = {"encoder": probe(probed.network, pictures=True, title="encoder")}
        results["random weights"] = probe(probed.untrained, title="random weights")
        results["intensity and position"] = probe(None, title="intensity and position")
        report = ProbeReport(results, {"weights": probed.origin, **facts}, probe)
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
