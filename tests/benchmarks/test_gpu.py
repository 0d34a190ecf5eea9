"""The GPU benchmark, by hand and on a CPU; benchmarks/test_command.py runs it as a whole."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
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


def test_bytes_of_a_step_are_those_of_its_operators() -> None:
    settings = Settings("nano", 16, levels=1)
    training = gpu.Training(settings)
    parameters = 4 * sum(each.numel() for each in training.network.parameters())
    # AdamW alone reads gradients, and reads and writes weights and two moments
    assert 7 * parameters < gpu.step_bytes(training, settings) < 100 * parameters
    assert math.isnan(gpu.step_bytes(training, replace(settings, compile=True)))


def test_matmul_peak_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(cases: dict[str, Any], repetitions: int) -> dict[str, Timing]:
        cases["product"]()
        return {"product": Timing((2.0, 0.5))}

    monkeypatch.setattr(gpu, "measure", timed)
    assert gpu.matmul_peak("cpu", 8, 2) == 2 * 8**3 * 10 / 0.5


def test_copy_peak_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "measure", lambda cases, repetitions: {"copy": Timing((2.0, 0.5))})
    assert gpu.copy_peak("cpu", 8, 2) == 2 * 8 * 8 * 4 / 0.5  # read and written, 4 bytes each


def test_rates_of_a_step_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "measure", lambda cases, repetitions, warmup: {"step": Timing((0.5,))})
    monkeypatch.setattr(gpu, "step_flops", lambda settings: 4e12)
    monkeypatch.setattr(gpu, "step_bytes", lambda training, settings: 6e9)
    row = gpu.step_row(Settings("nano", 16, levels=2, samples=2), peak=(16e12, 48e9), repetitions=1)
    assert (row["GB/s"], row["share of copy peak %"]) == (12.0, 25.0)
    assert (row["ms/step"], row["samples/s"], row["crops/s"]) == (500.0, 4.0, 20.0)
    assert (row["TFLOP/s"], row["share of matmul peak %"], row["peak GiB"], row["failed"]) == (8.0, 50.0, None, "")
    assert row["hours of the paper's schedule"] == 37.5  # 540,000 samples


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, torch.AcceleratorError, ZeroDivisionError])
def test_a_step_that_fails_is_a_row_that_says_so(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(settings: Settings) -> None:
        raise kind("CUDA error: a | b\nmore")

    monkeypatch.setattr(gpu, "Training", fails)
    row = gpu.step_row(Settings("nano", 16, levels=1, samples=8), peak=(1.0, 1.0), repetitions=1)
    assert row["samples"] == 8 and row["failed"] == f"{kind.__name__}: CUDA error: a / b"
    done = {"samples": 1, "ms/step": 2.0, "failed": ""}
    assert gpu.same_columns([row, done])[0]["ms/step"] is None
    assert list(gpu.same_columns([row, done])[1])[-1] == "failed"


def test_a_part_that_fails_does_not_lose_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(options: argparse.Namespace, settings: Settings) -> gpu.Tables:
        assert json.loads(path.read_text())["tables"] == {"first": [{"ms": 1.0}]}  # written before the next part
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def works(title: str) -> Callable[..., gpu.Tables]:
        return lambda options, settings: {title: [{"ms": 1.0}]}

    path = tmp_path / "part.json"
    monkeypatch.setattr(gpu, "PARTS", {"a": works("first"), "b": fails, "c": works("third")})
    gpu.main(["--device", "cpu", "--json", str(path)])
    tables = json.loads(path.read_text())["tables"]
    assert list(tables) == ["first", "Part b", "third"]
    assert "illegal memory access" in tables["Part b"][0]["failed"]


def test_rows_are_kept_when_a_case_ends_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def row(settings: Settings, *_: Any) -> dict[str, Any]:
        if settings.form == "sparse":
            raise SystemExit(139)  # the process is gone
        return {"encoder": settings.form, "failed": ""}

    path = tmp_path / "part.json"
    monkeypatch.setattr(gpu, "step_row", row)
    monkeypatch.setattr(gpu, "peaks", lambda options, settings: (1.0, 1.0))
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu", "--part", "compile", "--json", str(path)])
    content = json.loads(path.read_text())
    assert content["tables"] == {"Steps of one sample": [{"encoder": "dense", "failed": ""}]}
    assert content["settings"]["part"] == "compile"


def test_cases() -> None:
    settings = Settings("nano", 16, levels=2)
    assert [(case.form, case.compile) for case in gpu.compile_cases(settings, compiled=True)] == [
        ("dense", False), ("sparse", False), ("sparse", True),
    ]  # fmt: skip
    assert not any(case.compile for case in gpu.compile_cases(settings, compiled=False))
    assert [(case.samples, case.limit, case.checkpoint) for case in gpu.batch_cases(settings, [1, 4])] == [
        (1, 0, False), (4, 0, False), (1, 8, False), (1, 4, False), (1, 0, True), (4, 5, False),
    ]  # fmt: skip


def test_weight_gradient_has_a_row_for_every_stage() -> None:
    row = gpu.depthwise_row(Settings("nano", 16, levels=2, samples=1), stage=0, repetitions=1)
    # 5 volumes of 2^3 tokens, 3 of them visible, 8 channels
    assert row["groups per block"] == 5 * 3 * 8 and row["C groups, ms"] > 0 and row["C groups per block, ms"] > 0


class Profile:
    """The profiler's output on a GPU: host operators, kernels, and marks around them."""

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
    assert "no CUDA device is available; --device cpu does the same" in capsys.readouterr().err
