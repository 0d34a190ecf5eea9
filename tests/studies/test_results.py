from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from studies import __main__ as command
from studies.definition import Study, StudyError
from studies.results import append_result, probe_of, read_results, scores_of, thin_curve
from tests.studies.lines import pretrained, tuned

Write = Callable[[dict[str, Any]], Path]


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
    with pytest.raises(StudyError, match="line 4 is not a result"):
        read_results(results, study)


def test_a_cell_that_an_earlier_round_has_done_counts(small: dict[str, Any], write: Write, tmp_path: Path) -> None:
    first = write(small)
    second = first.with_name("second.json")
    second.write_text(json.dumps({"extends": first.name, "name": "second", "pretraining": {"options": {"alpha": 1}}}))
    one, two = Study(first), Study(second)
    for line in (
        tuned(one, one.cells["scratch/1/seed0"], [0.5, 0.5], [0.5, 0.5]),  # unchanged in the second round
        tuned(one, one.cells["mim/1/seed0"], [0.5, 0.5], [0.5, 0.5]),  # in the second round after another pre-training
    ):
        append_result(tmp_path / "small.jsonl", line)
    results = tmp_path / "second.jsonl"
    assert {name: line["study"] for name, line in read_results(results, two).items()} == {"scratch/1/seed0": "small"}
    own = tuned(two, two.cells["scratch/1/seed0"], [0.75, 0.75], [0.75, 0.75])
    append_result(results, {**own, "state": "failed"})
    assert read_results(results, two)["scratch/1/seed0"]["study"] == "small"
    append_result(results, own)
    assert read_results(results, two)["scratch/1/seed0"]["study"] == "second"
    assert read_results(tmp_path / "small.jsonl", one)["scratch/1/seed0"]["study"] == "small"


def test_status_names_failed_cells(
    small: dict[str, Any], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, results = write(small), tmp_path / "small.jsonl"
    line = pretrained(Study(path), "mim", 0.5)
    append_result(results, {**line, "state": "failed", "cause": "train: exit status 1"})
    assert command.main(["status", str(path), "--results", str(tmp_path), "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "failed    mim/pretraining/seed0  30 CPU minutes  train: exit status 1" in out
    assert "small: 2 not run, 1 failed" in out


def test_scores_of_an_evaluation() -> None:
    row = {"case": "x", "dice_a": 0.5, "nsd_a": None}
    assert scores_of({"targets": [{"name": "a"}], "per_case": [row]}) == {
        "dice": {"a": {"x": 0.5}},
        "nsd": {"a": {"x": None}},
    }


def test_scores_of_a_probe(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps({"features": {"encoder": {"dice": 0.375}}}))
    (tmp_path / "cases.csv").write_text("features,case,mean_dice,dice_a\nencoder,x,0.5,0.5\nencoder,y,0.25,0.25\n")
    assert probe_of(tmp_path) == {"encoder": {"dice": 0.375, "scans": {"x": 0.5, "y": 0.25}}}


def test_curve_is_averaged() -> None:
    rows = [{"step": step, "reconstruction_level1": float(step)} for step in range(1, 81)]
    curve = thin_curve(rows)
    assert curve["step"] == list(range(2, 81, 2)) and curve["reconstruction_level1"][:2] == [1.5, 3.5]


def test_results_have_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_result(tmp_path / "results.jsonl", {"score": float("nan")})
    append_result(tmp_path / "results.jsonl", {"score": 1.0})
    assert json.loads((tmp_path / "results.jsonl").read_text()) == {"score": 1.0}
