"""A study of seconds on the real command: run, killed in a cell, continued; results and report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from studies import __main__ as command
from studies.definition import ROOT, Study
from studies.report import SCAN
from studies.results import read_results

pytestmark = pytest.mark.slow

Write = Callable[[dict[str, Any]], Path]


def words(study: Path, patients: Path, folder: Path, *more: str) -> list[str]:
    places = ["--data", str(patients), "--output", str(folder / "work"), "--results", str(folder / "results.jsonl")]
    return [str(study), *places, "--allow_dirty", "--jobs", "1", "--nice", "0", *more]


def attempts(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "attempts.jsonl").read_text().splitlines()]


def test_killed_in_a_cell_and_continued(small: dict[str, Any], write: Write, patients: Path, tmp_path: Path) -> None:
    small["pretraining"]["options"]["max_steps"] = 100  # long enough to be met in it
    path = write(small)
    study = Study(path)
    run = [sys.executable, "-m", "studies", "run", *words(path, patients, tmp_path)]
    process = subprocess.Popen(run, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    pretraining = tmp_path / "work" / "cells" / study.cells["mim/pretraining/seed0"].folder
    end = time.monotonic() + 900  # against a test that hangs
    try:
        while not list(pretraining.glob("checkpoints/*")):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
    assert status == 143
    results = tmp_path / "results.jsonl"
    assert [json.loads(line)["cell"] for line in results.read_text().splitlines()] == ["scratch/1/seed0"]
    assert attempts(pretraining)[-1]["status"] == 143  # it has saved and ended by itself
    scratch = tmp_path / "work" / "cells" / study.cells["scratch/1/seed0"].folder
    before = attempts(scratch)

    assert command.main(["run", *words(path, patients, tmp_path)]) == 0
    assert attempts(scratch) == before  # a cell that is done does not run again
    assert [line.get("status") for line in attempts(pretraining)] == [None, 143, None, 0, None, 0]
    lines = read_results(results, study)
    assert {name: line["state"] for name, line in lines.items()} == dict.fromkeys(study.cells, "done")
    pretrained = lines["mim/pretraining/seed0"]
    assert pretrained["steps"] == 100 and pretrained["network_volumes"] == 100 * 3  # 1 + 2 volumes a step
    assert list(pretrained["probe"]) == ["encoder", "random weights", "intensity and position"]
    assert 0 < pretrained["probe"]["encoder"]["dice"] < 1
    ended = [line for line in attempts(pretraining) if "status" in line]
    assert pretrained["seconds"] == pytest.approx(sum(line["seconds"] for line in ended), abs=0.1)
    assert pretrained["attempts_lost"] == 0 and not (pretraining / "checkpoints").exists()
    tuned = lines["mim/1/seed0"]
    assert set(tuned["scores"]["dice"]) == {"a", "b"} and list(tuned["scores"]["dice"]["a"]) == ["pt_3"]
    assert (
        "Pre-trained weights from"
        in (tmp_path / "work" / "cells" / study.cells["mim/1/seed0"].folder / "train.log").read_text()
    )
    places = words(path, patients, tmp_path)[:7]
    picture = ["--cells", "mim/1/seed0", "--file", str(tmp_path / "docs" / SCAN)]
    assert command.main(["picture", *places, "--scan", "pt_3", *picture]) == 0
    assert command.main(["picture", *places, "--scan", "pt_0", *picture]) == 2  # no test scan
    assert command.main(["report", str(path), "--results", str(results), "--output", str(tmp_path / "docs")]) == 0
    page = (tmp_path / "docs" / "evidence.md").read_text()
    assert f"| `mim` | {100 * pretrained['probe']['encoder']['dice']:.1f} |" in page
    assert "3 of 3 cells are done" in page and (tmp_path / "docs" / "images" / "evidence_dice.png").exists()
    assert f"]({SCAN})" in page
