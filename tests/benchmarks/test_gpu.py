"""The benchmark for a GPU, by hand and on a CPU; that it runs as a whole is in benchmarks/test_command.py."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType

from benchmarks import gpu
from benchmarks.network_cost import measure as network_cost
from benchmarks.pretraining import Settings
from benchmarks.report import Timing


def test_flops_of_a_step_are_three_forward_passes() -> None:
    settings = Settings("nano", 32, levels=2)
    cost = network_cost("nano", "hybrid", (32, 32, 32), num_levels=2, sparse=True)
    assert gpu.step_flops(settings) == 3 * 2 * cost.sample_macs
    dense = network_cost("nano", "hybrid", (32, 32, 32), num_levels=2)
    assert gpu.step_flops(Settings("nano", 32, levels=2, samples=2, form="dense")) == 2 * 3 * 2 * dense.sample_macs


def test_matmul_peak_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(cases: dict[str, Any], repetitions: int) -> dict[str, Timing]:
        cases["product"]()
        return {"product": Timing((2.0, 0.5))}

    monkeypatch.setattr(gpu, "measure", timed)
    assert gpu.matmul_peak("cpu", 8, 2) == 2 * 8**3 * 10 / 0.5


def test_hours_of_the_paper() -> None:
    assert gpu.hours_row("x", 1.0)["hours on one card"] == 150  # 540,000 samples


def test_rates_of_a_step_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "measure", lambda cases, repetitions, warmup: {"step": Timing((0.5,))})
    monkeypatch.setattr(gpu, "step_flops", lambda settings: 4e12)
    row = gpu.step_row(Settings("nano", 16, levels=2, samples=2), peak=16e12, repetitions=1)
    assert (row["ms/step"], row["samples/s"], row["crops/s"]) == (500.0, 4.0, 20.0)
    assert (row["TFLOP/s"], row["share of matmul peak %"], row["peak GiB"]) == (8.0, 50.0, None)


def test_a_step_without_enough_memory_is_an_empty_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(settings: Settings) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(gpu, "Training", full)
    row = gpu.step_row(Settings("nano", 16, levels=1, samples=8), peak=1.0, repetitions=1)
    assert row["samples"] == 8 and row["ms/step"] is row["samples/s"] is row["peak GiB"] is None


def test_cases() -> None:
    cases = gpu.step_cases(Settings("nano", 16), [1, 2], compiled=True)
    assert [(case.samples, case.form, case.compile) for case in cases[:6]] == [
        (samples, form, compiled)
        for samples in (1, 2)
        for form, compiled in (("dense", False), ("sparse", False), ("sparse", True))
    ]
    assert [(case.limit, case.checkpoint) for case in cases[6:]] == [(8, False), (4, False), (0, True)]
    assert not any(case.compile for case in gpu.step_cases(Settings("nano", 16), [1], compiled=False))


class Profile:
    """What the profiler gives on a GPU: operators of the host, kernels, and marks around them."""

    def __init__(self, **_: Any) -> None:
        pass

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def key_averages(self) -> list[argparse.Namespace]:
        def event(key: str, kind: DeviceType, time: float, mark: bool = False) -> argparse.Namespace:
            return argparse.Namespace(key=key, device_type=kind, self_device_time_total=time, self_cpu_time_total=1.0,
                                      count=2, is_user_annotation=mark)  # fmt: skip

        return [
            event("aten::mm", DeviceType.CPU, 3000.0),
            event("small", DeviceType.CUDA, 1000.0),
            event("gemm", DeviceType.CUDA, 3000.0),
            event("Optimizer.step", DeviceType.CUDA, 4000.0, mark=True),
        ]


def test_kernels_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "profile", Profile)
    monkeypatch.setattr(gpu, "free", lambda device: None)
    monkeypatch.setattr(gpu, "Training", lambda settings: lambda: None)
    assert gpu.top_kernels(Settings("nano", 16, device="cuda")) == [
        {"kernel": "`gemm`", "calls": 2, "ms": 3.0, "share %": 75.0},
        {"kernel": "`small`", "calls": 2, "ms": 1.0, "share %": 25.0},
    ]


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "no CUDA device is available; --device cpu goes the same way" in capsys.readouterr().err
