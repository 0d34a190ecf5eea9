"""The benchmark of fine-tuning runs, and its profile counts every operator once."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import fine_tuning, own_process
from benchmarks.fine_tuning import NETWORKS, OURS, main, run_case
from benchmarks.fine_tuning_profile import COPIES, kind_of, kind_rows, part_rows


def test_tables_and_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def here(name: str, keep_memory: bool, options: Namespace) -> dict[str, float]:
        return {"seconds": 2.0, "cpu": 4.0, "peak": 0.5 if name == OURS else 1.0}

    monkeypatch.setattr(fine_tuning, "in_process", here)  # a new process imports for seconds
    path = tmp_path / "fine_tuning.json"
    main(["--quick", "--json", str(path)])
    assert "parameters (M)" in capsys.readouterr().out
    peaks, steps, parts, kinds = json.loads(path.read_text())["tables"].values()
    assert [row["network"] for row in steps] == list(NETWORKS) and steps[0]["time, first row = 1"] == 1
    assert [row["peak, first row = 1"] for row in peaks] == [1, 2, 2, 2, 1] and peaks[-1]["memory is"] == "kept"
    for rows in (parts, kinds):
        assert sum(row["share %"] for row in rows) == pytest.approx(100)
    times = {row["part"]: row for row in parts}
    for name in ("encoder, stage 1 (1/2)", "encoder, transformer (1/16)", "decoder, up to 1/1", "loss"):
        assert times[name]["forward ms"] > 0 and times[name]["backward ms"] > 0
    assert times["other"]["share %"] < 20
    assert sum(row["forward ms"] + row["backward ms"] for row in parts) == pytest.approx(sum(r["ms"] for r in kinds))


def test_a_case_prints_its_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--preset", "nano", "--size", "32,16,16", "--case", OURS])
    numbers = json.loads(capsys.readouterr().out)
    assert numbers.keys() == run_case(OURS, "nano", (32, 16, 16)).keys() == {"seconds", "cpu", "peak"}


def test_a_process_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}

    def run(words: list[str], env: dict[str, str], **options: object) -> Namespace:
        given.update(env)
        return Namespace(returncode=-9)

    monkeypatch.setattr(own_process.subprocess, "run", run)
    with pytest.raises(RuntimeError, match="process of unetr ended with -9; -9: the machine has too little memory"):
        fine_tuning.in_process("unetr", True, Namespace(preset="tiny", size=(32, 32, 32)))
    assert given["MALLOC_MMAP_MAX_"] == "0"


def event(name: str, time: float, parent: SimpleNamespace | None = None, number: int = -1) -> SimpleNamespace:
    return SimpleNamespace(name=name, self_cpu_time_total=1e3 * time, cpu_parent=parent, sequence_nr=number)


def test_parts_by_hand() -> None:
    part = event("part: a", 1)
    conv = event("aten::conv3d", 0, part, number=7)
    back = event("autograd::engine::evaluate_function: ConvolutionBackward0", 1, number=7)
    events = [part, conv, event("aten::copy_", 2, conv, number=7), back, event("aten::convolution_backward", 5, back),
              event("aten::fill_", 1, number=99)]  # fmt: skip
    assert part_rows(events, ["a", "other"]) == [
        {"part": "a", "forward ms": 3, "backward ms": 6, "share %": 90},
        {"part": "other", "forward ms": 1, "backward ms": 0, "share %": 10},
    ]
    times = {row["kind"]: row["ms"] for row in kind_rows(events)}
    assert times == {"convolution": 6, "element-wise and other": 2, COPIES: 2}


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["aten::copy_", "aten::contiguous", "_Normalize"], COPIES),
        (["aten::sub", "_NormalizeBackward"], "norm"),
        (["aten::mkldnn_convolution", "aten::conv3d", "_Depthwise"], "depth-wise convolution"),
        (["aten::mkldnn_convolution", "aten::conv3d"], "convolution"),
        (["aten::addmm", "aten::linear", "part: encoder, convolutions"], "linear layer"),
        (["aten::leaky_relu_backward"], "activation, softmax"),
        (["aten::bmm", "aten::_scaled_dot_product_attention_math"], "attention"),
        (["aten::add_"], "element-wise and other"),
    ],
)
def test_kinds(names: list[str], kind: str) -> None:
    assert kind_of(names) == kind
