"""Launches, bytes, FLOPs and waits of a step on CUDA, by part, counted without a GPU: `python -m benchmarks.step_cost`.

A whole pre-training step on one sample (bfloat16 autocast, AdamW, clipping) and a fine-tuning step on one
crop run on fake CUDA tensors, which have shapes but no values (`benchmarks.fake_cuda`; a C++ compiler and ninja are
required). See `benchmarks.cost_counter` for what is counted.

"As it was" is the step before two changes: one convolution with a group for every channel of every block in the weight
gradient of the depth-wise convolutions, and unfused AdamW. Attention uses the flash kernel with heads
padded to a multiple of 8, as on CUDA.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.cost_counter import OTHER, Cost, CostCounter
from benchmarks.pretraining import Settings, Training
from benchmarks.report import ROOT, add_report_options, report
from mim_components.engines.nonfinite import NonFiniteGuard
from mim_components.networks import depthwise, hybrid, segmentation_network
from mim_components.networks.hybrid import HybridEncoder
from mim_components.optimizers import finetune_groups

DEVICE = "cuda:0"
CLASSES = 14
OPTIMIZER = "AdamW"
DEPTHWISE = "depth-wise convolutions"


def flash_attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **how: Any) -> Tensor:
    """`scaled_dot_product_attention` as CUDA runs it under autocast."""
    size = query.shape[-1]
    scale = how.get("scale") or size**-0.5
    padded = [F.pad(each.to(torch.bfloat16), (0, -size % 8)) for each in (query, key, value)]
    out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(*padded, 0.0, False, False, scale=scale)[0]
    return out[..., :size]


def watch_pretraining(counter: CostCounter, training: Training) -> None:
    """Name the parts of a step."""
    network = training.network
    encoder = network.encoder
    if isinstance(encoder, HybridEncoder):
        for stage in encoder.stages:
            for block in stage:
                counter.watch("convolution blocks", block)
        for embedding in encoder.embeddings:
            counter.watch("patch embeddings", embedding)
        for block in encoder.blocks:
            counter.watch("encoder's transformer", block)
    else:
        counter.watch("encoder's transformer", encoder)
    counter.watch("decoder", network.decoder)
    for head in (network.prediction_head, *network.alignment_heads):
        counter.watch("heads", head)
    counter.watch("losses", training.engine.loss_function)
    watch_optimizer(counter, training.engine.optimizer)


def watch_optimizer(counter: CostCounter, optimizer: torch.optim.Optimizer) -> None:
    """Make an optimizer's step a part."""
    step = optimizer.step

    def watched(*args: Any, **named: Any) -> Any:
        with counter.part(OPTIMIZER):
            return step(*args, **named)

    optimizer.step = watched  # type: ignore[method-assign]


def count_pretraining(settings: Settings, as_it_was: bool = False) -> dict[str, Cost]:
    """Costs of a step by part; within `FakeTensorMode`, on fake CUDA."""
    counter = CostCounter("cuda")
    apply = hybrid.depthwise

    def named(*args: Any) -> Tensor:
        with counter.part(DEPTHWISE):
            return apply(*args)

    def finite(*values: Tensor) -> bool:  # a fake tensor has no value: the one planned wait
        counter.parts[OTHER] += Cost(waits=1)
        return True

    training = Training(settings)
    if as_it_was:
        training.engine.optimizer = torch.optim.AdamW(training.engine.optimizer.param_groups, lr=1e-4, fused=False)
    watch_pretraining(counter, training)
    with (
        patch.object(F, "scaled_dot_product_attention", flash_attention),
        patch.object(hybrid, "depthwise", named),
        patch.object(NonFiniteGuard, "all_finite", staticmethod(finite)),
        patch.object(depthwise, "_weight_gradient", whole_product if as_it_was else depthwise._weight_gradient),
    ):
        training()  # AdamW creates its state
        counter.parts.clear()
        with counter:
            training()
    return counter.parts


