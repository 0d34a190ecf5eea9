"""The whole pre-training step per sample: `python -m benchmarks.step`.

1. Dense against sparse: one sample of 1 + 4 + 16 volumes of 96^3 with random voxels, fp32, AdamW. Each form has the
   layout and `max_volumes_per_pass` that suit it best on CPU: channels last, the project's backward pass of the
   depth-wise convolution, one volume at a time (`benchmarks.step_memory` has the others). Each form has its own
   process and peak (`ru_maxrss`, with Python, PyTorch, weights and AdamW's state); the processes step in
   turn: one waits while the other computes.
2. Where the time of a sparse step goes, see `benchmarks.step_parts`.
3. One level against MONAI's masked autoencoder, see `benchmarks.mae`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.mae import mae_table
from benchmarks.own_process import peak, timed
from benchmarks.pretraining import FORMS, Settings, Training
from benchmarks.report import Timing, add_report_options, report, size_option
from benchmarks.step_memory import Case, settings_of
from benchmarks.step_parts import LEVELS, parts_table, write_ct


class StepProcess:
    """A training in its own process; a call is one step there."""

    def __init__(self, settings: Settings) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, settings, torch.get_num_threads()), daemon=True)
        self.process.start()
        theirs.close()

    def __call__(self) -> tuple[float, float, float]:
        """Wall-clock seconds, CPU seconds of all threads, and the peak memory of the process so far in GiB.

        Raises:
            EOFError: the process has ended, usually because the machine has too little memory.
        """
        self.pipe.send("step")
        numbers: tuple[float, float, float] = self.pipe.recv()
        return numbers

    def close(self) -> None:
        self.pipe.close()
        self.process.join()


def _serve(pipe: Connection, settings: Settings, threads: int) -> None:
    torch.set_num_threads(threads)
    training = Training(settings)
    try:
        while pipe.recv():
            pipe.send((*timed(training), peak()))
    except EOFError:  # closed
        pass


def forms_table(preset: str, size: int, levels: int, limits: Sequence[int], repetitions: int) -> list[dict[str, Any]]:
    """One row per form; the first step of each does not count.

    Args:
        preset: name of the preset.
        size: edge of a volume, voxels.
        levels: number of levels of a sample.
        limits: `max_volumes_per_pass` of the dense and the sparse form; 0 = no limit.
        repetitions: timed rounds.
    """
    cases = [Case(form, limit, False) for form, limit in zip(FORMS, limits, strict=True)]
    processes = [StepProcess(settings_of(case, preset, size, levels)) for case in cases]
    rounds = [[process() for process in processes] for _ in range(repetitions + 1)][1:]
    for process in processes:
        process.close()
    rows: list[dict[str, Any]] = []
    for case, numbers in zip(cases, zip(*rounds, strict=True), strict=True):
        seconds, cpu, peaks = zip(*numbers, strict=True)
        timing = Timing(seconds)
        row = {
            "encoder": case.form, "max_volumes_per_pass": str(case.limit or "null"), "s/sample": timing.median,
            "min s": timing.low, "max s": timing.high, "CPU s/sample": statistics.median(cpu), "peak GiB": max(peaks),
        }  # fmt: skip
        first = rows[0] if rows else row
        rows.append({
            **row, "times faster": first["s/sample"] / row["s/sample"],
            "CPU times faster": first["CPU s/sample"] / row["CPU s/sample"],
            "share of peak": row["peak GiB"] / first["peak GiB"],
        })  # fmt: skip
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="The whole pre-training step per sample.")
    parser.add_argument("--preset", default="base")
    parser.add_argument("--size", type=int, default=96, help="edge of a volume, voxels")
    parser.add_argument("--limits", type=int, nargs=2, default=(1, 1), metavar=("DENSE", "SPARSE"),
                        help="max_volumes_per_pass of each form, 0 = no limit")  # fmt: skip
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4], help="volumes, against MONAI's autoencoder")
    parser.add_argument("--ct_size", type=int, nargs=3, default=(512, 512, 300), help="synthetic CT, voxels")
    parser.add_argument("--levels", type=size_option, nargs="+", default=LEVELS, help="native sizes, voxels: 96,96,96")
    add_report_options(parser, repetitions=3)
    options = parser.parse_args(arguments)
    preset, size, repetitions = options.preset, options.size, options.repetitions
    tables = {
        f"Dense against sparse, {preset}, one sample, each form at its best": forms_table(
            preset, size, len(options.levels), options.limits, repetitions
        )
    }
    with tempfile.TemporaryDirectory() as folder:
        write_ct(Path(folder), options.ct_size)
        tables[f"Parts of a sparse step, {preset}, one sample"] = parts_table(
            Path(folder), options.levels, Settings(preset, size, limit=options.limits[1]), repetitions
        )
    tables[f"Against MONAI's masked auto-encoder, {preset}, one level"] = [
        row for batch in options.batch for row in mae_table(preset, size, batch, repetitions)
    ]
    report(tables, options.json, settings=vars(options))


if __name__ == "__main__":
    main()
