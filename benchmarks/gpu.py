"""Everything that a first run on a GPU should answer, in the order of the questions: `python -m benchmarks.gpu`.

`base`, three levels, bfloat16 autocast and AdamW, as in training; `--device cpu` does the same on a CPU, as far as
possible. `--part` runs one of the parts:

1. `depthwise`: weight gradient of the depth-wise convolutions of visible tokens, with one group per channel, as on
   other devices, against one group per channel and block, as on the CPU; and the peaks of the card: a large bfloat16
   matrix product and a large copy.
2. `compile`: steps of one sample, dense, sparse and compiled, on random voxels on the device. FLOPs are those
   of `benchmarks.network_cost` for the form that runs, three times a forward pass; bytes (eager forms only) are those
   of `benchmarks.cost_counter`.
3. `batch`: steps of several samples, and with the two settings that save memory: samples/s, peak memory, and hours of
   the paper's schedule, 45,000 steps of 12 samples, on one such card.
4. `training`: from the cache of a synthetic CT, as `bundles/mim_pretrain/configs/train.json` reads it; the ten
   kernels that take the most time of a sparse step.
5. `networks`: a fine-tuning step and windows of inference, ours against MONAI's networks.

Every part reports its failures, and the file of `--json` is written after each row. After a CUDA error
nothing works in the same process: `python -m benchmarks --device cuda` runs each part in its own. Cases
run one after the other, not in turn: two networks would share the measured memory.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest.mock import patch

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.cost_counter import Cost, CostCounter
from benchmarks.fine_tuning import CLASSES, NETWORKS, bundle_loss, make_network
from benchmarks.network_cost import FLOPS_PER_MAC, count_macs
from benchmarks.pretraining import FORMS, Settings, Training
from benchmarks.report import add_report_options, content_of, measure, report, size_option, synchronize, write_json
from benchmarks.step_parts import LEVELS, pretrain_config, write_ct
from mim_components.networks import MiM, depthwise, get_preset
from mim_components.networks.hybrid import KERNEL_SIZE, neighbour_rows
from mim_components.tokens import num_visible_tokens

GIB = 2**30
BACKWARD = 2  # cost of a backward pass in forward passes
PRODUCTS = 10  # matrix products timed together
LAST = ", channels last"
STEPS, SAMPLES = 45_000, 12  # the paper's schedule

Rows = list[dict[str, Any]]
Tables = dict[str, Rows]


def matmul_peak(device: str, size: int, repetitions: int) -> float:
    """FLOP/s of a square bfloat16 matrix product, fastest repetition."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))

    def products() -> None:
        for _ in range(PRODUCTS):
            torch.mm(a, b)

    return FLOPS_PER_MAC * size**3 * PRODUCTS / measure({"product": products}, repetitions)["product"].low


def copy_peak(device: str, size: int, repetitions: int) -> float:
    """Bytes/s that a copy of `size`^2 4-byte numbers reads and writes, fastest repetition."""
    source = torch.zeros(size, size, device=device)
    target = torch.empty_like(source)
    low = measure({"copy": lambda: target.copy_(source)}, repetitions)["copy"].low
    return 2 * source.numel() * source.element_size() / low


