"""The benchmark of a step's memory runs and reports the memory kept with each setting."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from benchmarks import own_process, step_memory
from benchmarks.step_memory import Case, kept_by_volume, run_case


def test_a_case_prints_its_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    options = "--preset nano --size 16 --levels 2 --repetitions 1 --case sparse 2 1"
    step_memory.main(options.split())
    numbers = json.loads(capsys.readouterr().out)
    assert numbers.keys() == {"seconds", "cpu", "peak"} and all(value > 0 for value in numbers.values())


def test_table_and_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def here(case: Case, arguments: argparse.Namespace) -> dict[str, float]:
        return run_case(case, arguments.preset, arguments.size, arguments.levels, arguments.repetitions)

    monkeypatch.setattr(step_memory, "in_process", here)  # a new process spends seconds on imports
    path = tmp_path / "memory.json"
    options = f"--preset nano --size 16 --levels 2 --repetitions 1 --json {path}"
    step_memory.main(options.split())
    assert "peak GiB" in capsys.readouterr().out
    steps, kept = json.loads(path.read_text())["tables"].values()
    assert [row["max_volumes_per_pass"] for row in steps[:3]] == ["null", "4", "1"]
    assert steps[0]["CPU time, first row = 1"] == 1.0
    for row in kept:
        assert row["5 volumes, GiB"] == pytest.approx(5 * row["one volume, MiB"] / 1024)


def test_what_is_kept_is_less_with_either_setting() -> None:
    kept = {
        (form, again): kept_by_volume(form, again, "nano", 16)
        for form in ("dense", "sparse")
        for again in (False, True)
    }
    assert kept["dense", False] > 1.5 * kept["sparse", False] > 3 * kept["sparse", True]


def test_a_case_without_enough_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = argparse.Namespace(returncode=-9, stdout="")
    monkeypatch.setattr(own_process.subprocess, "run", lambda *arguments, **options: ended)
    wanted = argparse.Namespace(preset="nano", size=16, levels=2, repetitions=1)
    with pytest.raises(RuntimeError, match="Case.*'dense', limit=0.* ended with -9; -9: the machine has too little"):
        step_memory.in_process(Case("dense", 0, False), wanted)
