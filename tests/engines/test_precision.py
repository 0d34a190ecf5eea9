"""The type of autocast, and float16 with its scale, by hand on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mim_components.data.load.sampler import StepSampler
from mim_components.engines import NonFiniteError, OptimizerStep, autocast_dtype
from mim_components.engines.precision import LossScale


@pytest.mark.parametrize(
    ("cuda", "bfloat16", "expected"),
    [(False, False, torch.bfloat16), (True, True, torch.bfloat16), (True, False, torch.float16)],
)
def test_auto_is_bfloat16_unless_a_gpu_only_emulates_it(
    cuda: bool, bfloat16: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)

    def supported(including_emulation: bool = True) -> bool:  # as on a GPU older than Ampere
        return including_emulation or bfloat16

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert autocast_dtype() is expected
    assert autocast_dtype("bfloat16") is torch.bfloat16 and autocast_dtype("float16") is torch.float16


def test_other_types_are_refused() -> None:
    with pytest.raises(ValueError, match="amp_dtype must be one of auto, bfloat16, float16, got 'half'"):
        autocast_dtype("half")


def loader_of(accumulation: int) -> Any:
    """The part of a loader that a step needs."""
    return SimpleNamespace(sampler=StepSampler(1, 1, accumulation))


class Step(OptimizerStep):
    """The loss is the sum of the network's output."""

    def terms(self, engine: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        with self.autocast(torch.device("cpu")):
            output = engine.network(batch["x"])
        return {"loss": output.float().sum()}


def engine_of(network: nn.Module) -> Any:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    return SimpleNamespace(network=network, optimizer=optimizer, state=SimpleNamespace(iteration=1))


def linear() -> nn.Linear:
    network = nn.Linear(1, 1, bias=False)
    nn.init.ones_(network.weight)
    return network


ONE = {"x": torch.ones(1, 1), "name": ["scan_0"]}


def test_a_scale_beyond_float16_costs_a_step_and_is_halved() -> None:
    step, engine = Step(loader_of(1), amp=True, amp_dtype="float16"), engine_of(linear())
    first = step(engine, [ONE])  # the gradient of the output is the scale, 65536; float16 ends at 65504
    assert engine.state.skipped and engine.network.weight.item() == 1.0
    assert float(first["overflow_steps"]) == 1 and float(first["loss"]) == 1.0 and "skipped_steps" not in first
    second = step(engine, [ONE])
    assert not engine.state.skipped and float(second["overflow_steps"]) == 1 and step.guard.skipped == 0
    assert float(second["gradient_norm"]) == 1.0 and engine.network.weight.item() == pytest.approx(0.9)


def test_accumulated_gradients_are_unscaled_once() -> None:
    step, engine = Step(loader_of(2), amp=True, amp_dtype="float16"), engine_of(linear())
    step.loss_scale.scaler.load_state_dict({**step.loss_scale.scaler.state_dict(), "scale": 1024.0})
    out = step(engine, [ONE, {"x": torch.full((1, 1), 3.0), "name": ["scan_1"]}])
    assert float(out["gradient_norm"]) == 2.0 and float(out["loss"]) == 2.0  # mean of 1 and 3


def test_a_loss_that_is_not_finite_is_not_the_scale() -> None:
    step, engine = Step(loader_of(1), amp=True, amp_dtype="float16"), engine_of(linear())
    with pytest.raises(NonFiniteError, match="the gradient of step 1 is not finite .*\n.*scan_0"):
        step(engine, [{"x": torch.full((1, 1), torch.inf), "name": ["scan_0"]}])
    assert step.loss_scale.overflows == 0


def test_a_gradient_that_no_scale_mends_is_reported() -> None:
    class Root(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return (self.weight - self.weight.detach()).square().sqrt()  # 0, its gradient 0 / 0

    step, engine = Step(loader_of(1), amp=True, amp_dtype="float16"), engine_of(Root(1, 1, bias=False))
    for _ in range(16):  # 2^16 to 2^0
        step(engine, [ONE])
    with pytest.raises(NonFiniteError, match="the gradient of step 1 is not finite"):
        step(engine, [ONE])
    assert step.loss_scale.overflows == 16


def test_scale_and_count_are_continued() -> None:
    step = Step(loader_of(1), amp=True, amp_dtype="float16")
    step(engine_of(linear()), [ONE])
    again = Step(loader_of(1), amp=True, amp_dtype="float16")
    again.loss_scale.load_state_dict(step.loss_scale.state_dict())
    assert again.loss_scale.overflows == 1 and again.loss_scale.scaler.get_scale() == 32768
    out = again(engine_of(linear()), [ONE])
    assert float(out["overflow_steps"]) == 1


def test_a_run_without_a_scale_goes_on_with_one_and_the_other_way_round() -> None:
    without, with_one = LossScale(False), LossScale(True)
    with_one.load_state_dict(without.state_dict())
    assert with_one.scaler.get_scale() == 65536
    without.load_state_dict(with_one.state_dict())
    assert not without.enabled and without.is_to_blame() is False


@pytest.mark.parametrize("options", [{}, {"amp": True, "amp_dtype": "bfloat16"}, {"amp_dtype": "float16"}])
def test_other_types_have_no_scale(options: dict[str, Any]) -> None:
    step, engine = Step(loader_of(1), **options), engine_of(linear())
    out = step(engine, [ONE])
    assert "overflow_steps" not in out and engine.network.weight.item() == pytest.approx(0.9)
