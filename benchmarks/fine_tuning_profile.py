"""Where the time of a fine-tuning step goes; part of `benchmarks.fine_tuning`.

Every operator's own time, as PyTorch's profiler sees it, counts once for the part of the network that it belongs to,
and once for its kind. An operator of the backward pass belongs to the part whose forward pass asked for it:
autograd gives both the same sequence number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from mim_components.networks import HybridSwinUNETR

PART = "part: "
OTHER = "other"
OPTIMIZER = "clipping, AdamW"
COPIES = "copies of activations, padding, concatenation"
# the first that fits the operator or one that it is inside of
KINDS = {
    "depth-wise convolution": "_depthwise",
    "norm": "_normalize|layer_?norm|batch_?norm|instance_?norm",
    "attention": "scaled_dot_product|scaleddotproduct",
    "convolution": "conv",
    "linear layer": "addmm|::mm|bmm|linear|matmul",
    "activation, softmax": "relu|gelu|softmax",
}


def parts_of(network: HybridSwinUNETR, loss: nn.Module) -> dict[str, list[nn.Module]]:
    """Modules whose forward calls make up a step, by the name of their part."""
    encoder = network.encoder
    parts: dict[str, list[nn.Module]] = {}
    for number, (embedding, blocks) in enumerate(zip(encoder.embeddings, encoder.stages, strict=False), start=1):
        parts[f"encoder, stage {number} (1/{2**number})"] = [embedding, *blocks.children()]
    last = len(encoder.embeddings)
    parts[f"encoder, transformer (1/{2**last})"] = [encoder.embeddings[-1], *encoder.blocks]
    for number, skip in enumerate(network.skips):
        parts[f"decoder, skip connection (1/{2**number})"] = [skip]
    parts[f"decoder, deepest maps (1/{2 ** (last + 1)})"] = [network.down, network.bottleneck]
    for number, up in enumerate(network.ups):
        parts[f"decoder, up to 1/{2 ** (last - number)}"] = [up]
    return parts | {"decoder, logits": [network.out], "loss": [loss]}


def watch(parts: dict[str, list[nn.Module]]) -> None:
    """Make the forward calls of parts visible to the profiler."""
    for name, modules in parts.items():
        for module in modules:
            scopes: list[record_function] = []

            def begin(*_: Any, name: str = name, scopes: list[record_function] = scopes) -> None:
                scopes.append(record_function(PART + name))
                scopes[-1].__enter__()

            def end(*_: Any, scopes: list[record_function] = scopes) -> None:
                scopes.pop().__exit__(None, None, None)

            module.register_forward_pre_hook(begin)
            module.register_forward_hook(end)


def profile_tables(
    network: nn.Module, loss: nn.Module, size: Sequence[int], classes: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows by part and by kind of operator, of the second step with one volume.

    Args:
        network: `HybridSwinUNETR`; stays watched.
        loss: of logits against classes.
        size: of the volume, voxels.
        classes: of the label.
    """
    assert isinstance(network, HybridSwinUNETR)
    parts = parts_of(network, loss)
    watch(parts)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    image, label = torch.rand(1, 1, *size), torch.randint(classes, (1, 1, *size))

    def step() -> None:
        optimizer.zero_grad()
        loss(network(image), label).backward()
        with record_function(PART + OPTIMIZER):
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()

    step()
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        step()
    events = list(profiler.events() or ())
    return part_rows(events, [*parts, OPTIMIZER, OTHER]), kind_rows(events)


def part_rows(events: list[Any], names: list[str]) -> list[dict[str, Any]]:
    """Milliseconds of every part, forward and backward."""
    asked = {}  # part by sequence number: the last operator that has a number is the one that autograd remembers
    for event in events:
        part = _named_part(event)
        if part and event.sequence_nr >= 0:
            asked[event.sequence_nr] = part
    times = {name: [0.0, 0.0] for name in names}
    for event in events:
        part, backward = _named_part(event), False
        if part is None:
            root = list(_chain(event))[-1]
            part, backward = asked.get(root.sequence_nr, OTHER), "evaluate_function" in root.name
        times[part][backward] += event.self_cpu_time_total / 1e3
    total = sum(map(sum, times.values()))
    return [
        {"part": name, "forward ms": forward, "backward ms": backward, "share %": 100 * (forward + backward) / total}
        for name, (forward, backward) in times.items()
    ]


def kind_rows(events: Iterable[Any]) -> list[dict[str, Any]]:
    """Milliseconds of every kind, the longest first."""
    times: dict[str, float] = {}
    for event in events:
        kind = kind_of([each.name for each in _chain(event)])
        times[kind] = times.get(kind, 0.0) + event.self_cpu_time_total / 1e3
    total = sum(times.values())
    rows = [{"kind": kind, "ms": time, "share %": 100 * time / total} for kind, time in times.items()]
    return sorted(rows, key=lambda row: -row["ms"])


def kind_of(names: list[str]) -> str:
    """Kind of an operator, by its name and those of the operators around it, the innermost first."""
    if names[0] in ("aten::copy_", "aten::cat", "aten::constant_pad_nd"):
        return COPIES
    for kind, pattern in KINDS.items():
        if any(re.search(pattern, name, re.IGNORECASE) for name in names if not name.startswith(PART)):
            return kind
    return "element-wise and other"


def _chain(event: Any) -> Iterator[Any]:
    """An event and those around it, the innermost first."""
    while event is not None:
        yield event
        event = event.cpu_parent


def _named_part(event: Any) -> str | None:
    """The part that an event happens inside of."""
    names = (each.name for each in _chain(event))
    return next((name.removeprefix(PART) for name in names if name.startswith(PART)), None)
