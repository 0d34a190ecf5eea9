"""One optimizer step on a network of one weight, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mim_components.data.load.sampler import StepSampler
from mim_components.engines.nonfinite import NonFiniteError
from mim_components.engines.pretraining import PretrainStep


class OneWeight(nn.Module):
    """Multiplies the mean of every volume by one weight, as a matrix product so that autocast applies."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.linear.weight)
        self.seen: list[Any] = []

    def forward(self, images: tuple[Tensor, ...], masked: tuple[Tensor, ...], num_visible: int | None) -> Any:
        output = self.linear(images[0].flatten(1).mean(1, keepdim=True))  # (B, 1)
        self.seen.append((tuple(images[0].shape), tuple(masked[0].shape), num_visible, output.dtype, self.training))
        return SimpleNamespace(prediction=output, context=())


class MeanLoss:
    """The mean of the output, and twice the mean as a term that is only reported."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __call__(self, output: Any, levels: Any, progress: float) -> dict[str, Tensor]:
        self.seen.append((progress, torch.is_autocast_enabled("cpu")))
        return {"reconstruction_level1": 2 * output.prediction.float().mean(), "loss": output.prediction.float().mean()}


def batch_of(*values: float) -> dict[str, Any]:
    """One sample of one volume per value."""
    image = torch.tensor(values).view(-1, 1, 1, 1, 1, 1).expand(-1, 1, 1, 2, 2, 2)  # (samples, V, C, H, W, D)
    names = [f"scan_{value:g}.nii.gz" for value in values]
    return {"image_level1": image, "masked_level1": torch.zeros(len(values), 1, 8, dtype=torch.bool), "name": names}


def make_engine(lr: float = 0.1) -> Any:
    network = OneWeight()
    state = SimpleNamespace(device=torch.device("cpu"), iteration=3)
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    return SimpleNamespace(network=network, optimizer=optimizer, loss_function=MeanLoss(), state=state)


def loader_of(accumulation: int = 1, num_steps: int = 1) -> Any:
    """The part of a loader that a step needs."""
    return SimpleNamespace(sampler=StepSampler(1, num_steps, accumulation))


def weight(engine: Any) -> float:
    return engine.network.linear.weight.item()


def test_accumulated_gradient_is_the_mean_over_micro_batches() -> None:
    engine = make_engine()
    output = PretrainStep(1, loader_of(2))(engine, iter([batch_of(1.0), batch_of(3.0)]))
    # d mean(w x) / dw = x: 1 and 3, mean 2; w = 1 - 0.1 * 2
    assert weight(engine) == pytest.approx(0.8)
    assert float(output["gradient_norm"]) == pytest.approx(2.0)
    assert float(output["loss"]) == pytest.approx(2.0) and float(output["reconstruction_level1"]) == pytest.approx(4.0)
    assert output["names"] == ["scan_1.nii.gz", "scan_3.nii.gz"]
    assert not output["loss"].requires_grad and output["loss"].ndim == 0


def test_accumulation_equals_one_large_batch_and_forgets_the_step_before() -> None:
    split, whole = make_engine(), make_engine()
    for _ in range(2):
        PretrainStep(1, loader_of(2))(split, [batch_of(1.0, 2.0), batch_of(6.0, 7.0)])
        PretrainStep(1, loader_of(1))(whole, [batch_of(1.0, 2.0, 6.0, 7.0)])
    assert weight(split) == pytest.approx(weight(whole)) == pytest.approx(1 - 2 * 0.1 * 4)  # mean of 1, 2, 6, 7 is 4


def test_clipping_bounds_the_update_and_reports_the_norm_before() -> None:
    engine = make_engine()
    output = PretrainStep(1, loader_of(1), max_norm=0.5)(engine, [batch_of(4.0)])
    assert float(output["gradient_norm"]) == pytest.approx(4.0)
    assert weight(engine) == pytest.approx(1 - 0.1 * 0.5, rel=1e-5)
    small = make_engine()
    PretrainStep(1, loader_of(1), max_norm=0.5)(small, [batch_of(0.25)])  # below the bound: unchanged
    assert weight(small) == pytest.approx(1 - 0.1 * 0.25)


@pytest.mark.parametrize(("amp", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_autocast_reaches_the_network_and_not_the_loss(amp: bool, dtype: torch.dtype) -> None:
    engine = make_engine()
    engine.network.eval()
    PretrainStep(1, loader_of(1, 8), num_visible=5, amp=amp)(engine, [batch_of(1.0, 2.0)])
    assert engine.network.seen == [((2, 1, 2, 2, 2), (2, 8), 5, dtype, True)]
    assert engine.loss_function.seen == [(2 / 8, False)]  # step 3 of 8: two are done
    assert engine.network.linear.weight.dtype == torch.float32


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("max_norm", [0.0, 1.0])
def test_gradient_that_is_not_finite_changes_nothing(bad: float, max_norm: float) -> None:
    engine = make_engine()
    engine.optimizer = torch.optim.AdamW(engine.network.parameters())
    before = weight(engine)
    with pytest.raises(NonFiniteError, match="gradient of step 3 is not finite .*weights were not updated") as failed:
        PretrainStep(1, loader_of(2), max_norm=max_norm)(engine, [batch_of(1.0), batch_of(bad)])
    assert weight(engine) == before and not engine.optimizer.state
    message = str(failed.value)
    assert f"loss {bad:g}" in message and "scan_1.nii.gz" in message and f"scan_{bad:g}.nii.gz" in message


def test_missing_level_is_named() -> None:
    with pytest.raises(KeyError, match="no 'image_level2'"):
        PretrainStep(2, loader_of(1))(make_engine(), [batch_of(1.0)])
