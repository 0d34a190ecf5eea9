"""The runner's decisions, with commands that only write the files of a bundle run."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from studies import __main__ as command
from studies.attempts import cost_of, last_lines, note, read_again
from studies.definition import Study
from studies.results import commit_of_tree, read_results
from studies.run import Runner, _lock_path, chosen, default_jobs, is_running, locked, visible_gpus

Write = Callable[[dict[str, Any]], Path]


class Commands:
    """Replaces `Runner._call`; commands whose options contain one of `failing` end with status 1."""

    def __init__(self) -> None:
        self.failing: set[str] = set()
        self.ran: list[str] = []

    def __call__(self, words: list[str], folder: Path, name: str, log: Path, lock: Any) -> int:
        self.ran.append(f"{folder.parts[-3]}/{name}")
        log.write_text("a long log\nValueError: the cause\n")
        if self.failing & set(words):
            return 1
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 4, "reconstruction_level1": 1.0}) + "\n")
        (folder / "evaluation").mkdir(exist_ok=True)
        row = {"case": "x", "dice_a": 0.5, "nsd_a": 0.5}
        report = {"targets": [{"name": "a"}], "per_case": [row]}
        (folder / "evaluation" / "metrics.json").write_text(json.dumps(report))
        return 0


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    found = Commands()
    monkeypatch.setattr(Runner, "_call", lambda self, *arguments: found(*arguments))
    return found


def runner(study: Study, folder: Path, retry: bool = False) -> Runner:
    return Runner(study, chosen(study, None), folder, folder / "work", folder / "results.jsonl", "abc", retry)


def test_a_failed_cell_stops_only_what_needs_it(
    small: dict[str, Any], write: Write, commands: Commands, tmp_path: Path
) -> None:
    small["order"] = [{"arms": ["mim", "scratch"]}]
    study = Study(write(small))
    commands.failing = {"--level_sizes"}  # the pre-training
    states = runner(study, tmp_path).run(jobs=2)
    assert states == {"mim/pretraining/seed0": "failed", "mim/1/seed0": "skipped", "scratch/1/seed0": "done"}
    line = read_results(tmp_path / "results.jsonl", study)["mim/pretraining/seed0"]
    assert line["cause"] == "train: exit status 1" and line["log"].endswith("ValueError: the cause")
    assert line["commit"] == "abc" and "mim/1/seed0" not in read_results(tmp_path / "results.jsonl", study)

    commands.failing, commands.ran = set(), []
    assert runner(study, tmp_path).run(jobs=1) == states and commands.ran == []  # a failed cell stays failed
    states = runner(study, tmp_path, retry=True).run(jobs=1)
    assert set(states.values()) == {"done"} and commands.ran == ["mim/train", "mim/probe", "mim/train", "mim/evaluate"]


def test_an_encoder_that_is_not_here_is_made_again(
    small: dict[str, Any], write: Write, commands: Commands, tmp_path: Path
) -> None:
    study = Study(write(small))
    name = "mim/pretraining/seed0"
    Runner(study, [study.cells[name]], tmp_path, tmp_path / "work", tmp_path / "results.jsonl", "abc").run(jobs=1)
    encoder = tmp_path / "work" / "cells" / study.cells[name].folder / "models" / "encoder.safetensors"
    encoder.parent.mkdir()
    encoder.touch()

    def run(work: str) -> list[str]:
        commands.ran = []
        cells = [study.cells[name], study.cells["mim/1/seed0"]]
        Runner(study, cells, tmp_path, tmp_path / work, tmp_path / f"{work}.jsonl", "abc").run(jobs=1)
        return commands.ran

    for work in ("work", "elsewhere"):
        shutil.copy(tmp_path / "results.jsonl", tmp_path / f"{work}.jsonl")
    assert run("work") == ["mim/train", "mim/evaluate"]
    assert run("elsewhere") == ["mim/train", "mim/probe", "mim/train", "mim/evaluate"]
    assert run("elsewhere") == []  # no remaining cell needs it


def test_no_two_processes_take_a_cell(small: dict[str, Any], write: Write, commands: Commands, tmp_path: Path) -> None:
    study = Study(write(small))
    cell = study.cells["scratch/1/seed0"]
    with locked(_lock_path(tmp_path / "work", cell)) as lock:
        assert lock is not None and is_running(tmp_path / "work", cell)
        first = runner(study, tmp_path)
        assert "scratch/1/seed0" not in first.run(jobs=2)
        assert first.elsewhere == ["scratch/1/seed0"] and "scratch/train" not in commands.ran
    assert not is_running(tmp_path / "work", cell)
    assert set(runner(study, tmp_path).run(jobs=2).values()) == {"done"}


def test_missing_results_are_a_failure(
    small: dict[str, Any], write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    study = Study(write(small))
    monkeypatch.setattr(Runner, "_call", lambda *arguments: 0)
    assert runner(study, tmp_path).run(jobs=1)["scratch/1/seed0"] == "failed"
    cause = read_results(tmp_path / "results.jsonl", study)["scratch/1/seed0"]["cause"]
    assert "the commands succeeded but left no results" in cause


def test_a_failure_that_cannot_be_recorded(
    small: dict[str, Any], write: Write, commands: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def full(*arguments: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("studies.run.append_result", full)
    study = Study(write(small))
    states = runner(study, tmp_path).run(jobs=2)  # and it ends
    assert states == {"scratch/1/seed0": "failed", "mim/pretraining/seed0": "failed", "mim/1/seed0": "skipped"}
    assert "scratch/1/seed0: the failure is not in" in caplog.text


def test_encoders_are_recorded(small: dict[str, Any], write: Write, commands: Commands, tmp_path: Path) -> None:
    study = Study(write(small))
    encoder = study.cells["mim/pretraining/seed0"].folder_in(tmp_path / "work") / "models" / "encoder.safetensors"
    encoder.parent.mkdir(parents=True)
    encoder.write_text("abc")
    runner(study, tmp_path).run(jobs=1)
    lines = read_results(tmp_path / "results.jsonl", study)
    assert {name: line["encoder"] for name, line in lines.items()} == {
        "scratch/1/seed0": None,
        "mim/pretraining/seed0": hashlib.sha256(b"abc").hexdigest(),
        "mim/1/seed0": hashlib.sha256(b"abc").hexdigest(),
    }


def test_processes_yield_to_other_sessions(small: dict[str, Any], write: Write, tmp_path: Path) -> None:
    group = Path("/proc/self/autogroup")
    if not group.exists() or not group.read_text():
        pytest.skip("this kernel does not group processes by session")
    study = Study(write(small))
    code = "import os, time; time.sleep(0.5); print(os.nice(0), open('/proc/self/autogroup').read().split()[-1])"
    with (tmp_path / "lock").open("w") as lock:
        assert runner(study, tmp_path)._call(["-c", code], tmp_path, "train", tmp_path / "log", lock) == 0
    assert (tmp_path / "log").read_text().split() == ["19", "19"]


def test_a_cell_per_gpu_or_core(
    small: dict[str, Any], write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2, 3, 4, 5})
    assert (visible_gpus(), default_jobs(1), default_jobs(4), default_jobs(8)) == ([], 6, 1, 1)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert (visible_gpus(), default_jobs(4)) == (["0", "1"], 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    used = []

    def call(runner: Runner, words: list[str], folder: Path, name: str, log: Path, lock: Any) -> int:
        used.append(runner._own.gpu)
        return 1

    monkeypatch.setattr(Runner, "_call", call)
    runner(Study(write(small)), tmp_path).run(jobs=1)
    assert used == ["3", "3"]


def test_folders_are_read_again(small: dict[str, Any], write: Write, commands: Commands, tmp_path: Path) -> None:
    study, results = Study(write(small)), tmp_path / "results.jsonl"
    runner(study, tmp_path).run(jobs=1)
    assert read_again(study, results, tmp_path / "work") == []
    name = "mim/pretraining/seed0"
    folder = tmp_path / "work" / "cells" / study.cells[name].folder
    (folder / "probe").mkdir()
    (folder / "probe" / "metrics.json").write_text(json.dumps({"features": {"encoder": {"dice": 0.5}}}))
    (folder / "probe" / "cases.csv").write_text("features,case,mean_dice\nencoder,x,0.5\n")
    assert read_again(study, results, tmp_path / "work") == [name]
    line = read_results(results, study)[name]
    assert line["probe"] == {"encoder": {"dice": 0.5, "scans": {"x": 0.5}}} and line["commit"] == "abc"
    (folder / "probe" / "cases.csv").write_text("features,case,mean_dice\nencoder,x,0.25\n")
    note(folder, command="train", started="now")  # the folder belongs to another run than the line
    assert read_again(study, results, tmp_path / "work") == []


def test_cost_of_all_attempts(tmp_path: Path) -> None:
    for _ in range(2):
        note(tmp_path, command="train", started="now")
        note(tmp_path, command="train", status=143, seconds=2.0, cpu_seconds=1.5)
    note(tmp_path, command="train", started="now")  # and the runner is killed
    assert cost_of(tmp_path) == {"seconds": 4.0, "cpu_seconds": 3.0, "attempts_lost": 1}


def test_last_lines_show_a_progress_bar_once(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"first\n10 %\r20 %\r30 %\nerror\n\n")
    assert last_lines(tmp_path / "log") == "first\n30 %\nerror"


def test_a_dirty_tree_is_refused(
    small: dict[str, Any], write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(command, "commit_of_tree", lambda study, results: ("abc", True))
    words = ["run", str(write(small)), "--data", str(tmp_path), "--output", str(tmp_path / "work")]
    assert command.main(words) == 2
    assert "the code differs from its commit" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_commit_of_the_tree(
    small: dict[str, Any], write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def git(*words: str) -> str:
        settings = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *settings, *words], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    study, results = Study(write(small)), tmp_path / "results" / "small.jsonl"
    monkeypatch.setattr("studies.results.ROOT", tmp_path)
    assert commit_of_tree(study, results) == ("unknown", True)
    git("init", "--quiet")
    results.parent.mkdir()
    results.write_text("")
    (tmp_path / "code.py").write_text("")
    git("add", "--all")
    git("commit", "--quiet", "--message", "first")
    results.write_text("a result")  # written by the study itself, so not counted
    assert commit_of_tree(study, results) == (git("rev-parse", "HEAD"), False)
    (tmp_path / "code.py").write_text("changed")
    assert commit_of_tree(study, results) == (git("rev-parse", "HEAD"), True)
