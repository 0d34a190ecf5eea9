"""Two DDP processes (CPU, gloo) against one: `python -m benchmarks.processes`.

The global batch is the same: two samples of 1 + 4 volumes of 96^3, random voxels, one volume at a time, fp32, AdamW.
Two processes have one sample and one thread each; one process has both samples, with two threads and with one. Every
case is started by torchrun. Cases run in turn, `--repetitions` rounds of one step after a warm-up step; a step takes
as long as in the slower process.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from time import perf_counter
from typing import Any, NamedTuple

import ignite.distributed as idist
import torch
from torch.nn.parallel import DistributedDataParallel

from benchmarks.pretraining import Settings, Training
from benchmarks.report import ROOT, Timing, add_report_options, report
from mim_components.run import start_processes, stop_processes

SAMPLES = 2


class Case(NamedTuple):
    """One row."""

    processes: int
    threads: int


CASES = [Case(1, 2), Case(1, 1), Case(2, 1)]


def run_process(preset: str, size: int, levels: int) -> float:
    """Seconds of a step after a warm-up step, in a process started by torchrun; the longest of all processes."""
    start_processes("gloo")
    seconds = _timed_step(preset, size, levels)
    # delete DDP before the group: if it holds the last reference, PyTorch 2.13 may deadlock
    gc.collect()
    stop_processes()
    return seconds


def _timed_step(preset: str, size: int, levels: int) -> float:
    training = Training(Settings(preset, size, levels, SAMPLES // idist.get_world_size(), limit=1))
    if idist.get_world_size() > 1:
        training.wrap(DistributedDataParallel(training.network))
    training()
    idist.barrier()
    start = perf_counter()
    training()
    seconds: float = idist.all_reduce(torch.tensor(perf_counter() - start), op="MAX").item()
    return seconds


def start(case: Case, arguments: argparse.Namespace) -> float:
    """Seconds of a step of a case, in its own processes."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={case.processes}"]
    words += ["-m", "benchmarks.processes", "--inside", "--preset", arguments.preset]
    words += ["--size", str(arguments.size), "--levels", str(arguments.levels)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(case.threads), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{case} ended with {done.returncode}; see its output above.")
    seconds: float = json.loads(done.stdout.splitlines()[-1])
    return seconds


def rows_of(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per case."""
    rounds = [[start(case, arguments) for case in CASES] for _ in range(arguments.repetitions)]
    timings = [Timing(seconds) for seconds in zip(*rounds, strict=True)]
    first = timings[0].median
    return [
        {
            "processes": case.processes, "threads each": case.threads, "samples each": SAMPLES // case.processes,
            "s/step": timing.median, "min s": timing.low, "max s": timing.high,
            "samples/s": SAMPLES / timing.median, "times faster": first / timing.median,
        }
        for case, timing in zip(CASES, timings, strict=True)
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Two DDP processes on CPU against one.")
    parser.add_argument("--preset", default="base")
    parser.add_argument("--size", type=int, default=96, help="edge of a volume, voxels")
    parser.add_argument("--levels", type=int, default=2)
    parser.add_argument("--inside", action="store_true", help="run as a process of torchrun and print its seconds")
    add_report_options(parser, repetitions=3)
    options = parser.parse_args(arguments)
    if options.inside:
        seconds = run_process(options.preset, options.size, options.levels)
        if int(os.environ["RANK"]) == 0:
            print(json.dumps(seconds))
        return
    title = f"Steps of {SAMPLES} samples, {options.preset}, {options.levels} levels"
    report({title: rows_of(options)}, options.json, settings=vars(options))


if __name__ == "__main__":
    main()
