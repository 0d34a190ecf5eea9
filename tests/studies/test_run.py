"""A study of seconds with the real command: interrupted in a cell, continued; results and report."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from studies import __main__ as command
from studies.attempts import note
from studies.definition import Study
from studies.report import scan_picture
from studies.results import read_results
from studies.run import Runner
from tests.faults.runs import Run, environment_of_runs, server

pytestmark = pytest.mark.slow

Write = Callable[[dict[str, Any]], Path]
STEPS = 100  # of the pre-training: long enough to be interrupted


@contextmanager
def stopped_when_there_is(file: Path) -> Iterator[None]:
    """Send SIGTERM to this process, which the runner handles, once a file is not empty."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            if file.is_file() and file.stat().st_size:
                os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def start_others_by_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork all commands except the training of a pre-training, which saves the imports of a new process."""
    started = Runner._call

    def call(runner: Runner, words: list[str], folder: Path, name: str, log: Path, lock: Any) -> int:
        if name == "train" and "pretraining" in folder.parts:
            return started(runner, words, folder, name, log, lock)
        assert words[:2] == ["-m", "monai.bundle"]
        note(folder, command=name)
        status = Run(folder, log, None, server().fork(words[2:], environment_of_runs(), log)).wait(timeout=900)
        note(folder, command=name, status=status, seconds=1.0, cpu_seconds=1.0)
        return status

    monkeypatch.setattr(Runner, "_call", call)


def attempts(folder: Path, key: str = "status") -> list[Any]:
    """Exit status, or seconds, by line of the attempts; None for the start of a command."""
    return [json.loads(line).get(key) for line in (folder / "attempts.jsonl").read_text().splitlines()]


def test_stopped_in_a_cell_and_continued(
    small: dict[str, Any], write: Write, patients: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    start_others_by_fork(monkeypatch)
    small["order"] = [{"arms": ["mim"]}]
    small["pretraining"]["options"] |= {"max_steps": STEPS, "checkpoint_interval": STEPS, "log_interval": 5}
    path, results, work = write(small), tmp_path / "results" / "small.jsonl", tmp_path / "work"
    study = Study(path)
    places = [str(path), "--data", str(patients), "--output", str(work), "--results", str(results.parent)]
    run = ["run", *places, "--allow_dirty", "--jobs", "1", "--nice", "0"]
    pretraining, tuning = (
        work / "cells" / study.cells[name].folder for name in ("mim/pretraining/seed0", "mim/1/seed0")
    )
    with stopped_when_there_is(pretraining / "metrics.jsonl"):
        assert command.main(run) == 143
    assert not results.exists() and attempts(pretraining) == [None, 143]  # it saved a checkpoint and exited by itself

    assert command.main(run) == 0
    assert attempts(pretraining) == [None, 143, None, 0, None, 0] and attempts(tuning) == [None, 0, None, 0]
    logged = [json.loads(line)["step"] for line in (pretraining / "metrics.jsonl").read_text().splitlines()]
    assert logged == [1, *range(5, STEPS + 1, 5)]  # no step twice
    assert command.main(run) == 0
    assert len(attempts(pretraining)) == 6  # a finished cell does not run again

    lines = read_results(results, study)
    assert {name: line["state"] for name, line in lines.items()} == dict.fromkeys(study.cells, "done")
    pretrained = lines["mim/pretraining/seed0"]
    assert pretrained["steps"] == STEPS and pretrained["network_volumes"] == STEPS * 3  # 1 + 2 volumes a step
    assert list(pretrained["probe"]) == ["encoder", "random weights", "intensity and position"]
    probe = pretrained["probe"]["encoder"]
    assert 0 < probe["dice"] < 1 and probe["scans"] == {"pt_3": pytest.approx(probe["dice"], rel=1e-5)}
    assert pretrained["seconds"] == pytest.approx(sum(filter(None, attempts(pretraining, "seconds"))), abs=0.1)
    assert pretrained["attempts_lost"] == 0 and not (pretraining / "checkpoints").exists()
    tuned = lines["mim/1/seed0"]
    assert set(tuned["scores"]["dice"]) == {"a", "b"} and list(tuned["scores"]["dice"]["a"]) == ["pt_3"]
    assert "Pre-trained weights from" in (tuning / "train.log").read_text()

    docs = str(tmp_path / "docs")
    picture = ["picture", *places, "--file", str(tmp_path / "docs" / scan_picture(study))]
    assert command.main(picture) == 0  # the scan and the cell in the study file
    assert command.main([*picture, "--scan", "pt_0"]) == 2  # no test scan
    assert command.main(["report", str(path), "--results", str(results.parent), "--output", docs]) == 0
    page = (tmp_path / "docs" / "evidence.md").read_text()
    assert f"| `mim` | {100 * probe['dice']:.1f} [" in page and "| 1 of 1 (" in page
    shown = [line.split("](")[1].removesuffix(")") for line in page.splitlines() if line.startswith("![")]
    assert shown == [f"images/evidence_small_{kind}.png" for kind in ("dice", "pretraining", "scan")]
    assert all((tmp_path / "docs" / file).exists() for file in shown)
