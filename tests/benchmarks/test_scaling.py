"""The benchmarks of scaling and of two processes: ratios by hand, and one step of each."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from benchmarks import processes, scaling
from benchmarks.pretraining import Settings
from benchmarks.report import Timing


def test_volumes_of_a_step() -> None:
    assert Settings(levels=4).volumes == [1, 4, 16, 64]
    assert Settings(levels=2, samples=3).volumes == [3, 12]


def test_ratios_of_scaling_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"1": Timing((2.0,), (4.0,)), "2": Timing((5.0,), (10.0,))}
    monkeypatch.setattr(scaling, "measure", lambda trainings, repetitions: times)
    cases = {level: Settings("nano", 16, levels=level) for level in (1, 2)}
    first, second = scaling.table("levels", cases, 1)
    assert first["time, first row = 1"] == first["CPU time of a volume, first row = 1"] == 1.0
    assert (second["volumes"], second["CPU ms/volume"], second["time, first row = 1"]) == (5, 2000.0, 2.5)
    assert (second["CPU time, first row = 1"], second["CPU time of a volume, first row = 1"]) == (2.5, 0.5)


def test_ratios_of_processes_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {(1, 2): iter([4.0, 6.0]), (1, 1): iter([8.0, 12.0]), (2, 1): iter([5.0, 3.0])}
    monkeypatch.setattr(processes, "start", lambda case, options: next(seconds[case]))
    rows = processes.rows_of(argparse.Namespace(repetitions=2))
    assert [row["s/step"] for row in rows] == [5.0, 10.0, 4.0]
    assert [row["samples/s"] for row in rows] == [0.4, 0.2, 0.5]
    assert [row["times faster"] for row in rows] == [1.0, 0.5, 1.25]
    assert [row["samples each"] for row in rows] == [2, 2, 1]


def test_processes_that_end_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = argparse.Namespace(returncode=1, stdout="")
    monkeypatch.setattr(processes.subprocess, "run", lambda *words, **options: ended)
    wanted = argparse.Namespace(preset="nano", size=16, levels=1)
    with pytest.raises(RuntimeError, match=r"Case\(processes=2, threads=1\) ended with 1"):
        processes.start(processes.Case(2, 1), wanted)


@pytest.mark.slow
def test_two_processes_take_a_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processes, "CASES", [processes.Case(2, 1)])
    options = f"--preset nano --size 16 --levels 2 --repetitions 1 --json {tmp_path / 'a.json'}"
    processes.main(options.split())
    (rows,) = json.loads((tmp_path / "a.json").read_text())["tables"].values()
    assert rows[0]["processes"] == 2 and rows[0]["s/step"] > 0
