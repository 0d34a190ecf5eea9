"""Checkpoints: intact or refused by name, without running code, and with the previous one as a fallback."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest
import torch

from mim_components.data.load.dataset import KeyedDataset
from mim_components.data.load.loader import StepLoader
from mim_components.handlers.checkpoint import CheckpointHandler
from mim_components.run.checkpoints import CheckpointStore
from mim_components.run.folder import RunFolder
from mim_components.utils.tensor_files import DamagedCheckpointError, read_checkpoint

STATE = {"step": 4, "network": {"weight": torch.arange(64.0), "count": torch.tensor(3)}, "optimizer": {"lr": 0.1}}


class RunsCode:
    """An attacker's pickle: loading it creates a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "last byte missing":
        path.write_bytes(content[:-1])
    elif how == "0 byte":
        path.write_bytes(b"")
    elif how == "HTML":
        path.write_text("<!DOCTYPE html><html><body>404</body></html>")
    elif how == "LFS pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 4\n")
    elif how == "bit flip":
        position = content.index(torch.arange(64.0).numpy().tobytes()) + 17
        path.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
    elif how in ("NaN", "Inf"):
        weight = torch.arange(64.0)
        weight[5] = float(how)
        torch.save({**STATE, "network": {"weight": weight}}, path)
    elif how == "code":
        torch.save({"network": RunsCode(path.parent / "ran")}, path)
    elif how == "bare pickle":
        path.write_bytes(pickle.dumps(RunsCode(path.parent / "ran")))
    elif how == "list":
        torch.save([1, 2], path)
    elif how == "directory":
        path.unlink()
        path.mkdir()


DAMAGES = {
    "truncated": "not a readable checkpoint",
    "last byte missing": "not a readable checkpoint",
    "0 byte": "not a readable checkpoint",
    "HTML": "not a readable checkpoint",
    "LFS pointer": "not a readable checkpoint",
    "bit flip": "damaged, its part .* fails the checksum",
    "NaN": "weights are not finite: weight",
    "Inf": "weights are not finite: weight",
    "code": "not a readable checkpoint",
    "bare pickle": "not a readable checkpoint",
    "list": "holds a list, expected a dictionary",
    "directory": "not a readable checkpoint",
}


def test_read_gives_back_what_was_saved(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path / "checkpoints").save(4, STATE)
    assert path == tmp_path / "checkpoints" / "step_00000004.pt"
    state = read_checkpoint(path)
    assert state["step"] == 4 and state["optimizer"] == {"lr": 0.1}
    assert torch.equal(state["network"]["weight"], torch.arange(64.0))


def test_plain_state_dict_is_read_too(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "model.pt")
    assert torch.equal(read_checkpoint(tmp_path / "model.pt")["weight"], torch.ones(2))
    torch.save({"weight": torch.tensor([1.0, float("nan")])}, tmp_path / "model.pt")
    with pytest.raises(DamagedCheckpointError, match="model.pt: weights are not finite: weight"):
        read_checkpoint(tmp_path / "model.pt")


def test_missing_file_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none.pt"):
        read_checkpoint(tmp_path / "none.pt")


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_checkpoint_is_refused_by_name_and_the_previous_serves(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path)
    store.save(2, {**STATE, "step": 2})
    newest = store.save(4, STATE)
    damage(newest, how)
    with pytest.raises(DamagedCheckpointError, match=f"{newest}: {DAMAGES[how]}"):
        read_checkpoint(newest)
    with caplog.at_level(logging.WARNING, "mim_components"):
        state = store.newest()
    assert state is not None and state["step"] == 2
    assert [str(newest) in record.getMessage() for record in caplog.records] == [True]
    assert not (tmp_path / "ran").exists()  # no code was run


