"""One command runs all benchmarks: every part in its quick form, the output file, and messages of failures."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as suite
from benchmarks import processes, step, step_memory
from benchmarks.pretraining import Settings, Training


class Here:
    """A step in this process, since a new process spends seconds on imports."""

    def __init__(self, settings: Settings) -> None:
        self.training = Training(settings)

    def __call__(self) -> tuple[float, float, float]:
        return (*step_memory.timed(self.training), step_memory.peak())

    def close(self) -> None:
        pass


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run parts, and the processes that they start, in this process."""

    def run(words: Sequence[str], **_: Any) -> argparse.Namespace:
        importlib.import_module(words[2]).main(words[3:])
        return argparse.Namespace(returncode=0)

    def case(case: step_memory.Case, options: argparse.Namespace) -> dict[str, float]:
        return step_memory.run_case(case, options.preset, options.size, options.levels, options.repetitions)

    threads = torch.get_num_threads()
    monkeypatch.setattr(suite, "subprocess", argparse.Namespace(run=run, TimeoutExpired=subprocess.TimeoutExpired))
    monkeypatch.setattr(step, "StepProcess", Here)
    monkeypatch.setattr(step_memory, "in_process", case)
    monkeypatch.setattr(processes, "start", lambda case, options: 2.0 * case.processes)
    yield
    torch.set_num_threads(threads)


def test_every_part_runs(one_process: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # the others are run in quick form by their own tests
    names = [name for name in suite.PARTS if name not in ("fine_tuning", "inference", "step_cost")]
    assert suite.main(["--quick", "--only", ",".join(names), "--output", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "benchmarks.json").read_text())
    text = (tmp_path / "benchmarks.md").read_text()
    assert list(content["parts"]) == names
    assert content["environment"]["versions"]["torch"] == torch.__version__
    for name, part in content["parts"].items():
        assert part["tables"] and part["seconds"] > 0
        assert f"## {suite.PARTS[name].title}\n\n```bash\n{part['command']}\n```" in text
        assert all(f"{title}:\n\n| " in text for title in part["tables"])
        module = "gpu" if name.startswith("gpu_") else name
        assert part["command"].startswith(f"python -m benchmarks.{module} ") and str(tmp_path) not in part["command"]
    assert f"{len(names)} of {len(names)} parts ran" in capsys.readouterr().out


def test_a_part_that_fails_is_named_and_the_others_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []

    def run(words: Sequence[str], **_: Any) -> argparse.Namespace:
        ran.append(words[2])
        if "memory" in words[2]:
            raise subprocess.TimeoutExpired(words, 7200)
        path = Path(words[words.index("--json") + 1])
        path.write_text(json.dumps({"tables": {"Table": [{"case": "a", "ms": 1.5}]}}))
        return argparse.Namespace(returncode=3 if "step" in words[2] else 0)

    monkeypatch.setattr(suite, "subprocess", argparse.Namespace(run=run, TimeoutExpired=subprocess.TimeoutExpired))
    assert suite.main(["--only", "step,step_memory,scaling", "--output", str(tmp_path)]) == 1
    assert ran == ["benchmarks.step", "benchmarks.step_memory", "benchmarks.scaling"]
    out = capsys.readouterr().out
    assert "1 of 3 parts ran" in out and "failed: step, exit status 3" in out
    assert "failed: step_memory, not finished after 7200 s (--limit)" in out
    text = (tmp_path / "benchmarks.md").read_text()
    assert "Failed: exit status 3." in text and "| a | 1.50 |" in text


def test_parts_of_a_device() -> None:
    def names(**options: Any) -> list[str]:
        return suite.chosen(argparse.Namespace(**{"only": None, "device": "cpu", **options}))

    assert names() == [name for name in suite.PARTS if not name.startswith("gpu_")]
    assert names(device="cuda") == ["gpu_depthwise", "gpu_compile", "gpu_batch", "gpu_training", "gpu_networks"]
    assert names(only="gpu_batch,encoder") == ["gpu_batch", "encoder"]
    with pytest.raises(ValueError, match="no part speed; there are encoder, step"):
        names(only="encoder,speed")


def test_an_unknown_part_ends_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        suite.main(["--only", "speed"])
    assert "no part speed" in capsys.readouterr().err


@pytest.mark.slow
def test_a_part_in_its_own_process(tmp_path: Path) -> None:
    assert suite.main(["--quick", "--only", "encoder", "--output", str(tmp_path)]) == 0
    assert "| nano | 1 |" in (tmp_path / "benchmarks.md").read_text()
