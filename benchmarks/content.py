"""Children without content, before and after `child_content="prefer"`: `python -m benchmarks.content [FOLDER ...]`.

A table of the share of children whose parent token spans 50 HU or less. It always has two kinds of synthetic CT:
many thin slices, and few thick ones; a folder of real CT adds two rows, with the default level sizes and with small
ones (level 1 of 96^3 at 48^3, tokens of 16^3) that fit small scans. `--draws` samples of each kind are drawn from
its scans in turn, with seeds 0, 1, 2 ...; both settings use the same seeds, so that level 1 and all masks are equal.
"""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.report import add_report_options, report, size_option
from mim_components.data import find_sources
from mim_components.data.load.scans import load_volume
from mim_components.transforms.crop import MultiLevelCropMask
from mim_components.transforms.geometry import CHILD_CONTENT
from mim_components.transforms.resize import resize_volumes
from mim_tools.synthetic import synthetic_ct

WINDOW = (-1000, 1000)
PERSONS = 4  # synthetic


class Levels(NamedTuple):
    """How a sample is cut."""

    name: str
    level_sizes: Sequence[Sequence[int]]
    input_size: Sequence[int]


DEFAULT = Levels("default", ((384, 384, 192), (96, 96, 96), (16, 16, 16)), (96, 96, 96))
SMALL = Levels("small", ((96, 96, 96), (48, 48, 48), (16, 16, 16)), (48, 48, 48))
KINDS = {"thin slices": (0.8, 0.8, 1.2), "slices of 5 mm": (0.8, 0.8, 5.0)}  # mm
SIZES = {"thin slices": (512, 512, 300), "slices of 5 mm": (512, 512, 65)}


def synthetic_scan(size: Sequence[int], spacing: Sequence[float], seed: int) -> Tensor:
    """A synthetic CT, int16 `(1, H, W, D)`, with noise of 12 HU: generated on a coarser grid, then upsampled."""
    factor = [4, 4, 4 if spacing[2] < 2 else 1]
    small = [max(n // f, 16) for n, f in zip(size, factor, strict=True)]
    coarse = synthetic_ct(seed, small, [s * n / m for s, n, m in zip(spacing, size, small, strict=True)])
    voxels = resize_volumes(torch.from_numpy(coarse.image)[None, None], size, "trilinear")[0]
    noise = torch.randn(voxels.shape, generator=torch.Generator().manual_seed(seed)) * 12
    return (voxels + noise).round().clamp(-1024, 3071).to(torch.int16)


def count_empty(scans: Sequence[Callable[[], Tensor]], draws: int, levels: Levels) -> dict[str, Any]:
    """Percentages of empty children at levels 2 and 3, for both settings.

    Args:
        scans: functions that read one scan each.
        draws: number of samples from all scans together.
        levels: how a sample is cut.
    """
    counts = {name: torch.zeros(3, 2) for name in CHILD_CONTENT}  # level 2, level 3, and level 3 below a filled level 2
    for number, scan in enumerate(scans):
        seeds = range(number, draws, len(scans))
        image = scan() if seeds else None
        for name in CHILD_CONTENT:
            crop = MultiLevelCropMask(levels.level_sizes, levels.input_size, window=WINDOW, child_content=name)
            for seed in seeds:
                crop.set_random_state(seed).randomize(image)
                second, third = (torch.from_numpy(level.content) for level in crop.geometry[1:])
                below = third[second.repeat_interleave(crop.num_children)]
                for row, content in zip(counts[name], (second, third, below), strict=True):
                    row += torch.tensor([(~content).sum(), len(content)])
    empty = {name: 100 * count[:, 0] / count[:, 1].clamp_min(1) for name, count in counts.items()}
    return {
        **{f"level {level} {name} %": float(empty[name][level - 2]) for level in (2, 3) for name in ("any", "prefer")},
        "level 3 prefer, level 2 filled %": float(empty["prefer"][2]),
    }


def real_scans(folder: Path, patterns: Sequence[str]) -> list[Callable[[], Tensor]]:
    """Readers of the CT volumes of a folder whose file names match a pattern, with the project's checks.

    Raises:
        ValueError: no file matches.
    """
    sources = [
        source
        for source in find_sources(dataset_dir=folder).sources
        if any(fnmatch.fnmatchcase(Path(source.path).name, pattern) for pattern in patterns)
    ]
    if not sources:
        raise ValueError(f"{folder}: no volume matches {' or '.join(patterns)}.")
    return [lambda source=source: torch.from_numpy(load_volume(source)[0])[None] for source in sources]


def content_table(
    folders: Sequence[Path], patterns: Sequence[str], draws: int, sizes: Mapping[str, Sequence[int]],
    default: Levels = DEFAULT, small: Levels = SMALL,
) -> list[dict[str, Any]]:  # fmt: skip
    """One row per kind of data and level sizes."""
    rows = []
    for name, spacing in KINDS.items():
        size = sizes[name]
        scans = [lambda seed=seed, size=size, mm=spacing: synthetic_scan(size, mm, seed) for seed in range(PERSONS)]
        title = f"synthetic, {'x'.join(map(str, size))}, {name}"
        rows.append({"data": title, "scans": len(scans), "levels": default.name, **count_empty(scans, draws, default)})
    for folder in folders:
        real = real_scans(folder, patterns)
        for levels in (default, small):
            shares = count_empty(real, draws, levels)
            rows.append({"data": folder.name, "scans": len(real), "levels": levels.name, **shares})
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Children without content, before and after.")
    parser.add_argument("folders", type=Path, nargs="*", help="folders of real CT")
    parser.add_argument("--match", nargs="+", default=["*"], help="file names in the folders, such as *_ct.nii.gz")
    parser.add_argument("--draws", type=int, default=200, help="samples per row")
    parser.add_argument("--thin", type=size_option, default=SIZES["thin slices"], help="synthetic size: 512,512,300")
    parser.add_argument("--thick", type=size_option, default=SIZES["slices of 5 mm"], help="synthetic size: 512,512,65")
    parser.add_argument("--levels", type=size_option, nargs=3, default=DEFAULT.level_sizes, help="level sizes, voxels")
    parser.add_argument("--input_size", type=size_option, default=DEFAULT.input_size, help="network input, voxels")
    add_report_options(parser)
    options = parser.parse_args(arguments)
    sizes = {"thin slices": options.thin, "slices of 5 mm": options.thick}
    default = Levels("default", options.levels, options.input_size)
    rows = content_table(options.folders, options.match, options.draws, sizes, default)
    report({"Children without content": rows}, options.json, settings={"draws": options.draws, "seed": 0})


if __name__ == "__main__":
    main()
