"""Count the cost of operators without the target device: launches, bytes, FLOPs and waits.

Bytes are those that an operator must read and write once, ignoring caches; views cost nothing. FLOPs are those of
matrix products, convolutions and attention. A launch is one kernel; the number per operator is known for few and taken
as 1 for the others: an estimate. A wait is a copy to the host or reading a value there.
"""

from __future__ import annotations

import bisect
import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

VIEWS = set(
    "view _unsafe_view reshape permute transpose t expand slice select split split_with_sizes unsqueeze squeeze detach "
    "alias unbind as_strided unflatten flatten narrow _reshape_alias lift_fresh diagonal unfold "
    "empty empty_like new_empty empty_strided".split()
)
FILLS = set("zeros zeros_like full new_zeros ones full_like fill_ zero_ new_full ones_like arange".split())
SEVERAL = {"sort": 8, "argsort": 8, "native_layer_norm_backward": 3, "_scaled_dot_product_flash_attention_backward": 3}
WAITS = {"_local_scalar_dense", "nonzero", "equal"}
TENSORS_OF_A_LAUNCH = 60  # for an operator on a list of tensors
OTHER = "the rest: masks, stage outputs, gradients, clipping"


@dataclass
class Cost:
    """Cost of some operators."""

    launches: int = 0
    bytes: int = 0
    flops: int = 0
    waits: int = 0

    def __add__(self, other: Cost) -> Cost:
        """Sum of two costs."""
        return Cost(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


class CostCounter(TorchDispatchMode):
    """Costs of all operators within, by part; those of a backward pass count for the part they differentiate.

    Args:
        device: operators that write elsewhere do not count. None = all count.

    Attributes:
        parts: costs by the name of the part.
    """

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        self.device = device
        self.parts: dict[str, Cost] = defaultdict(Cost)
        self._part = OTHER
        self._marks = [(-1, OTHER)]  # autograd's number of the first node of a part

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Operators within count for this part."""
        before = self._part
        self._enter(name)
        yield
        self._enter(before)

    def watch(self, name: str, module: nn.Module) -> None:
        """Make the forward pass of a module and its backward pass a part."""
        forward = module.forward

        def watched(*args: Any, **named: Any) -> Any:
            with self.part(name):
                return forward(*args, **named)

        module.forward = watched  # type: ignore[method-assign]

    def _enter(self, name: str) -> None:
        self._part = name
        self._marks.append((torch.autograd._get_sequence_nr(), name))

    def _where(self) -> str:
        node = torch._C._current_autograd_node()
        if node is None or "Accumulate" in node.name():
            return self._part
        place = bisect.bisect_right([number for number, _ in self._marks], node._sequence_nr()) - 1
        return self._marks[max(place, 0)][1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count it."""
        out = func(*args, **(kwargs or {}))
        self.parts[self._where()] += self.cost(func, args, kwargs or {}, out)
        return out

    def cost(self, func: Any, args: Any, kwargs: Any, out: Any) -> Cost:
        """Cost of one call."""
        name = func.overloadpacket.__name__
        inputs = {id(each): each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        outputs = [each for each in tree_leaves(out) if isinstance(each, Tensor)]
        here = [self._is_here(each) for each in (*inputs.values(), *outputs)]
        if not any(here):
            return Cost()
        if name in WAITS or (outputs and not any(self._is_here(each) for each in outputs)):
            return Cost(waits=1)
        if name in VIEWS or not (outputs or name.endswith("_")):
            return Cost()
        launches = SEVERAL.get(name, 1)
        if name.startswith(("_foreach", "_fused")):
            launches = math.ceil(len(args[0]) / TENSORS_OF_A_LAUNCH)
        if name == "convolution_backward":
            launches = len(outputs)
        return Cost(launches, _bytes_of(name, args, inputs, outputs), _flops_of(func, name, args, kwargs, out))

    def _is_here(self, tensor: Tensor) -> bool:
        return self.device is None or tensor.device.type == self.device


def _size(tensor: Tensor) -> int:
    """Bytes in memory; an expanded tensor is stored once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _bytes_of(name: str, args: Any, inputs: dict[int, Tensor], outputs: list[Tensor]) -> int:
    if name in FILLS:
        return sum(map(_size, outputs))
    if name in ("index_select", "gather"):
        return 2 * sum(map(_size, outputs)) + _size([*inputs.values()][-1])
    new = [each for each in outputs if id(each) not in inputs]
    written = [each for each in outputs if id(each) in inputs]  # in place: read and written
    if name.startswith("_foreach") and name.endswith("_"):
        written = args[0]
    if name.startswith("_fused_adam"):
        written = [*args[0], *args[2], *args[3]]  # weights and both moments; gradients are only read
    return sum(map(_size, inputs.values())) + sum(map(_size, new)) + sum(map(_size, written))


def _flops_of(func: Any, name: str, args: Any, kwargs: Any, out: Any) -> int:
    if name == "convolution_backward":  # PyTorch's counter is wrong for groups
        grad, _, weight = args[:3]
        return 2 * grad.numel() * math.prod(weight.shape[1:]) * (int(args[-1][0]) + int(args[-1][1]))
    if name == "convolution":
        return 2 * out.numel() * math.prod(args[1].shape[1:])
    count = flop_registry.get(func.overloadpacket)
    return 0 if count is None else int(count(*args, **kwargs, out_val=out))
