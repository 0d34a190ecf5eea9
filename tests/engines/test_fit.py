"""Micro-batch and compilation set to "auto": a simulated device of limited memory replaces CUDA."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mim_components.data.load.loader import StepLoader
from mim_components.engines import FinetuneStep, fit, fit_to_device

GPU = SimpleNamespace(type="cuda")
Fit = Callable[..., SimpleNamespace]


class Items:
    """Samples of 8 numbers, label 0."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        return {"image": torch.full((1, 2, 2, 2), float(key[1])), "label": torch.zeros(1), "name": str(key[1])}


class Network(nn.Module):
    """One weight; records how many samples it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen: list[int] = []

    def forward(self, image: Tensor) -> Tensor:
        self.seen.append(len(image))
        return self.weight * image.mean((1, 2, 3, 4)).unsqueeze(1)


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Fit:
    """Fit a training of 12 samples per step to a device; returns the settings and the logged line."""

    def run(
        batch_size: int | str = 1, compile: bool | str = False, free: int = 0, need: tuple[int, int] = (10, 30),
        global_batch_size: int = 12, on_cuda: bool = True,
    ) -> SimpleNamespace:  # fmt: skip
        def peak(case: Callable[[], object], device: torch.device) -> int:
            case()
            samples = network.seen[-1]
            if need[0] + samples * need[1] > free:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return need[0] + samples * need[1]

        network = Network()
        loader = StepLoader(Items(), 4, global_batch_size, batch_size)
        step = FinetuneStep(loader)
        trainer: Any = SimpleNamespace(
            network=network, data_loader=loader,
            loss_function=nn.MSELoss(), inferer=lambda image, module: module(image),
            state=SimpleNamespace(device=torch.device("cpu")),
        )  # fmt: skip
        folder: Any = SimpleNamespace(finished=False, facts={"accumulation": loader.sampler.accumulation})
        monkeypatch.setattr(fit, "ROOM", 1)
        monkeypatch.setattr(fit, "OPTIMIZER", 0)
        monkeypatch.setattr(fit, "peak_bytes", peak)
        monkeypatch.setattr(fit, "free_bytes", lambda device: free)
        monkeypatch.setattr(fit, "on_cuda", lambda device: on_cuda)
        caplog.set_level("INFO")
        fit_to_device(trainer, step, folder, compile)
        return SimpleNamespace(network=network, loader=loader, step=step, folder=folder, said=caplog.text)

    return run


@pytest.mark.parametrize(
    ("free", "size"),
    [
        (400, 12),  # 10 + 12 x 30 = 370
        (369, 6),  # 11 would fit, but does not divide 12
        (129, 3),
        (70, 2),
        (69, 1),
    ],
)
def test_as_many_samples_as_fit(free: int, size: int, fitted: Fit) -> None:
    done = fitted("auto", free=free)
    sampler = done.loader.sampler
    assert (sampler.batch_size, sampler.accumulation, sampler.global_batch_size) == (size, 12 // size, 12)
    assert done.step.accumulation == done.folder.facts["accumulation"] == 12 // size
    assert [[len(batch["name"]) for batch in step] for step in done.loader] == [[size] * (12 // size)] * 4
    assert done.network.weight.grad is None
    assert f"micro-batches of {size}, {12 // size} accumulated (batch_size auto" in done.said


def test_steps_keep_their_samples(fitted: Fit) -> None:
    def samples(loader: StepLoader) -> list[list[str]]:
        return [[name for batch in step for name in batch["name"]] for step in loader]

    assert samples(fitted("auto", free=400).loader) == samples(StepLoader(Items(), 4, 12, 1))


def test_a_step_of_one_sample_needs_no_rehearsal(fitted: Fit) -> None:
    done = fitted("auto", free=400, global_batch_size=1)
    assert done.network.seen == [] and done.loader.sampler.batch_size == 1


def test_without_cuda_it_is_one(fitted: Fit) -> None:
    done = fitted("auto", "auto", on_cuda=False)
    assert done.network.seen == []
    assert "micro-batches of 1, 12 accumulated (batch_size auto: without CUDA); not compiled (compile auto: only" in (
        done.said
    )


def test_processes_take_what_fits_into_all_of_them(fitted: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def smallest(most: int, op: str) -> int:
        asked.append((most, op))
        return 4

    monkeypatch.setattr(fit.idist, "get_world_size", lambda: 2)
    monkeypatch.setattr(fit.idist, "all_reduce", smallest)
    done = fitted("auto", "auto", free=400)
    assert asked == [(6, "MIN")]  # of 12 samples, a process has 6
    assert (done.loader.sampler.batch_size, done.loader.sampler.accumulation) == (3, 2)
    assert "not compiled (compile auto: only with one process on CUDA)" in done.said


def test_nothing_is_done_where_nothing_is_left_to_it(fitted: Fit) -> None:
    done = fitted(4, True, on_cuda=False)
    assert done.network.seen == [] and done.loader.sampler.batch_size == 4 and "auto" not in done.said


def test_shared_memory_limits_it(fitted: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def takes(size: int, num_workers: int) -> bool:
        asked.append(size)
        return size <= 5 * 9 * 4  # of five samples of 8 + 1 numbers

    monkeypatch.setattr(fit, "shared_memory_takes", takes)
    assert fitted("auto", free=400).loader.sampler.batch_size == 4
    assert asked[0] == 12 * 9 * 4


def test_compiled_where_it_succeeds(fitted: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[bool] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: compiled.append(how["dynamic"]))
    done = fitted("auto", "auto", free=100)
    assert compiled == [False] and done.network.seen == [1, 2, 3]  # both to measure memory; then with the chosen size
    assert "compiled in 0 s (compile auto)" in done.said
    assert "no autocast, else TF32 in convolutions and float32 in matrix products" in done.said


@pytest.mark.parametrize("error", [RuntimeError("no Triton\nhere"), torch.OutOfMemoryError("CUDA out of memory.")])
def test_left_as_it_was_where_compilation_fails(error: Exception, fitted: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*inputs: Any) -> None:
        raise error

    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: setattr(self, "_compiled_call_impl", fails))
    done = fitted(1, "auto", free=100)
    first = str(error).splitlines()[0]
    assert f"not compiled (compile auto: {type(error).__name__}: {first})" in done.said
    assert done.network(torch.ones(2, 1, 2, 2, 2)).tolist() == [[1.0], [1.0]] and done.network.weight.grad is None
