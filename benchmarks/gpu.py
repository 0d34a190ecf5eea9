"""Pre-training on a GPU, everything in one call: `python -m benchmarks.gpu`.

`base`, three levels, bfloat16 autocast, AdamW, as in a training; `--device cpu` goes the same way with what a CPU has.

1. Steps on random voxels that are on the device already: dense against sparse, eager against compiled, against the
   batch until the memory is full, and with the two settings that need less of it. FLOPs are those of
   `benchmarks.network_cost` for the form that runs, three times a forward pass; their share is of the fastest large
   bfloat16 matrix product that the card itself did.
2. The ten kernels that take the most time of an eager sparse step.
3. Training from the cache of a synthetic CT, as `bundles/mim_pretrain/configs/train.json` reads it.
4. Hours of the paper's schedule on one such card: 45,000 steps of 12 samples. Every step above has an optimizer step;
   with accumulation there are fewer.

Cases run one after the other, not in turn: two networks would share the memory that is measured.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.network_cost import FLOPS_PER_MAC, count_macs
from benchmarks.pretraining import FORMS, Settings, Training
from benchmarks.report import add_report_options, measure, report, size_option, synchronize
from benchmarks.step_parts import LEVELS, pretrain_config, write_ct
from mim_components.networks import MiM

GIB = 2**30
BACKWARD = 2  # forward passes that a backward pass costs
PRODUCTS = 10  # matrix products that are timed together
STEPS, SAMPLES = 45_000, 12  # the paper's schedule

Rows = list[dict[str, Any]]


def matmul_peak(device: str, size: int, repetitions: int) -> float:
    """FLOP/s of a square bfloat16 matrix product, of the fastest repetition."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))

    def products() -> None:
        for _ in range(PRODUCTS):
            torch.mm(a, b)

    return FLOPS_PER_MAC * size**3 * PRODUCTS / measure({"product": products}, repetitions)["product"].low


def step_flops(settings: Settings) -> float:
    """FLOPs of forward and backward pass, of the form that runs."""
    size = (settings.size,) * 3
    network = MiM(1, size, settings.preset, num_levels=settings.levels, sparse=settings.form == "sparse").to("meta")
    return (1 + BACKWARD) * FLOPS_PER_MAC * count_macs(network, settings.volumes, size, settings.mask_ratio)


def free(device: str) -> None:
    """Drop what a case before has left, and its peak."""
    gc.collect()
    torch.compiler.reset()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def step_row(settings: Settings, peak: float, repetitions: int) -> dict[str, Any]:
    """One row; empty cells where the memory of the device is too small.

    Args:
        settings: of the step.
        peak: FLOP/s of the device.
        repetitions: steps that are timed.
    """
    free(settings.device)
    case = {
        "encoder": settings.form, "compile": str(settings.compile).lower(), "samples": settings.samples,
        "max_volumes_per_pass": str(settings.limit or "null"),
        "checkpoint_activations": str(settings.checkpoint).lower(),
    }  # fmt: skip
    try:
        seconds: float | None = measure({"step": Training(settings)}, repetitions, warmup=2)["step"].median
    except torch.OutOfMemoryError:
        seconds = None
    flops = step_flops(settings)
    row = {
        **case,
        "ms/step": None if seconds is None else seconds * 1e3,
        "samples/s": None if seconds is None else settings.samples / seconds,
        "crops/s": None if seconds is None else sum(settings.volumes) / seconds,
        "TFLOP/s": None if seconds is None else flops / seconds / 1e12,
        "share of matmul peak %": None if seconds is None else 100 * flops / seconds / peak,
        "peak GiB": torch.cuda.max_memory_allocated() / GIB if seconds and settings.device == "cuda" else None,
    }
    print(row, file=sys.stderr, flush=True)
    return row


def step_cases(settings: Settings, batches: Sequence[int], compiled: bool) -> list[Settings]:
    """What is measured: forms and compilation for every batch, then for the first one what needs less memory."""
    cases = []
    for samples in batches:
        of_batch = replace(settings, samples=samples)
        cases += [replace(of_batch, form=form) for form in FORMS]
        cases += [replace(of_batch, compile=True)] if compiled else []
    small = replace(settings, samples=batches[0])
    return [*cases, replace(small, limit=8), replace(small, limit=4), replace(small, checkpoint=True)]


