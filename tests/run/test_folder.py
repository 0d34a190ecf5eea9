"""The folder of a run: new, continued or refused."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import signal
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest

from mim_components import __version__
from mim_components.run import folder as module
from mim_components.run.folder import FolderInUseError, RunFolder, SettingsChangedError
from mim_components.utils.files import FullDiskError


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The configuration of a bundle."""
    values: dict[str, Any] = {"seed": 0, "num_workers": 4, "level_sizes": [[40, 40, 32], [16, 16, 16]]}
    monkeypatch.setattr(module, "current_config", lambda: values)
    return values


def begun(path: Path, resume: str = "auto", digest: str = "abc", **contents: str) -> RunFolder:
    """A run that has begun, and whose process has ended."""
    folder = RunFolder(path, resume)
    try:
        return folder.begin(digest, contents=contents)
    finally:
        folder.release()


def with_checkpoint(path: Path) -> None:
    (path / "checkpoints").mkdir()
    (path / "checkpoints" / "step_00000001.pt").touch()


def test_without_a_checkpoint_settings_may_change(
    tmp_path: Path, config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first = begun(tmp_path)
    first.update(mlflow_run_id="x")
    same = begun(tmp_path)
    assert same.name == first.name and same.continued and same.state["mlflow_run_id"] == "x"
    config.update(seed=1)
    again = begun(tmp_path, digest="other")
    assert again.name != first.name and not again.continued and "mlflow_run_id" not in again.state
    state = json.loads((tmp_path / "run.json").read_text())
    assert state["config"]["seed"] == 1 and state["data_digest"] == "other"
    assert f"{tmp_path} has no checkpoint yet: the run begins at step 0, with the settings given now." in caplog.text


def test_only_the_owner_reads_the_settings(tmp_path: Path, config: dict[str, Any]) -> None:
    begun(tmp_path).update(status="finished")
    assert (tmp_path / "run.json").stat().st_mode & 0o777 == 0o600


def test_what_killed_writes_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    left = tmp_path / "models" / ".model.pt.1234.partial"
    left.touch()
    (tmp_path / "models" / "model.pt").touch()
    RunFolder(tmp_path).release()
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["model.pt"]


def test_new_run_is_written_down(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = begun(tmp_path / "a" / "b")
    state = json.loads((tmp_path / "a" / "b" / "run.json").read_text())
    assert state == folder.state and not folder.finished
    assert state["status"] == "running" and state["data_digest"] == "abc" and state["version"] == __version__
    assert state["config"] == config
    assert folder.name == state["name"] and folder.name.startswith("run-")


def test_names_are_unique_also_within_a_second(tmp_path: Path, config: dict[str, Any]) -> None:
    assert len({begun(tmp_path / str(number)).name for number in range(5)}) == 5


def test_auto_continues_and_keeps_name_and_state(tmp_path: Path, config: dict[str, Any]) -> None:
    first = begun(tmp_path)
    first.update(status="interrupted", mlflow_run_id="x")
    config["num_workers"] = 0  # does not affect the computation
    again = begun(tmp_path)
    assert again.path == tmp_path and again.name == first.name
    assert again.state["mlflow_run_id"] == "x" and not again.finished
    again.update(status="finished")
    assert RunFolder(tmp_path).finished


def test_changed_settings_and_data_are_all_named_and_the_folder_is_free_again(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    begun(tmp_path)
    with_checkpoint(tmp_path)
    content = (tmp_path / "run.json").read_bytes()
    config.update(seed=1, level_sizes=[[40, 40, 32], [8, 8, 8]])
    folder = RunFolder(tmp_path)
    with pytest.raises(SettingsChangedError) as refused:
        folder.begin("other")
    assert str(refused.value).splitlines() == [
        f"{tmp_path} holds a run with different settings:",
        "  level_sizes::1: [16, 16, 16] -> [8, 8, 8]",
        "  seed: 0 -> 1",
        "  data: not the volumes that this run started with",
        "Restore them to continue it, or use --resume never (new folder) or another --output_dir.",
    ]
    assert (tmp_path / "run.json").read_bytes() == content
    RunFolder(tmp_path).release()


def test_volumes_that_differ_are_named(tmp_path: Path, config: dict[str, Any]) -> None:
    begun(tmp_path, a="1", b="2", c="3")
    with_checkpoint(tmp_path)
    assert begun(tmp_path, a="1", moved="2", c="3").continued  # by the digest the data are the same
    with pytest.raises(SettingsChangedError) as refused:
        begun(tmp_path, digest="other", a="9", b="2", d="4")
    assert str(refused.value).splitlines()[1:4] == ["  data: changed: a", "  data: missing: c", "  data: new: d"]
    with pytest.raises(SettingsChangedError, match="data: the same volumes, but other copies of them"):
        begun(tmp_path, digest="other", a="1", b="2", c="3", e="3")
    (tmp_path / module.CONTENTS).unlink()  # of a run of an earlier version
    with pytest.raises(SettingsChangedError, match="data: not the volumes that this run started with"):
        begun(tmp_path, digest="other", a="9")


def test_never_numbers_new_folders_and_touches_no_other(tmp_path: Path, config: dict[str, Any]) -> None:
    assert begun(tmp_path, "never").path == tmp_path  # nothing there yet
    before = (tmp_path / "run.json").read_bytes()
    assert begun(tmp_path, "never").path == tmp_path / "run_002"
    (tmp_path / "run_003").mkdir()  # something else lies there
    assert begun(tmp_path, "never").path == tmp_path / "run_004"
    assert (tmp_path / "run.json").read_bytes() == before
    assert len({json.loads(path.read_text())["name"] for path in tmp_path.rglob("run.json")}) == 3
    assert begun(tmp_path / "run_004").path == tmp_path / "run_004"  # how to continue it


def test_how_to_continue_names_the_folder_after_resume_never(tmp_path: Path, config: dict[str, Any]) -> None:
    assert begun(tmp_path).how_to_continue == "the same command continues"
    folder = begun(tmp_path, "never")
    text = f"the same command with --resume auto --output_dir {tmp_path / 'run_002'} continues"
    assert folder.how_to_continue == text
    assert f"Make room; {text}." in str(folder.with_advice(FullDiskError(errno.ENOSPC, "full")))


def test_unknown_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resume must be one of auto, never, got True"):
        RunFolder(tmp_path, True)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def hold_folder(path: Path, ready: Event) -> None:
    folder = RunFolder(path)
    ready.set()
    signal.pause()
    folder.release()


def test_second_process_is_kept_out_until_the_first_is_gone(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    ready = fork.Event()
    other = fork.Process(target=hold_folder, args=(tmp_path, ready))
    other.start()
    assert ready.wait(60)
    with pytest.raises(FolderInUseError, match=f"another process, or this one, is running in {tmp_path}"):
        RunFolder(tmp_path)
    other.kill()  # leaves the lock file, not the lock
    other.join()
    RunFolder(tmp_path).release()


def test_lock_is_kept_until_released(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(FolderInUseError, match="wait, or use another --output_dir"):
        RunFolder(tmp_path)
    folder.release()
    RunFolder(tmp_path).release()


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=f"output folder {tmp_path / 'file' / 'out'} cannot be written .Not a directory."):
        RunFolder(tmp_path / "file" / "out")


def test_notes_are_logged_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = RunFolder(tmp_path)
    with caplog.at_level(logging.WARNING, "mim_components"):
        folder.note("3 volumes are small, 100 % padded")
    assert folder.notes == ["3 volumes are small, 100 % padded"] == [record.getMessage() for record in caplog.records]
    folder.release()


def test_failed_write_leaves_the_old_state(tmp_path: Path, config: dict[str, Any], monkeypatch: Any) -> None:
    folder = begun(tmp_path)

    def full(self: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="cannot write .*run.json, which needs .*: No space left on device; .* are free"):
        folder.update(status="finished")
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "running"


def test_damaged_run_json_is_named(tmp_path: Path, config: dict[str, Any]) -> None:
    begun(tmp_path)
    (tmp_path / "run.json").write_text("")
    with pytest.raises(ValueError, match="run.json"):
        RunFolder(tmp_path)


def test_full_disk_costs_the_state_only_where_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, write: object) -> Path:
        raise OSError(errno.ENOSPC, f"cannot write {path}: No space left on device")

    folder = RunFolder(tmp_path, on_full_disk="continue").begin("digest")
    monkeypatch.setattr("mim_components.utils.files.write_safely", full)
    for status in ("running", "interrupted"):
        folder.update(status=status)
    assert len(folder.notes) == 1 and "the state in run.json may be missing from now on" in folder.notes[0]
    folder.on_full_disk = "stop"
    with pytest.raises(FullDiskError, match=f"cannot write {tmp_path}/run.json, which needs .*There is no checkpoint"):
        folder.update(status="finished")
    folder.release()
    assert RunFolder(tmp_path).state["status"] == "running"
