"""Memory and time of one pre-training step with settings that save memory: `python -m benchmarks.step_memory`.

A step is one sample of the default levels (1 + 4 + 16 volumes of 96^3), random voxels and masks, in fp32 with AdamW,
without a data path. Every case has its own process, as a process's peak never decreases. It takes `--repetitions` steps
after a first one, in which AdamW creates its state; the peak is that of the whole process, with Python, PyTorch,
weights, gradients and AdamW's state (`ru_maxrss`). Cases run one after the other, since all of them at once would not
fit a machine with little memory. On a shared machine, CPU seconds of all threads (with OMP_WAIT_POLICY=passive,
GOMP_SPINCOUNT=0) compare better than wall-clock time.

What a pass keeps for the backward pass is also counted, by hooks on autograd's saved tensors, for one volume: the
dense form of all 21 volumes at once does not fit every machine, and is a multiple of it.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.encoder import kept_bytes
from benchmarks.own_process import GIB, numbers_of, peak, timed
from benchmarks.pretraining import FORMS, Settings, Training, make_batch, make_network
from benchmarks.report import add_report_options, report
from mim_components.tokens import num_visible_tokens


class Case(NamedTuple):
    """One row: form of the encoder, volumes per pass (0 = all at once), whether activations are recomputed."""

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
    Case("dense", 1, False),
]


def settings_of(case: Case, preset: str, size: int, levels: int) -> Settings:
    return Settings(preset, size, levels, form=case.form, limit=case.limit, checkpoint=case.checkpoint)


def run_case(case: Case, preset: str, size: int, levels: int, steps: int) -> dict[str, float]:
    """Median wall-clock and CPU seconds of a step, and peak memory of this process in GiB."""
    training = Training(settings_of(case, preset, size, levels))
    training()
    seconds, cpu_seconds = zip(*(timed(training) for _ in range(steps)), strict=True)
    return {"seconds": statistics.median(seconds), "cpu": statistics.median(cpu_seconds), "peak": peak()}


def kept_by_volume(form: str, checkpoint: bool, preset: str, size: int) -> int:
    """Bytes that one volume keeps for the backward pass."""
    settings = settings_of(Case(form, 0, checkpoint), preset, size, levels=1)
    network = make_network(settings)
    tokens = math.prod(network.grid)
    visible = num_visible_tokens(tokens, settings.mask_ratio)
    batch = make_batch(settings, tokens, visible)
    images, masked = [batch["image_level1"][0]], [batch["masked_level1"][0]]
    return kept_bytes(lambda: network(images, masked, visible).prediction[0], network)


def in_process(case: Case, arguments: argparse.Namespace) -> dict[str, float]:
    """Run a case in its own process."""
    options: list[object] = ["--preset", arguments.preset, "--size", arguments.size, "--levels", arguments.levels]
    options += ["--repetitions", arguments.repetitions, "--case", case.form, case.limit, int(case.checkpoint)]
    return numbers_of("benchmarks.step_memory", options, case)


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
    total = sum(Settings(levels=arguments.levels).volumes)
    rows = []
    for form in FORMS:
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
    parser.add_argument("--case", nargs=3, metavar=("FORM", "LIMIT", "CHECKPOINT"), help="only this case, as JSON")
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