def top_kernels(settings: Settings, number: int = 10) -> Rows:
    """The kernels with the most time of their own in one step; on CPU the operators."""
    free(settings.device)
    training, on_cuda = Training(settings), settings.device == "cuda"
    for _ in range(2):
        training()
    synchronize()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with profile(activities=activities, acc_events=True) as profiler:
        training()
        synchronize()
    kind = DeviceType.CUDA if on_cuda else DeviceType.CPU
    times = {
        event.key: (event.self_device_time_total if on_cuda else event.self_cpu_time_total, event.count)
        for event in profiler.key_averages()
        if event.device_type == kind and not event.is_user_annotation
    }
    total = sum(time for time, _ in times.values())
    top = sorted(times.items(), key=lambda item: -item[1][0])[:number]
    return [
        {"kernel": f"`{name[:90]}`", "calls": calls, "ms": time / 1e3, "share %": 100 * time / total}
        for name, (time, calls) in top
    ]


def loader_row(
    folder: Path, levels: Sequence[Sequence[int]], settings: Settings, workers: int, steps: int
) -> dict[str, Any]:
    """Training from the cache; the first steps, in which workers start, do not count."""
    free(settings.device)
    training, first = Training(settings), 3
    config = pretrain_config(
        folder, levels, settings, num_workers=workers, batch_size=settings.samples,
        global_batch_size=settings.samples, max_steps=first + steps,
    )  # fmt: skip
    loader = config.get_parsed_content("train::dataloader")
    batches = iter(loader)
    for batch in islice(batches, first):
        training.step(training.engine, batch)
    synchronize()
    loader.reset_clock()
    start = perf_counter()
    for batch in batches:
        training.step(training.engine, batch)
    synchronize()
    seconds = perf_counter() - start
    return {
        "workers": workers, "samples": settings.samples,
        "samples/s": steps * settings.samples / seconds, "crops/s": steps * sum(settings.volumes) / seconds,
        "waiting for data %": 100 * loader.reset_clock() / seconds,
    }  # fmt: skip


def hours_row(name: str, samples_per_second: float) -> dict[str, Any]:
    """Hours of the paper's schedule."""
    hours = STEPS * SAMPLES / samples_per_second / 3600
    return {"at the speed of": name, "samples/s": samples_per_second, "hours on one card": hours}


def tables(options: argparse.Namespace, folder: Path) -> dict[str, Rows]:
    """All tables; `folder` is for the CT and its cache."""
    device, repetitions = options.device, options.repetitions
    settings = Settings(options.preset, options.size, len(options.levels), device=device, amp=True)
    peak = matmul_peak(device, options.matmul, repetitions)
    cases = step_cases(settings, options.batch, not options.eager)
    steps = [step_row(case, peak, repetitions) for case in cases]
    best = max((row for row in steps if row["samples/s"]), key=lambda row: row["samples/s"])
    small = replace(settings, samples=options.batch[0])
    write_ct(folder, options.ct_size)
    loaded = loader_row(folder, options.levels, small, options.workers, options.steps)
    hours = [hours_row("the fastest step", best["samples/s"])]
    hours += [hours_row("training from the cache", loaded["samples/s"])]
    return {
        "bfloat16 matrix product": [{"size": options.matmul, "TFLOP/s": peak / 1e12}],
        f"Steps, {options.preset}, bfloat16 autocast; empty: out of memory": steps,
        "Kernels of an eager sparse step": top_kernels(small),
        "Training from the cache": [loaded],
        f"The paper's schedule, {STEPS:,} steps of {SAMPLES} samples": hours,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Pre-training on a GPU.")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--preset", default="base")
    parser.add_argument("--size", type=int, default=96, help="edge of a volume, voxels")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8], help="samples")
    parser.add_argument("--levels", type=size_option, nargs="+", default=LEVELS, help="native sizes, voxels: 96,96,96")
    parser.add_argument("--eager", action="store_true", help="leave out compiled networks")
    parser.add_argument("--matmul", type=int, default=8192, help="edge of the matrices")
    parser.add_argument("--ct_size", type=int, nargs=3, default=(512, 512, 300), help="of the synthetic CT, voxels")
    parser.add_argument("--workers", type=int, default=8, help="of the data loader")
    parser.add_argument("--steps", type=int, default=40, help="from the cache, that are timed")
    add_report_options(parser, repetitions=10)
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is available; --device cpu goes the same way on the CPU.")
    with tempfile.TemporaryDirectory() as folder:
        report(tables(options, Path(folder)), options.json, settings=vars(options))


if __name__ == "__main__":
    main()
