"""Time of the parts of a pre-training step, from the cached volume to the new weights; part of `benchmarks.step`.

The data path is that of `bundles/mim_pretrain/configs/train.json`, on a noisy synthetic CT, and runs in the same
process before the step; in real training, workers run it in parallel.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

from monai.bundle import ConfigParser
from monai.data import list_data_collate
from torch import nn

from benchmarks.data_stores import noisy_ct
from benchmarks.pretraining import Settings, Training
from benchmarks.report import ROOT, synchronize

LEVELS = ((384, 384, 192), (96, 96, 96), (16, 16, 16))
PARTS = (
    "crop and mask, from the cache",
    "encoder, forward",
    "decoder and heads, forward",
    "losses",
    "backward, clipping",
    "optimizer",
)


def write_ct(folder: Path, size: Sequence[int]) -> None:
    """Write a CT of `size` voxels where `pretrain_config` looks for it."""
    (folder / "data").mkdir()
    noisy_ct(folder / "noisy.nii.gz", size).rename(folder / "data" / "noisy.nii.gz")


def pretrain_config(folder: Path, levels: Sequence[Sequence[int]], settings: Settings, **options: Any) -> ConfigParser:
    """The configuration of `mim_pretrain` for the CT in `folder`; its cache is next to it.

    Args:
        folder: see `write_ct`.
        levels: native sizes, voxels.
        settings: preset, size of the volumes, mask ratio and device.
        options: other keys of the configuration.
    """
    content = json.loads((ROOT / "bundles/mim_pretrain/configs/train.json").read_text())
    own = {
        "bundle_root": str(folder), "dataset_dir": str(folder / "data"),
        "preset": settings.preset, "level_sizes": [list(size) for size in levels], "input_size": [settings.size] * 3,
        "mask_ratio": settings.mask_ratio, "device": f"$torch.device('{settings.device}')",
    }  # fmt: skip
    return ConfigParser(content | own | options)


class Clock:
    """Seconds of named parts, summed over their calls; a part may contain another."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def start(self, name: str) -> None:
        synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) - perf_counter()

    def stop(self, name: str) -> None:
        synchronize()
        self.seconds[name] += perf_counter()

    def watch(self, name: str, module: nn.Module) -> None:
        """Time the forward calls of a module."""
        module.register_forward_pre_hook(lambda *_: self.start(name))
        module.register_forward_hook(lambda *_: self.stop(name))


def parts_table(
    folder: Path, levels: Sequence[Sequence[int]], settings: Settings, repetitions: int
) -> list[dict[str, Any]]:
    """Rows of the parts: medians over steps after a warm-up step.

    Args:
        folder: see `write_ct`.
        levels: native sizes, voxels.
        settings: settings of the step; the number of levels is that of `levels`.
        repetitions: number of timed steps.
    """
    settings = replace(settings, levels=len(levels))
    dataset = pretrain_config(folder, levels, settings).get_parsed_content("train::dataset")
    training, clock = Training(settings), Clock()
    clock.watch("network", training.network)
    clock.watch("encoder", training.network.encoder)
    clock.watch("losses", training.engine.loss_function)
    training.engine.optimizer.register_step_pre_hook(lambda *_: clock.start("optimizer"))
    training.engine.optimizer.register_step_post_hook(lambda *_: clock.stop("optimizer"))
    steps = []
    for number in range(repetitions + 1):
        clock.seconds.clear()
        clock.start("data")
        batch = list_data_collate([dataset[number, 0]])
        clock.stop("data")
        clock.start("step")
        training(batch)
        clock.stop("step")
        steps.append(dict(clock.seconds))
    rows = [{"part": part, "ms": statistics.median(_part(part, each) for each in steps[1:]) * 1e3} for part in PARTS]
    total = sum(row["ms"] for row in rows)
    return [{**row, "share %": 100 * row["ms"] / total} for row in rows]


def _part(part: str, seconds: dict[str, float]) -> float:
    """Seconds of one of `PARTS`."""
    own = {
        "crop and mask, from the cache": seconds["data"],
        "encoder, forward": seconds["encoder"],
        "decoder and heads, forward": seconds["network"] - seconds["encoder"],
        "losses": seconds["losses"],
        "optimizer": seconds["optimizer"],
    }
    rest = seconds["step"] - seconds["network"] - seconds["losses"] - seconds["optimizer"]
    return own.get(part, rest)
