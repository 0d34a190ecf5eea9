"""How a pre-training step scales with batch, mask ratio and levels: `python -m benchmarks.scaling`.

fp32, AdamW, random voxels of 96^3, sparse form. Batch and mask ratio are measured with one level, all volumes in one
pass, which a step of three levels repeats. The levels, 1 to 4 with 4 children per volume, are measured one volume
at a time, and with a smaller preset: the 85 volumes of four levels take minutes with `base`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.pretraining import Settings, Training
from benchmarks.report import add_report_options, measure, report

VOLUMES = (1, 2, 4)
MASK_RATIOS = (0.6, 0.7, 0.75, 0.9)
LEVELS = (1, 2, 3, 4)


def table(name: str, cases: Mapping[float, Settings], repetitions: int) -> list[dict[str, Any]]:
    """One row per case: milliseconds, and ratios to the first.

    Args:
        name: name of the varied quantity.
        cases: steps by its value.
        repetitions: timed rounds.
    """
    trainings = {str(value): Training(settings) for value, settings in cases.items()}
    times = measure(trainings, repetitions)
    rows = []
    for value, settings in cases.items():
        timing, volumes = times[str(value)], sum(settings.volumes)
        cpu = timing.cpu_median * 1e3
        row = {name: value, "volumes": volumes, **timing.milliseconds(), "CPU ms": cpu, "CPU ms/volume": cpu / volumes}
        first = rows[0] if rows else row
        rows.append({
            **row, "time, first row = 1": row["median ms"] / first["median ms"],
            "CPU time, first row = 1": cpu / first["CPU ms"],
            "CPU time of a volume, first row = 1": row["CPU ms/volume"] / first["CPU ms/volume"],
        })  # fmt: skip
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="A pre-training step against batch, mask ratio and levels.")
    parser.add_argument("--preset", default="base", help="preset for batch and mask ratio")
    parser.add_argument("--levels_preset", default="small", help="preset for the levels")
    parser.add_argument("--levels", type=int, nargs="+", default=LEVELS, help="numbers of levels")
    parser.add_argument("--size", type=int, default=96, help="edge of a volume, voxels")
    add_report_options(parser, repetitions=3)
    options = parser.parse_args(arguments)
    one = Settings(options.preset, options.size, levels=1)
    batch = {volumes: replace(one, samples=volumes) for volumes in VOLUMES}
    ratios = {ratio: replace(one, samples=2, mask_ratio=ratio) for ratio in MASK_RATIOS}
    levels = {n: Settings(options.levels_preset, options.size, levels=n, limit=1) for n in options.levels}
    tables = {
        f"Step against volumes, {options.preset}, one level": table("batch", batch, options.repetitions),
        f"Step against mask ratio, {options.preset}, one level": table("mask ratio", ratios, options.repetitions),
        f"Step against levels, {options.levels_preset}": table("levels", levels, options.repetitions),
    }
    report(tables, options.json, settings=vars(options))


if __name__ == "__main__":
    main()
