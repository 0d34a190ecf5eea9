"""A whole volume in windows, ours against MONAI's `SlidingWindowInferer`: `python -m benchmarks.inference`.

Both give a class number per voxel, MONAI's by `argmax` of its logits, with the same network, windows, overlap of 0.5
and Gaussian weights. Their class maps are checked to be equal; a voxel may differ if two classes are equal except
for rounding. The volume is noise in an ellipsoid with nothing around it. The network is our `hybrid_swin_unetr` and,
on a larger volume, a convolution with 14 classes, so cheap that the inferers' own time and memory show.

Cases run in turn, each in its own process; the peak is that of the whole process, with Python, PyTorch and weights
(`ru_maxrss`). On a shared machine, CPU seconds of all threads (with OMP_WAIT_POLICY=passive,
GOMP_SPINCOUNT=0) compare better than wall-clock time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

from benchmarks.own_process import numbers_of, peak, timed
from benchmarks.report import add_report_options, report, size_option
from mim_components.inferers import ClassMapInferer
from mim_components.networks import segmentation_network

CLASSES = 14
OURS, MONAI = "ClassMapInferer", "SlidingWindowInferer + argmax"
INFERERS = (OURS, MONAI)
NETWORKS = ("hybrid_swin_unetr", "one convolution")
WINDOWS_TOGETHER = 4  # sw_batch_size
MAY_DIFFER = 1e-4  # share of voxels


def make_volume(size: Sequence[int]) -> Tensor:
    """Noise inside an ellipsoid that spans 0.8 of every side, and nothing around it: `(1, 1, H, W, D)`."""
    volume = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0))
    axes = [torch.linspace(-1, 1, side).square() for side in size]
    distance = axes[0][:, None, None] + axes[1][:, None] + axes[2]
    return volume.mul_(distance < 0.8**2)


def make_network(name: str, preset: str, roi: Sequence[int]) -> nn.Module:
    torch.manual_seed(0)
    if name == "one convolution":
        return nn.Conv3d(1, CLASSES, 1).eval()
    return segmentation_network(name, 1, CLASSES, roi, preset).eval()


def make_inferer(name: str, roi: Sequence[int]) -> Callable[[Tensor, nn.Module], Tensor]:
    """A function from a volume and a network to uint8 classes `(1, 1, H, W, D)`."""
    if name == MONAI:
        monai = SlidingWindowInferer(roi, WINDOWS_TOGETHER, overlap=0.5, mode="gaussian")

        def classes(volume: Tensor, network: nn.Module) -> Tensor:
            logits = monai(volume, network)
            assert isinstance(logits, Tensor)
            return logits.argmax(1, keepdim=True).to(torch.uint8)

        return classes
    return ClassMapInferer(roi, WINDOWS_TOGETHER, overlap=0.5)


def run_case(inferer: str, network: str, options: argparse.Namespace, path: Path) -> dict[str, float]:
    """Wall-clock and CPU seconds, and peak memory of this process in GiB; the class map goes to `path`."""
    size = options.size if network == NETWORKS[0] else options.large_size
    volume, model = make_volume(size), make_network(network, options.preset, options.roi)
    predict = make_inferer(inferer, options.roi)
    maps: list[Tensor] = []
    with torch.no_grad():
        seconds, cpu = timed(lambda: maps.append(predict(volume, model)))
    numbers = {"seconds": seconds, "cpu": cpu, "peak": peak()}
    torch.save(maps[0], path)
    return numbers


def in_process(inferer: str, network: str, options: argparse.Namespace, path: Path) -> dict[str, float]:
    """`run_case` in its own process."""
    words = ["--case", inferer, network, str(path)]
    for name in ("size", "large_size", "roi"):
        words += [f"--{name}", ",".join(map(str, getattr(options, name)))]
    words += ["--preset", options.preset]
    return numbers_of("benchmarks.inference", words, inferer)


def share_of_differences(paths: Sequence[Path]) -> list[float]:
    """For each class map, the share of voxels that differ from those of the last map.

    Raises:
        RuntimeError: they differ by more than rounding explains.
    """
    maps = [torch.load(path, weights_only=True) for path in paths]
    shares = [float((each != maps[-1]).float().mean()) for each in maps]
    if max(shares) > MAY_DIFFER:
        raise RuntimeError(f"class maps differ in {max(shares):.2%} of the voxels: the inferers disagree.")
    return shares


def compare(network: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per inferer; ratios are to MONAI's."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.pt" for number in range(len(INFERERS))]
        rounds = [
            [in_process(name, network, options, path) for name, path in zip(INFERERS, paths, strict=True)]
            for _ in range(options.repetitions)
        ]
        differences = share_of_differences(paths)
    rows = []
    for name, numbers, share in zip(INFERERS, zip(*rounds, strict=True), differences, strict=True):
        seconds, cpu, peak = (statistics.median(each[key] for each in numbers) for key in ("seconds", "cpu", "peak"))
        rows.append({"inferer": name, "s": seconds, "CPU s": cpu, "peak GiB": peak, "voxels that differ": share})
    last = rows[-1]
    return [{**row, **{f"{key}, last row = 1": row[key] / last[key] for key in ("CPU s", "peak GiB")}} for row in rows]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="A whole volume in windows, ours against MONAI's inferer.")
    parser.add_argument("--preset", default="base")
    parser.add_argument("--size", type=size_option, default=(160, 144, 128), help="size of the volume, voxels")
    parser.add_argument("--large_size", type=size_option, default=(512, 512, 300), help="for the convolution, voxels")
    parser.add_argument("--roi", type=size_option, default=(96, 96, 96), help="window, voxels")
    parser.add_argument("--quick", action="store_true", help="smallest sizes, once: the numbers mean nothing")
    parser.add_argument("--case", nargs=3, metavar=("INFERER", "NETWORK", "FILE"), help="only this case, as JSON")
    add_report_options(parser, repetitions=1)
    options = parser.parse_args(arguments)
    if options.quick:
        options.preset, options.roi, options.repetitions = "nano", (32, 32, 32), 1
        options.size, options.large_size = (48, 40, 32), (64, 64, 48)
    if options.case:
        inferer, network, path = options.case
        print(json.dumps(run_case(inferer, network, options, Path(path))))
        return
    sizes = dict(zip(NETWORKS, (options.size, options.large_size), strict=True))
    tables = {
        f"{name}, {'x'.join(map(str, size))} voxels, windows of {'x'.join(map(str, options.roi))}": compare(
            name, options
        )
        for name, size in sizes.items()
    }
    settings = {name: getattr(options, name) for name in ("preset", "size", "large_size", "roi", "repetitions")}
    report(tables, options.json, settings=settings)


if __name__ == "__main__":
    main()