def test_no_flipped_bit_gives_other_weights(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path).save(1, STATE)
    content = path.read_bytes()
    refused = 0
    for position in range(0, len(content), len(content) // 100):
        path.write_bytes(content[:position] + bytes([content[position] ^ 16]) + content[position + 1 :])
        try:
            state = read_checkpoint(path)
        except DamagedCheckpointError:
            refused += 1
        else:  # names and times in the zip are not content
            assert torch.equal(state["network"]["weight"], torch.arange(64.0)) and state["optimizer"] == {"lr": 0.1}
    assert refused > 20


def test_all_damaged_is_an_error_not_a_new_run(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (2, 4):
        damage(store.save(step, STATE), "truncated")
    with pytest.raises(DamagedCheckpointError, match=f"all 2 checkpoints in {tmp_path} are damaged"):
        store.newest()


def test_no_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "none")
    assert store.newest() is None and store.paths() == []


def test_keep(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    for step in (5, 10, 100, 1000, 10_000_000):
        store.save(step, STATE)
    assert [path.name for path in store.paths()] == ["step_00000100.pt", "step_00001000.pt", "step_10000000.pt"]
    with pytest.raises(ValueError, match="keep must be at least 2, got 1"):
        CheckpointStore(tmp_path, keep=1)


def test_failed_save_leaves_the_others_and_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        store.save(step, {**STATE, "step": step})

    def full(state: Any, file: BinaryIO) -> None:
        file.write(b"PK half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    for step in (2, 3):  # over an old one, and a new one
        with pytest.raises(OSError, match=f"cannot write .*step_0000000{step}.pt, which .*: No space left on device"):
            store.save(step, STATE)
    monkeypatch.undo()
    assert [name for name in sorted(os.listdir(tmp_path)) if not name.endswith(".pt.sha256")] == [
        "step_00000001.pt",
        "step_00000002.pt",
    ]
    state = store.newest()
    assert state is not None and state["step"] == 2


# digests


def altered(path: Path) -> None:
    """A changed weight with matching checksums, which only the digest reveals."""
    state = torch.load(path, weights_only=True)
    state["network"]["weight"][3] += 1
    with path.open("wb") as file:
        torch.save(state, file)


def swapped(path: Path) -> None:
    shutil.copy(path.with_name("step_00000002.pt"), path)


@pytest.mark.parametrize("change", [altered, swapped])
def test_another_whole_checkpoint_is_noticed(
    change: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path)
    store.save(2, {**STATE, "step": 2, "loss": 0.5})
    path = store.save(4, STATE)
    before, digest = path.read_bytes(), path.with_name("step_00000004.pt.sha256")
    assert digest.read_text() == f"{hashlib.sha256(before).hexdigest()}  step_00000004.pt\n"  # as sha256sum has it
    change(path)
    with caplog.at_level(logging.WARNING, "mim_components"):
        assert (store.newest() or {})["step"] == 2
    assert f"{path}: not the file that was written: its sha256 is" in caplog.text
    path.write_bytes(before)
    assert (store.newest() or {})["step"] == 4


def test_checkpoint_alone_is_read_and_the_log_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = CheckpointStore(tmp_path / "old").save(4, STATE)
    (tmp_path / "new").mkdir()
    shutil.copy(path, tmp_path / "new")
    with caplog.at_level(logging.INFO, "mim_components"):
        assert (CheckpointStore(tmp_path / "new").newest() or {})["step"] == 4
    assert f"{tmp_path / 'new' / path.name} has no digest (step_00000004.pt.sha256) to compare with" in caplog.text
    caplog.clear()
    shutil.copytree(tmp_path / "old", tmp_path / "both")  # with its digest
    with caplog.at_level(logging.INFO, "mim_components"):
        assert (CheckpointStore(tmp_path / "both").newest() or {})["step"] == 4 and caplog.text == ""


def test_digest_goes_with_its_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (1, 2, 3, 3):
        store.save(step, {**STATE, "step": step})
    names = [f"step_0000000{step}.pt{ending}" for step in (2, 3) for ending in ("", ".sha256")]
    assert sorted(os.listdir(tmp_path)) == names


def test_killed_between_checkpoint_and_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, {**STATE, "step": 1})

    def killed(path: Path, text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mim_components.utils.files.write_text_safely", killed)
    with pytest.raises(KeyboardInterrupt):
        store.save(1, {**STATE, "step": 1, "other": 0})
    assert os.listdir(tmp_path) == ["step_00000001.pt"] and (store.newest() or {})["other"] == 0


def test_failed_save_leaves_the_digest_of_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path)
    path = store.save(1, {**STATE, "step": 1})
    with monkeypatch.context() as patched, pytest.raises(OSError):
        patched.setattr(torch, "save", raise_full)
        store.save(1, STATE)
    assert sorted(os.listdir(tmp_path)) == [path.name, f"{path.name}.sha256"]
    assert (store.newest() or {})["step"] == 1


def raise_full(state: Any, file: BinaryIO) -> None:
    raise OSError(28, "No space left on device")


def test_file_that_a_killed_save_left_is_not_a_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, {**STATE, "step": 1})
    (tmp_path / ".step_00000002.pt.123.partial").write_bytes(b"PK")
    (tmp_path / "step_best.pt").write_bytes(b"PK")
    state = store.newest()
    assert len(store.paths()) == 1 and state is not None and state["step"] == 1


def make_handler(folder: Path) -> CheckpointHandler:
    """A checkpoint handler of a toy training, as at the start of a process."""
    torch.manual_seed(0)
    network = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    loader = StepLoader(KeyedDataset([0, 1], transform=lambda x: x), num_steps=9, global_batch_size=1)
    run: Any = SimpleNamespace(path=folder, state={}, kept={}, kept_if_there={})
    return CheckpointHandler(run, network, optimizer, schedule, loader, interval=2)


def steps_of(handler: CheckpointHandler, start: int, stop: int) -> Any:
    """Train from after step `start` to `stop` and save there."""
    engine = SimpleNamespace(state=SimpleNamespace(iteration=start, epoch_length=9))
    for step in range(start + 1, stop + 1):
        engine.state.iteration = step
        handler.parts["network"].weight.grad = torch.full((1, 2), float(step))
        handler.parts["optimizer"].step()
        handler.parts["lr_scheduler"].step()
    handler.save(engine)
    return engine


def test_restored_training_goes_on_as_undisturbed(tmp_path: Path) -> None:
    undisturbed = make_handler(tmp_path / "a")
    steps_of(undisturbed, 0, 6)
    steps_of(make_handler(tmp_path / "b"), 0, 4)
    continued = make_handler(tmp_path / "b")
    engine = SimpleNamespace(state=SimpleNamespace(iteration=0, epoch_length=9))
    assert continued.restore(engine) == 4  # type: ignore[arg-type]
    assert engine.state.iteration == 4 and len(continued.loader) == 5
    steps_of(continued, 4, 6)
    first, second = undisturbed.parts["network"].weight, continued.parts["network"].weight
    assert torch.equal(first, second)
    assert continued.parts["lr_scheduler"].get_last_lr() == [pytest.approx(0.1 / 7)]


def test_damaged_checkpoint_is_written_anew_when_its_step_comes_again(tmp_path: Path) -> None:
    handler = make_handler(tmp_path)
    steps_of(handler, 0, 2)
    steps_of(handler, 2, 4)
    damage(handler.store.paths()[-1], "truncated")
    again = make_handler(tmp_path)
    assert again.restore(SimpleNamespace(state=SimpleNamespace(iteration=0, epoch_length=9))) == 2  # type: ignore[arg-type]
    steps_of(again, 2, 4)
    assert read_checkpoint(tmp_path / "checkpoints" / "step_00000004.pt")["step"] == 4


@pytest.mark.parametrize("part", ["optimizer", "lr_scheduler", "network", "step"])
def test_checkpoint_without_a_part_is_refused_by_name(part: str, tmp_path: Path) -> None:
    handler = make_handler(tmp_path)
    steps_of(handler, 0, 2)
    path = handler.store.paths()[0]
    state = torch.load(path, weights_only=True)
    del state[part]
    torch.save(state, path)
    with pytest.raises(ValueError, match=f"{path}.*{part}"):
        make_handler(tmp_path).restore(SimpleNamespace(state=SimpleNamespace(iteration=0, epoch_length=9)))  # type: ignore[arg-type]


class Count:
    """A part that older versions did not save."""

    def __init__(self, count: int) -> None:
        self.count = count

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


def test_part_that_an_older_checkpoint_lacks_begins_anew(tmp_path: Path) -> None:
    steps_of(make_handler(tmp_path), 0, 2)
    engine: Any = SimpleNamespace(state=SimpleNamespace(iteration=0, epoch_length=9))
    handler = make_handler(tmp_path)
    handler.folder.kept_if_there["count"] = Count(7)
    assert handler.restore(engine) == 2 and handler.folder.kept_if_there["count"].count == 7
    steps_of(handler, 2, 4)
    again = make_handler(tmp_path)
    again.folder.kept_if_there["count"] = Count(0)
    assert again.restore(engine) == 4 and again.folder.kept_if_there["count"].count == 7


def test_interrupted_run_without_checkpoint_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    handler = make_handler(tmp_path)
    handler.folder = RunFolder(tmp_path)
    handler.folder.state["status"] = "interrupted"
    with caplog.at_level(logging.INFO, "mim_components"):
        assert handler.restore(SimpleNamespace(state=SimpleNamespace(iteration=0))) == 0  # type: ignore[arg-type]
    assert "has no checkpoint yet: the run starts from step 0" in caplog.text
    handler.folder.release()


@pytest.mark.parametrize("state", [{"network": 5}, {"network": torch.tensor(1.0)}], ids=["number", "tensor"])
def test_network_that_is_no_dictionary_is_refused_by_name(state: dict[str, Any], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "step_00000001.pt")
    with pytest.raises(DamagedCheckpointError, match="step_00000001.pt"):
        read_checkpoint(tmp_path / "step_00000001.pt")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "an HTML page"),
    ],
)
def test_usual_mistakes_are_named(content: bytes, text: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=f"{path}.*{text}"):
        read_checkpoint(path)


def test_damaged_checkpoint_does_not_count_as_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (2, 4):
        store.save(step, {"step": step, "network": {}})
    (tmp_path / "step_00000004.pt").write_bytes(b"cut")
    newest = CheckpointStore(tmp_path, keep=2)
    assert (newest.newest() or {})["step"] == 2
    newest.save(3, {"step": 3, "network": {}})
    assert [path.name for path in newest.paths()] == ["step_00000002.pt", "step_00000003.pt"]
