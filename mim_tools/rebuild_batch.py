"""Rebuild the batch of a non-finite step from the report that the step left in the run folder.

python -m mim_tools.rebuild_batch RUN_FOLDER/nonfinite_step_00000042.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data import list_data_collate

from mim_components.data.load.dataset import KeyedDataset


def rebuild_batches(report: str | Path, dataset: KeyedDataset, rank: int = 0) -> list[Any]:
    """The micro-batches of a process, as the loader of the training gave them to the step.

    Args:
        report: `nonfinite_step_XXXXXXXX.json`.
        dataset: dataset of the training, `train::dataset` of its configuration.
        rank: rank of the process.

    Raises:
        ValueError: the report does not list samples.
    """
    micro_batches = json.loads(Path(report).read_text())["ranks"][rank]["micro_batches"]
    if any(each["samples"] is None for each in micro_batches):
        raise ValueError(f"{report}: does not say which samples the step had.")
    return [list_data_collate([dataset[epoch, index] for epoch, index in each["samples"]]) for each in micro_batches]


def dataset_of(report: str | Path) -> KeyedDataset:
    """The dataset of the training, from the configuration in the run folder.

    The volumes are prepared as at the start of a run, from its cache where possible.
    """
    folder = Path(report).absolute().parent
    config = json.loads((folder / "run.json").read_text())["config"]
    root = json.loads(Path(report).read_text())["bundle_root"]
    config["prepared"] = config["prepared"] | {"output_dir": None}  # leave the run folder unchanged
    parser = ConfigParser(config | {"bundle_root": root, "output_dir": str(folder), "resume": "auto"})
    dataset: KeyedDataset = parser.get_parsed_content("train::dataset")
    return dataset


def describe(batch: Mapping[str, Any]) -> Iterator[str]:
    """One line per tensor of a batch: shape, range, and how many values are not finite."""
    for name, value in batch.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            finite = value[torch.isfinite(value)]
            low, high = (float(finite.min()), float(finite.max())) if finite.numel() else (torch.nan, torch.nan)
            shape = "x".join(str(side) for side in value.shape)
            yield f"  {name:<20} {shape:<24} {low:g} to {high:g}, {value.numel() - finite.numel()} not finite"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the content of the report and of the batches."""
    parser = argparse.ArgumentParser("python -m mim_tools.rebuild_batch", description=__doc__)
    parser.add_argument("report", type=Path, help="nonfinite_step_XXXXXXXX.json in the run folder")
    options = parser.parse_args(arguments)
    content = json.loads(options.report.read_text())
    dataset = dataset_of(options.report)
    lines = [f"step {content['step']}, first: {content['first']}"]
    for rank, process in enumerate(content["ranks"]):
        for made, each in zip(rebuild_batches(options.report, dataset, rank), process["micro_batches"], strict=True):
            terms = ", ".join(f"{name} {value}" for name, value in each["terms"].items())
            samples = ", ".join(f"epoch {epoch} index {index}" for epoch, index in each["samples"])
            lines += [f"process {rank}: {samples}: {', '.join(each['names'])}: {terms}", *describe(made)]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
