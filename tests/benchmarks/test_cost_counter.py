"""The cost counter against numbers worked out by hand; a whole step on fake CUDA is counted in tests/cuda."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from benchmarks.cost_counter import OTHER, Cost, CostCounter

x, y = torch.ones(3, 4), torch.ones(4, 5)
maps, kernels = torch.ones(2, 6, 5, 5, 5), torch.ones(6, 1, 3, 3, 3)


@pytest.mark.parametrize(
    ("operation", "cost"),
    [
        (lambda: x @ y, Cost(1, 4 * (12 + 20 + 15), 2 * 3 * 4 * 5)),
        (lambda: x + x, Cost(1, 4 * (12 + 12))),  # one tensor is read once
        (lambda: x.t().reshape(12).view(3, 4).unsqueeze(0)[0, 1], Cost(1, 4 * 24)),  # only reshape copies
        (lambda: x.expand(7, 3, 4).sum(), Cost(1, 4 * (12 + 1))),
        (lambda: torch.ones(3, 4).mul_(2), Cost(2, 4 * (12 + 12 + 12))),  # written; read and written
        (lambda: x.index_select(0, torch.tensor([1])), Cost(1, 4 * (4 + 4) + 8)),  # one row of three, and its number
        (lambda: F.conv3d(maps, kernels, groups=6), Cost(1, 4 * (1500 + 162 + 324), 2 * 324 * 27)),
        (lambda: x.sum().item(), Cost(1, 4 * (12 + 1), 0, 1)),
    ],
)
def test_cost_of_an_operation(operation: Callable[[], object], cost: Cost) -> None:
    with CostCounter() as counter:
        operation()
    assert counter.parts[OTHER] == cost


def test_backward_pass_counts_for_the_part_it_differentiates() -> None:
    conv = torch.nn.Conv3d(6, 6, 3, groups=6, bias=False)
    linear = torch.nn.Linear(4, 5, bias=False)
    counter = CostCounter()
    counter.watch("convolution", conv)
    counter.watch("linear", linear)
    image = maps.clone().requires_grad_()
    with counter:
        first = conv(image).sum()
        second = linear(x).sum()
        (first + second).backward()
    # forward, and both gradients; the input of `linear` needs none
    assert counter.parts["convolution"].flops == 3 * 2 * 324 * 27
    assert counter.parts["linear"].flops == 2 * 2 * 3 * 4 * 5


def test_what_is_not_on_the_device_does_not_count() -> None:
    with CostCounter("cuda") as counter:
        x @ y
    assert counter.parts[OTHER] == Cost()