def whole_product(x: Tensor, grad: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    """The former weight gradient: one convolution with a group for every channel of every block."""
    with patch.object(depthwise, "_CPU_BLOCKS", len(rows)):
        return depthwise._products_of_blocks(x, grad, weight, rows)


def count_fine_tuning(preset: str, size: int, last: bool) -> tuple[Cost, Cost]:
    """Cost of a forward and backward pass of one crop, and of its copies that only change layout or type.

    Args:
        preset: preset of the network.
        size: edge of the crop, voxels.
        last: whether weights and crop are in channels-last layout.
    """
    counter, copies = CostCounter("cuda"), Copies("cuda")
    layout = torch.channels_last_3d if last else torch.contiguous_format
    network = segmentation_network("hybrid_swin_unetr", 1, CLASSES, (size,) * 3, preset).to(
        DEVICE, memory_format=layout
    )
    optimizer = torch.optim.AdamW(finetune_groups(network, 1e-5, 1e-4), lr=1e-4, fused=True)
    image = torch.rand(1, 1, *(size,) * 3, device=DEVICE).contiguous(memory_format=layout)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            out = network(image)
        out.float().square().mean().backward()
        optimizer.step()

    with patch.object(F, "scaled_dot_product_attention", flash_attention):
        step()
        with counter, copies:
            step()
    return sum(counter.parts.values(), Cost()), sum(copies.parts.values(), Cost())


class Copies(CostCounter):
    """Cost of the copies alone."""

    def cost(self, func: Any, args: Any, kwargs: Any, out: Any) -> Cost:
        """Cost of one call."""
        is_copy = func.overloadpacket.__name__ in ("clone", "_to_copy", "copy_", "contiguous")
        return super().cost(func, args, kwargs, out) if is_copy else Cost()


def row(cost: Cost, total: Cost | None = None, **case: Any) -> dict[str, Any]:
    """One row of a table."""
    share = {} if total is None else {"share of bytes %": 100 * cost.bytes / total.bytes}
    return {**case, "launches": cost.launches, "GB": cost.bytes / 1e9, **share, "TFLOP": cost.flops / 1e12,
            "waits": cost.waits}  # fmt: skip


def tables(preset: str, size: int, levels: int) -> dict[str, list[dict[str, Any]]]:
    """All tables."""
    sparse = Settings(preset, size, levels, device=DEVICE, amp=True)
    cases: dict[str, Callable[[], dict[str, Cost]]] = {
        "sparse, as it was": lambda: count_pretraining(sparse, as_it_was=True),
        "sparse": lambda: count_pretraining(sparse),
        "dense": lambda: count_pretraining(Settings(preset, size, levels, form="dense", device=DEVICE, amp=True)),
        "sparse, 4 volumes per pass": lambda: count_pretraining(
            Settings(preset, size, levels, limit=4, device=DEVICE, amp=True)
        ),
        "sparse, activations recomputed": lambda: count_pretraining(
            Settings(preset, size, levels, checkpoint=True, device=DEVICE, amp=True)
        ),
    }
    counted = {name: _fake(case) for name, case in cases.items()}
    total = {name: sum(parts.values(), Cost()) for name, parts in counted.items()}
    largest = sorted(counted["sparse"].items(), key=lambda part: -part[1].bytes)
    fine = {name: _fake(lambda last=last: count_fine_tuning(preset, size, last))  # type: ignore[misc]
            for name, last in (("as it is", False), ("channels last", True))}  # fmt: skip
    return {
        "Pre-training, one sample": [row(cost, step=name) for name, cost in total.items()],
        "Parts of the sparse step, forward and backward": [
            row(cost, total["sparse"], part=name) for name, cost in largest if cost != Cost()
        ],
        "Fine-tuning of hybrid_swin_unetr, one crop": [
            {**row(cost, layout=name), "GB of copies": copies.bytes / 1e9} for name, (cost, copies) in fine.items()
        ],
    }


def _fake(case: Callable[[], Any]) -> Any:
    from mim_components import tokens

    tokens._make_sincos.cache_clear()
    with FakeTensorMode():
        return case()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="What a step costs on CUDA, counted without a GPU, as Markdown.")
    parser.add_argument("--preset", default="base")
    parser.add_argument("--size", type=int, default=96, help="edge of a volume, voxels")
    parser.add_argument("--levels", type=int, default=3)
    add_report_options(parser)
    options = parser.parse_args(arguments)
    settings = {name: getattr(options, name) for name in ("preset", "size", "levels")}
    report(tables(**settings), options.json, settings=settings)


if __name__ == "__main__":
    if torch.cuda.amp.common.amp_definitely_not_available():  # this process has no fake CUDA
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.fake_cuda", "benchmarks.step_cost", *sys.argv[1:]]
        sys.exit(subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode)
    main()
