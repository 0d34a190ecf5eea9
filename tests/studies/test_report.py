"""The page from results that are written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from studies import __main__ as command
from studies.definition import Cell, Study, StudyError
from studies.report import Evidence, page
from studies.results import append_result, facts_of, read_results, scores_of, thin_curve

Write = Callable[[dict[str, Any]], Path]


def tuned(study: Study, cell: Cell, a: list[float], b: list[float]) -> dict[str, Any]:
    """A result with the scores of classes a and b of two scans."""
    scores = {"a": dict(zip("xy", a, strict=True)), "b": dict(zip("xy", b, strict=True))}
    cost = {"seconds": 1.0, "cpu_seconds": 1800.0, "attempts_lost": 0}
    outcome = {"state": "done", "steps": 4, "scores": {"dice": scores, "nsd": scores}, **cost}
    return {**facts_of(study, cell, "0123456789abcdef"), **outcome}


def test_numbers_of_the_page(small: dict[str, Any], write: Write, tmp_path: Path) -> None:
    study, results = Study(write(small)), tmp_path / "results.jsonl"
    append_result(results, tuned(study, study.cells["scratch/1/seed0"], [0.5, 0.5], [0.25, 0.25]))  # mean 0.375
    text = page(Evidence(study, read_results(results, study)), {}, ["the command"])
    assert (
        "1 of 3 cells are done. The primary comparison, `mim` against `scratch` with 1 labelled patients, has 0 of 1"
        in text
    )
    assert "37.5 [37.5, 37.5]" in text and "50.0 [50.0, 50.0]" in text and "25.0 [25.0, 25.0]" in text
    mim = next(line for line in text.splitlines() if line.startswith("| `mim` | MiM"))
    assert mim.count("not run") == 3 and not any(digit in mim.split("| 0 |")[1] for digit in "0123456789")

    append_result(results, tuned(study, study.cells["mim/1/seed0"], [0.75, 0.75], [0.5, 0.5]))  # mean 0.625
    text = page(Evidence(study, read_results(results, study)), {}, ["the command"])
    assert "is better, +25.0 [+25.0, +25.0] points of Dice" in text
    assert "| 0.50 |" in text  # 1800 s are half an hour
    assert "Commits: 0123456789." in text and "the command" in text


def test_lines_of_other_definitions_are_not_read(small: dict[str, Any], write: Write, tmp_path: Path) -> None:
    study, results = Study(write(small)), tmp_path / "results.jsonl"
    line = tuned(study, study.cells["scratch/1/seed0"], [0.5, 0.5], [0.5, 0.5])
    append_result(results, {**line, "digest": "of an earlier file"})
    assert read_results(results, study) == {}
    append_result(results, line)
    append_result(results, {**line, "state": "failed", "cause": "later"})
    assert read_results(results, study)["scratch/1/seed0"]["state"] == "done"
    with results.open("a") as file:
        file.write("{}\n")
    with pytest.raises(StudyError, match="line 4 is no result"):
        read_results(results, study)


def test_failed_cells_are_named(
    small: dict[str, Any], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, results = write(small), tmp_path / "results.jsonl"
    study = Study(path)
    line = tuned(study, study.cells["mim/pretraining/seed0"], [0.5, 0.5], [0.5, 0.5])
    append_result(results, {**line, "state": "failed", "cause": "train: exit status 1"})
    assert "- `mim/pretraining/seed0` failed: train: exit status 1" in page(
        Evidence(study, read_results(results, study)), {}, []
    )
    assert command.main(["status", str(path), "--results", str(results), "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "failed    mim/pretraining/seed0  30 CPU minutes  train: exit status 1" in out
    assert "small: 2 not run, 1 failed" in out


def test_scores_of_an_evaluation() -> None:
    row = {"case": "x", "dice_a": 0.5, "nsd_a": None}
    assert scores_of({"targets": [{"name": "a"}], "per_case": [row]}) == {
        "dice": {"a": {"x": 0.5}},
        "nsd": {"a": {"x": None}},
    }


def test_curve_is_averaged() -> None:
    rows = [{"step": step, "reconstruction_level1": float(step)} for step in range(1, 81)]
    curve = thin_curve(rows)
    assert curve["step"] == list(range(2, 81, 2)) and curve["reconstruction_level1"][:2] == [1.5, 3.5]


def test_results_have_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_result(tmp_path / "results.jsonl", {"score": float("nan")})
    append_result(tmp_path / "results.jsonl", {"score": 1.0})
    assert json.loads((tmp_path / "results.jsonl").read_text()) == {"score": 1.0}
