"""Segmentation networks, ours against MONAI's, one training step each: `python -m benchmarks.fine_tuning`.

A step is a forward and backward pass of one random volume of 96^3 (fp32, 14 classes) through the loss of
`bundles/mim_btcv_segmentation`. MONAI's networks have their default sizes, which are those of our preset `base`; our
`unetr` is MONAI's class. Networks run in turn, round after round. On a shared machine, CPU seconds of all
threads (with OMP_WAIT_POLICY=passive, GOMP_SPINCOUNT=0) compare better than wall-clock time.

For its peak, every network runs two steps in its own process; the peak is that of the whole process, with Python,
PyTorch, weights and gradients (`ru_maxrss`). There our network also runs with an allocator that keeps its
memory: glibc returns arrays of more than 32 MiB at once, and the system provides them again page by
page.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.networks.nets import UNETR, SwinUNETR
from torch import nn

from benchmarks.own_process import numbers_of, peak, timed
from benchmarks.report import ROOT, add_report_options, measure, report, size_option
from mim_components.networks import get_preset, segmentation_network

CLASSES = 14
OURS = "hybrid_swin_unetr"
NETWORKS = (OURS, "unetr", "MONAI SwinUNETR", "MONAI UNETR")
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}  # for glibc


def make_network(name: str, preset: str, size: Sequence[int]) -> nn.Module:
    """A network of `NETWORKS` in training mode; MONAI's have the sizes of the preset."""
    torch.manual_seed(0)
    sizes = get_preset(preset)
    if name == "MONAI SwinUNETR":
        return SwinUNETR(1, CLASSES, feature_size=sizes.feature_size)
    if name == "MONAI UNETR":
        vit = sizes.vit
        return UNETR(1, CLASSES, size, sizes.feature_size // 3, vit.hidden_size, 4 * vit.hidden_size, vit.num_heads)
    return segmentation_network(name, 1, CLASSES, size, preset)


def bundle_loss() -> nn.Module:
    """The loss of `mim_btcv_segmentation`."""
    content = json.loads((ROOT / "bundles/mim_btcv_segmentation/configs/train.json").read_text())
    loss: nn.Module = ConfigParser({"loss": content["class_loss"]}).get_parsed_content("loss")
    return loss


def make_step(network: nn.Module, size: Sequence[int]) -> Callable[[], None]:
    """Forward and backward pass of one volume."""
    loss, image = bundle_loss(), torch.rand(1, 1, *size)
    label = torch.randint(CLASSES, (1, 1, *size))

    def step() -> None:
        network.zero_grad()
        loss(network(image), label).backward()

    return step


def compare(preset: str, size: Sequence[int], repetitions: int) -> list[dict[str, Any]]:
    """One row per network: parameters, seconds, and ratios to our network."""
    networks = {name: make_network(name, preset, size) for name in NETWORKS}
    times = measure({name: make_step(network, size) for name, network in networks.items()}, repetitions)
    return [
        {
            "network": name, "parameters (M)": sum(p.numel() for p in networks[name].parameters()) / 1e6,
            "s/step": times[name].median, "min s": times[name].low, "max s": times[name].high,
            "time, first row = 1": times[name].median / times[OURS].median,
            "CPU s/step": times[name].cpu_median,
            "CPU time, first row = 1": times[name].cpu_median / times[OURS].cpu_median,
        }
        for name in NETWORKS
    ]  # fmt: skip


def run_case(name: str, preset: str, size: Sequence[int]) -> dict[str, float]:
    """Wall-clock and CPU seconds of the second of two steps, and peak memory of this process in GiB."""
    step = make_step(make_network(name, preset, size), size)
    step()
    seconds, cpu = timed(step)
    return {"seconds": seconds, "cpu": cpu, "peak": peak()}


def in_process(name: str, keep_memory: bool, options: argparse.Namespace) -> dict[str, float]:
    """`run_case` in its own process."""
    words = ["--case", name, "--preset", options.preset, "--size", ",".join(map(str, options.size))]
    return numbers_of("benchmarks.fine_tuning", words, name, KEEP_MEMORY if keep_memory else None)


def peaks(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per process."""
    cases = [*((name, False) for name in NETWORKS), (OURS, True)]
    numbers = [in_process(name, keep, options) for name, keep in cases]
    return [
        {
            "network": name, "memory is": "kept" if keep else "given back",
            "peak GiB": each["peak"], "peak, first row = 1": each["peak"] / numbers[0]["peak"],
            "s/step": each["seconds"], "CPU s/step": each["cpu"],
            "CPU time, first row = 1": each["cpu"] / numbers[0]["cpu"],
        }
        for (name, keep), each in zip(cases, numbers, strict=True)
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Training steps of segmentation networks, ours against MONAI's.")
    parser.add_argument("--preset", default="base")
    parser.add_argument("--size", type=size_option, default=(96, 96, 96), help="size of the volume, voxels")
    parser.add_argument("--quick", action="store_true", help="smallest sizes, once: the numbers mean nothing")
    parser.add_argument("--case", choices=NETWORKS, help="this network only, as JSON")
    add_report_options(parser, repetitions=2)
    options = parser.parse_args(arguments)
    if options.quick:
        options.preset, options.size, options.repetitions = "tiny", (64, 32, 32), 1
    if options.case:
        print(json.dumps(run_case(options.case, options.preset, options.size)))
        return
    # first: a child process is at least as large as the process that starts it
    tables = {"Peak of a process": peaks(options)}
    tables["One step"] = compare(options.preset, options.size, options.repetitions)
    settings = {name: getattr(options, name) for name in ("preset", "size", "repetitions")}
    report(tables, options.json, settings=settings)


if __name__ == "__main__":
    main()
