"""Lines by step: complete or absent, and removed when their steps are repeated."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from mim_components.handlers.metrics import StepLines
from mim_components.run.folder import RunFolder
from mim_components.utils.files import FullDiskError


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    made = RunFolder(tmp_path)
    yield made
    made.release()


@pytest.fixture
def limit() -> Iterator[None]:
    """Files of at most 60 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def steps(lines: StepLines) -> list[int]:
    return [json.loads(line)["step"] for line in lines.path.read_text().splitlines()]


def test_full_disk_stops_and_leaves_no_half_line(folder: RunFolder, limit: None) -> None:
    (folder.path / "checkpoints").mkdir()
    (folder.path / "checkpoints" / "step_00000002.pt").touch()
    lines = StepLines(folder, "numbers.jsonl")
    lines.append(1, {"loss": 0.5})
    lines.append(2, {"loss": 0.5})
    with pytest.raises(FullDiskError) as failed:
        lines.append(3, {"loss": 0.5})
    message = str(failed.value)
    assert f"cannot write {lines.path}, which needs 25 B: files are limited to 60 B (ulimit -f). " in message
    assert "step_00000002.pt. Make room; the same command continues." in message
    assert steps(lines) == [1, 2]


def test_full_disk_may_cost_lines_only(folder: RunFolder, limit: None) -> None:
    folder.on_full_disk = "continue"
    lines = StepLines(folder, "numbers.jsonl")
    for step in range(1, 6):
        lines.append(step, {"loss": 0.5})
    assert steps(lines) == [1, 2] and len(folder.notes) == 1  # said once
    assert folder.notes[0].endswith("The training continues; steps in numbers.jsonl may be missing from now on.")


def test_damaged_lines_are_taken_back(folder: RunFolder) -> None:
    lines = StepLines(folder, "numbers.jsonl")
    lines.path.write_text("x" * 20 + '\n{"step": 1}\n{"step": 2, "lo{"step": 3}\n[4]\n{"st')
    lines.rewind(3)
    assert steps(lines) == [1]


def test_rewind_needs_no_room_where_nothing_is_taken_back(folder: RunFolder) -> None:
    lines = StepLines(folder, "numbers.jsonl")
    lines.append(1, {"loss": 0.5})
    before = lines.path.stat().st_ino
    lines.rewind(1)
    assert lines.path.stat().st_ino == before and steps(lines) == [1]
    lines.rewind(0)
    assert steps(lines) == []
