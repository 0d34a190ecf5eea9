"""Memory and time of one pre-training step, for what can be set to need less: `python -m benchmarks.step_memory`.

A step is one sample of the default levels (1 + 4 + 16 volumes of 96^3), random voxels and masks, in fp32 with AdamW: no
data path is involved. Every case has a process of its own, as the peak of a process never goes down. It takes
`--repetitions` steps after a first one, at which AdamW makes its state; the peak is that of the whole process, with
Python, PyTorch, weights, gradients and AdamW's state in it, read from the system (`ru_maxrss`). Cases run one after
the other: all in turn and round after round would not fit a machine with little memory. On a machine that others use,
too, CPU seconds of all threads (with OMP_WAIT_POLICY=passive, GOMP_SPINCOUNT=0) compare better than those of the clock.

What a pass keeps for the backward pass is counted as well, by hooks on autograd's saved tensors, for one volume: the
dense form of all 21 volumes at once does not fit every machine, and is its multiple.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter, process_time
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from benchmarks.encoder import kept_bytes
from benchmarks.report import add_report_options, report
from mim_components.losses import MiMLoss
from mim_components.networks import MiM, for_training
from mim_components.networks.hybrid import HybridEncoder
from mim_components.optimizer import weight_decay_groups
from mim_components.pretrain_step import PretrainStep

CHILDREN = 4
GIB = 2**30


class Case(NamedTuple):
    """One row: form of the encoder, volumes per pass (0 = all at once), activations recomputed."""

    form: str
    limit: int
    checkpoint: bool


# the dense form of all volumes keeps about 20 GiB
CASES = [
    Case("sparse", 0, False),
    Case("sparse", 4, False),
    Case("sparse", 1, False),
    Case("sparse", 0, True),
    Case("sparse", 4, True),
    Case("sparse", 1, True),
    Case("dense", 4, False),
]


def make_network(preset: str, size: int, form: str, num_levels: int, checkpoint: bool) -> MiM:
    torch.manual_seed(0)
    network = MiM(1, (size,) * 3, preset, num_levels=num_levels)
    assert isinstance(network.encoder, HybridEncoder)
    network.encoder.sparse = form == "sparse"
    return for_training(network, "cpu", checkpoint_activations=checkpoint)


def make_batch(volumes: list[int], size: int, tokens: int, visible: int) -> dict[str, Any]:
    """One sample with `volumes[l]` volumes at level l + 1, as the data loader collates it."""
    batch: dict[str, Any] = {"name": ["random"]}
    for level, count in enumerate(volumes, start=1):
        batch[f"image_level{level}"] = torch.rand(1, count, 1, size, size, size)
        batch[f"masked_level{level}"] = torch.rand(1, count, tokens).argsort(-1) >= visible
        batch[f"parent_token_level{level}"] = torch.randint(tokens, (1, count))
        batch[f"parent_overlap_level{level}"] = torch.zeros(1, count, tokens, dtype=torch.bool)
    return batch


def run_case(case: Case, preset: str, size: int, levels: int, steps: int) -> dict[str, float]:
    """Seconds of a step, by the clock and of all threads, medians, and peak of this process in GiB."""
    network = make_network(preset, size, case.form, levels, case.checkpoint)
    tokens = network.grid[0] ** 3
    visible = int(tokens * 0.4)
    batch = make_batch([CHILDREN**level for level in range(levels)], size, tokens, visible)
    engine = SimpleNamespace(
        network=network,
        optimizer=torch.optim.AdamW(weight_decay_groups(network, 0.01), lr=1e-4, betas=(0.9, 0.95)),
        loss_function=MiMLoss(network.patch_size, (1.0,) * levels, (0.1,) * (levels - 1)),
        state=SimpleNamespace(device=torch.device("cpu"), iteration=1),
    )
    step = PretrainStep(levels, 1, visible, max_norm=1.0, max_volumes_per_pass=case.limit or None)
    seconds, cpu_seconds = [], []
    for _ in range(steps + 1):
        start, cpu_start = perf_counter(), process_time()
        step(engine, [batch])
        seconds.append(perf_counter() - start)
        cpu_seconds.append(process_time() - cpu_start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
    return {"seconds": statistics.median(seconds[1:]), "cpu": statistics.median(cpu_seconds[1:]), "peak": peak}


def kept_by_volume(form: str, checkpoint: bool, preset: str, size: int) -> int:
    """Bytes that one volume keeps for the backward pass."""
    network = make_network(preset, size, form, 1, checkpoint)
    tokens = network.grid[0] ** 3
    batch = make_batch([1], size, tokens, int(tokens * 0.4))
    images, masked = [batch["image_level1"][0]], [batch["masked_level1"][0]]
    return kept_bytes(lambda: network(images, masked, int(tokens * 0.4)).prediction[0], network)


def in_process(case: Case, arguments: argparse.Namespace) -> dict[str, float]:
    """Run a case in a process of its own."""
    options = ["--preset", arguments.preset, "--size", arguments.size, "--levels", arguments.levels]
    options += ["--repetitions", arguments.repetitions, "--case", case.form, case.limit, int(case.checkpoint)]
    command = [sys.executable, "-m", "benchmarks.step_memory", *map(str, options)]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"the process of {case} ended with {done.returncode}; -9: the machine has too little memory."
        )
    numbers: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return numbers


def step_rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for case in CASES:
        numbers = in_process(case, arguments)
        row = {
            "encoder": case.form,
            "max_volumes_per_pass": str(case.limit or "null"),
            "checkpoint_activations": str(case.checkpoint).lower(),
            "peak GiB": numbers["peak"],
            "s/sample": numbers["seconds"],
            "CPU s/sample": numbers["cpu"],
        }
        print(row, file=sys.stderr, flush=True)
        rows.append(row)
    first = rows[0]["CPU s/sample"]
    return [{**row, "CPU time, first row = 1": row["CPU s/sample"] / first} for row in rows]


def activation_rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    total = sum(CHILDREN**level for level in range(arguments.levels))
    rows = []
    for form in ("dense", "sparse"):
        for checkpoint in (False, True):
            size = kept_by_volume(form, checkpoint, arguments.preset, arguments.size)
            rows.append({
                "encoder": form,
                "checkpoint_activations": str(checkpoint).lower(),
                "one volume, MiB": size / 2**20,
                f"{total} volumes, GiB": total * size / GIB,
            })  # fmt: skip
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Memory and time of a pre-training step, as Markdown.")
    parser.add_argument("--preset", default="base")
    parser.add_argument("--size", type=int, default=96, help="edge of a volume, voxels")
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--case", nargs=3, metavar=("FORM", "LIMIT", "CHECKPOINT"), help="this one only, as JSON")
    add_report_options(parser, repetitions=1)
    options = parser.parse_args(arguments)
    if options.case:
        case = Case(options.case[0], int(options.case[1]), options.case[2] == "1")
        print(json.dumps(run_case(case, options.preset, options.size, options.levels, options.repetitions)))
        return
    tables = {
        "One step, one sample, fp32; peak of the whole process": step_rows(options),
        "Activations kept for the backward pass": activation_rows(options),
    }
    settings = {name: getattr(options, name) for name in ("preset", "size", "levels", "repetitions")}
    report(tables, options.json, settings=settings)


if __name__ == "__main__":
    main()
