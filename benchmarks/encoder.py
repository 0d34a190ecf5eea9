"""Hybrid encoder on masked volumes, whole grid against visible tokens only: `python -m benchmarks.encoder`.

Both forms have the same weights and give the same tokens. Time is that of a forward pass and a backward pass from the
sum of squared tokens. "kept" is what the forward pass keeps for the backward pass: tensors that share a storage count
once, parameters do not count.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import add_report_options, measure, report
from mim_components.networks import PRESETS, HybridEncoder
from mim_components.tokens import num_visible_tokens, token_grid

FORMS = {"whole grid": False, "visible only": True}


def masked_volumes(batch: int, size: int, patch_size: int, mask_ratio: float) -> tuple[Tensor, Tensor, int]:
    """Random volumes `(B, 1, size, size, size)`, masks `(B, N)` and the number of visible tokens."""
    grid = token_grid((size, size, size), patch_size)
    num_tokens = grid[0] * grid[1] * grid[2]
    visible = num_visible_tokens(num_tokens, mask_ratio)
    masked = torch.rand(batch, num_tokens).argsort(1) >= visible
    return torch.rand(batch, 1, size, size, size), masked, visible


def kept_bytes(forward: Callable[[], Tensor], network: torch.nn.Module) -> int:
    """Bytes that a forward pass keeps for the backward pass, without parameters."""
    storages = {}
    parameters = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    del output
    return sum(size for pointer, size in storages.items() if pointer not in parameters)


def compare(preset: str, batch: int, mask_ratio: float, size: int, repetitions: int) -> list[dict[str, Any]]:
    """One row per form: milliseconds, GiB kept, and ratios to the whole grid.

    Args:
        preset: name of the preset.
        batch: number of volumes.
        mask_ratio: share of masked tokens.
        size: edge of a volume, voxels.
        repetitions: timed rounds.
    """
    network = HybridEncoder(1, preset)
    image, masked, visible = masked_volumes(batch, size, network.patch_size, mask_ratio)

    def forward(sparse: bool) -> Tensor:
        network.sparse = sparse
        tokens = network(image, masked=masked, num_visible=visible)
        assert isinstance(tokens, Tensor)
        return tokens

    def step(sparse: bool) -> None:
        forward(sparse).square().sum().backward()

    times = measure(
        {name: partial(step, sparse) for name, sparse in FORMS.items()}, repetitions, before=network.zero_grad
    )
    kept = {name: kept_bytes(partial(forward, sparse), network) for name, sparse in FORMS.items()}
    first = next(iter(FORMS))
    return [
        {
            "preset": preset, "volumes": batch, "mask ratio": mask_ratio, "form": name, **times[name].milliseconds(),
            "times faster": times[first].median / times[name].median, "CPU ms": times[name].cpu_median * 1e3,
            "CPU times faster": times[first].cpu_median / times[name].cpu_median,
            "kept GiB": kept[name] / 2**30, "share kept": kept[name] / kept[first],
        }
        for name in FORMS
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Hybrid encoder, whole grid against visible tokens only.")
    parser.add_argument("--preset", choices=list(PRESETS), nargs="+", default=["base"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="volumes")
    parser.add_argument("--mask_ratio", type=float, nargs="+", default=[0.6])
    parser.add_argument("--size", type=int, default=96, help="edge of a volume, voxels")
    parser.add_argument("--seed", type=int, default=0)
    add_report_options(parser)
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    rows = [
        row
        for preset in options.preset
        for batch in options.batch
        for ratio in options.mask_ratio
        for row in compare(preset, batch, ratio, options.size, options.repetitions)
    ]
    report({"Hybrid encoder, forward + backward": rows}, options.json, settings=vars(options))


if __name__ == "__main__":
    main()