def failure(error: Exception) -> str:
    """An error as text for a table cell."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:120]}".replace("|", "/")


def attempt(make: Callable[[], dict[str, Any]], **case: Any) -> dict[str, Any]:
    """A row, or its failure."""
    try:
        row = {**case, **make(), "failed": ""}
    except Exception as error:  # the other rows can still be measured
        row = {**case, "failed": failure(error)}
    print(row, file=sys.stderr, flush=True)
    return row


def same_columns(rows: Rows) -> Rows:
    """Rows with empty cells for failures, which are the last column."""
    columns = [name for name in dict.fromkeys(name for row in rows for name in row) if name != "failed"]
    return [{**{name: row.get(name) for name in columns}, "failed": row["failed"]} for row in rows]


def depthwise_row(settings: Settings, stage: int, repetitions: int) -> dict[str, Any]:
    """Weight gradient of one depth-wise convolution of a stage, in both forms, on the blocks of one sample."""
    free(settings.device)
    sizes = get_preset(settings.preset).hybrid
    channels, edge = sizes.channels[stage], sizes.patch_size // 2 ** (stage + 1)
    grid = (settings.size // sizes.patch_size,) * 3
    tokens, volumes = grid[0] ** 3, sum(settings.volumes)
    visible = num_visible_tokens(tokens, settings.mask_ratio)
    ids = torch.rand(volumes, tokens, device=settings.device).argsort(1)[:, :visible].sort(1).values
    rows = neighbour_rows(ids, grid, edge, KERNEL_SIZE // 2)
    shape = volumes, visible, edge, edge, edge, channels
    x, grad = (torch.randn(shape, device=settings.device, dtype=torch.bfloat16) for _ in range(2))
    weight = torch.randn(channels, 1, *(KERNEL_SIZE,) * 3, device=settings.device)
    forms = {"C groups": depthwise._weight_gradient, "C groups per block": depthwise._products_of_blocks}
    row: dict[str, Any] = {"groups per block": volumes * visible * channels}
    with patch.object(depthwise, "_CPU_BLOCKS", len(rows)):  # one convolution, as formerly on every device
        for name, form in forms.items():
            try:
                timing = measure({name: lambda f=form: f(x, grad, weight, rows)}, repetitions)  # type: ignore[misc]
                row[f"{name}, ms"] = timing[name].median * 1e3
            except RuntimeError as error:
                row[f"{name}, ms"], row["why"] = None, failure(error)
    return row


def step_flops(settings: Settings) -> float:
    """FLOPs of a forward and backward pass of the form that runs."""
    size = (settings.size,) * 3
    network = MiM(1, size, settings.preset, num_levels=settings.levels, sparse=settings.form == "sparse").to("meta")
    return (1 + BACKWARD) * FLOPS_PER_MAC * count_macs(network, settings.volumes, size, settings.mask_ratio)


def free(device: str) -> None:
    """Free the memory of the previous case and reset the peak."""
    gc.collect()
    torch.compiler.reset()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def step_bytes(training: Training, settings: Settings) -> float:
    """Bytes that the operators of a step read and write, see `benchmarks.cost_counter`; NaN if it is compiled."""
    if settings.compile:
        return math.nan
    with CostCounter(settings.device) as counter:
        training()
    return sum(counter.parts.values(), Cost()).bytes


def peaks(options: argparse.Namespace, settings: Settings) -> tuple[float, float]:
    """FLOP/s of a matrix product and bytes/s of a copy."""
    size, repetitions = options.matmul, options.repetitions
    return matmul_peak(settings.device, size, repetitions), copy_peak(settings.device, size, repetitions)


def step_row(settings: Settings, peak: tuple[float, float], repetitions: int) -> dict[str, Any]:
    """One row of a table of steps.

    Args:
        settings: settings of the step.
        peak: FLOP/s and bytes/s of the device.
        repetitions: timed steps.
    """

    def timed() -> dict[str, Any]:
        free(settings.device)
        training = Training(settings)
        seconds = measure({"step": training}, repetitions, warmup=2)["step"].median
        gib = torch.cuda.max_memory_allocated() / GIB if settings.device == "cuda" else None
        flops, moved = step_flops(settings), step_bytes(training, settings)
        return {
            "ms/step": seconds * 1e3, "samples/s": settings.samples / seconds,
            "crops/s": sum(settings.volumes) / seconds, "TFLOP/s": flops / seconds / 1e12,
            "share of matmul peak %": 100 * flops / seconds / peak[0],
            "GB/s": moved / seconds / 1e9, "share of copy peak %": 100 * moved / seconds / peak[1],
            "hours of the paper's schedule": STEPS * SAMPLES / (settings.samples / seconds) / 3600,
            "peak GiB": gib,
        }  # fmt: skip

    return attempt(
        timed, encoder=settings.form, compile=str(settings.compile).lower(), samples=settings.samples,
        max_volumes_per_pass=str(settings.limit or "null"), checkpoint_activations=str(settings.checkpoint).lower(),
    )  # fmt: skip


def compile_cases(settings: Settings, compiled: bool) -> list[Settings]:
    """The forms with one sample, and the sparse one compiled."""
    small = replace(settings, samples=1)
    return [*(replace(small, form=form) for form in FORMS), *([replace(small, compile=True)] if compiled else [])]


def batch_cases(settings: Settings, batches: Sequence[int]) -> list[Settings]:
    """Sparse steps of every batch size; then those that save memory: of the first size, and one sample at a time."""
    cases = [replace(settings, samples=samples) for samples in batches]
    one, last = cases[0], cases[-1]
    whole = sum(one.volumes) // one.samples
    cases += [replace(one, limit=8), replace(one, limit=4), replace(one, checkpoint=True)]
    return [*cases, replace(last, limit=whole)]


def top_kernels(settings: Settings, number: int = 10) -> Rows:
    """The kernels (on CPU, the operators) with the most self time in one step."""
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
    """Training from the cache; the first steps, while workers start, do not count."""
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


def network_row(name: str, settings: Settings, repetitions: int) -> dict[str, Any]:
    """A fine-tuning step of two crops with AdamW, and four windows of inference; on a CPU without autocast.

    Some processors take minutes for a bfloat16 convolution of this size.
    """
    free(settings.device)
    roi, layout = (settings.size,) * 3, torch.contiguous_format
    if name.endswith(LAST):
        name, layout = name.removesuffix(LAST), torch.channels_last_3d
    network = make_network(name, settings.preset, roi).to(settings.device, memory_format=layout)
    loss, on_cuda = bundle_loss(), settings.device == "cuda"
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=on_cuda or None)
    image = torch.rand(2, 1, *roi, device=settings.device).contiguous(memory_format=layout)
    windows, label = image.repeat(2, 1, 1, 1, 1), torch.randint(CLASSES, (2, 1, *roi), device=settings.device)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(settings.device, torch.bfloat16, enabled=on_cuda):
            logits = network(image)
        loss(logits.float(), label).backward()
        optimizer.step()

    @torch.no_grad()
    def infer() -> None:
        with torch.autocast(settings.device, torch.bfloat16, enabled=on_cuda):
            network(windows)

    trained = measure({"step": step}, repetitions, warmup=2)["step"].median
    peak = torch.cuda.max_memory_allocated() / GIB if settings.device == "cuda" else None
    network.eval()
    inferred = measure({"windows": infer}, repetitions, warmup=2)["windows"].median
    return {"ms/step": trained * 1e3, "crops/s": 2 / trained, "peak GiB": peak, "windows/s": len(windows) / inferred}


def one_by_one(title: str, rows: Iterable[dict[str, Any]], options: argparse.Namespace) -> Tables:
    """A table whose rows are saved as they come, since a case may end the process."""
    done: Rows = []
    for each in rows:
        done.append(each)
        options.keep({title: same_columns(done)})
    return {title: same_columns(done)}


def depthwise_tables(options: argparse.Namespace, settings: Settings) -> Tables:
    stages = range(len(get_preset(settings.preset).hybrid.channels) - 1)
    rows = (attempt(lambda s=stage: depthwise_row(settings, s, options.repetitions), stage=stage + 1)  # type: ignore[misc]
            for stage in stages)  # fmt: skip
    tables = one_by_one("Weight gradient of the depth-wise convolution, one sample", rows, options)
    product, copy = peaks(options, settings)
    measured = {"TFLOP/s of a matrix product": product / 1e12, "GB/s of a copy": copy / 1e9}
    return {**tables, "Peaks": [{"size": options.matmul, **measured}]}


def compile_tables(options: argparse.Namespace, settings: Settings) -> Tables:
    peak = peaks(options, settings)
    rows = (step_row(case, peak, options.repetitions) for case in compile_cases(settings, not options.eager))
    return one_by_one("Steps of one sample", rows, options)


def batch_tables(options: argparse.Namespace, settings: Settings) -> Tables:
    peak = peaks(options, settings)
    rows = (step_row(case, peak, options.repetitions) for case in batch_cases(settings, options.batch))
    return one_by_one("Steps of more samples", rows, options)


def training_tables(options: argparse.Namespace, settings: Settings) -> Tables:
    with tempfile.TemporaryDirectory() as folder:
        write_ct(Path(folder), options.ct_size)
        row = attempt(lambda: loader_row(Path(folder), options.levels, settings, options.workers, options.steps))
    tables = one_by_one("Training from the cache", [row], options)
    return {**tables, "Kernels of an eager sparse step": top_kernels(settings)}


def network_tables(options: argparse.Namespace, settings: Settings) -> Tables:
    rows = (attempt(lambda n=name: network_row(n, settings, options.repetitions), network=name)  # type: ignore[misc]
            for name in (NETWORKS[0], NETWORKS[0] + LAST, *NETWORKS[1:]))  # fmt: skip
    return one_by_one("Fine-tuning and inference", rows, options)


PARTS = {
    "depthwise": depthwise_tables,
    "compile": compile_tables,
    "batch": batch_tables,
    "training": training_tables,
    "networks": network_tables,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="What a first run on a GPU should tell.")
    parser.add_argument("--part", choices=list(PARTS), help="run only this part")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--preset", default="base")
    parser.add_argument("--size", type=int, default=96, help="edge of a volume, voxels")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 12], help="samples")
    parser.add_argument("--levels", type=size_option, nargs="+", default=LEVELS, help="native sizes, voxels: 96,96,96")
    parser.add_argument("--eager", action="store_true", help="skip compiled networks")
    parser.add_argument("--matmul", type=int, default=8192, help="edge of the matrices")
    parser.add_argument("--ct_size", type=int, nargs=3, default=(512, 512, 300), help="synthetic CT, voxels")
    parser.add_argument("--workers", type=int, default=8, help="workers of the data loader")
    parser.add_argument("--steps", type=int, default=40, help="timed steps from the cache")
    add_report_options(parser, repetitions=10)
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is available; --device cpu does the same on the CPU.")
    settings = Settings(options.preset, options.size, len(options.levels), device=options.device, amp=True)
    words: dict[str, Any] = dict(vars(options))
    tables: Tables = {}

    def keep(part: Tables) -> None:
        if options.json is not None:
            write_json(options.json, content_of(tables | part, settings=words))

    options.keep = keep
    for name in [options.part] if options.part else PARTS:
        try:
            tables |= PARTS[name](options, settings)
        except Exception as error:  # such as a broken card; earlier measurements are kept
            tables[f"Part {name}"] = [{"failed": failure(error)}]
        report(tables, options.json, settings=words)


if __name__ == "__main__":
    main()
