"""The benchmark of fine-tuning runs."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks import fine_tuning, own_process
from benchmarks.fine_tuning import NETWORKS, OURS, main, run_case


def test_tables_and_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def here(name: str, keep_memory: bool, options: Namespace) -> dict[str, float]:
        return {"seconds": 2.0, "cpu": 4.0, "peak": 0.5 if name == OURS else 1.0}

    monkeypatch.setattr(fine_tuning, "in_process", here)  # a new process spends seconds on imports
    path = tmp_path / "fine_tuning.json"
    main(["--quick", "--json", str(path)])
    assert "parameters (M)" in capsys.readouterr().out
    peaks, steps = json.loads(path.read_text())["tables"].values()
    assert [row["network"] for row in steps] == list(NETWORKS) and steps[0]["time, first row = 1"] == 1
    assert [row["peak, first row = 1"] for row in peaks] == [1, 2, 2, 2, 1] and peaks[-1]["memory is"] == "kept"


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
