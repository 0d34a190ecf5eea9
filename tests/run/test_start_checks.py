"""Refusals before the first step, and later messages about a full disk or a lost worker."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import time
from collections import namedtuple
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn

from mim_components.data import StepLoader
from mim_components.data.load.dataset import KeyedDataset
from mim_components.data.load.loader import WorkerError, explain_worker_error, kill_workers
from mim_components.handlers import CheckpointHandler
from mim_components.run import RunFolder, StartError, check_start, check_validation_start, sample_shapes, start_checks
from mim_components.run.checkpoints import CheckpointStore
from mim_components.run.options import OptionsError
from mim_components.utils.files import FullDiskError, as_full_disk, free_bytes, tensor_bytes
from mim_components.utils.tensor_files import read_checkpoint, save_safely
from mim_components.utils.text import root_cause

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    made = RunFolder(tmp_path / "run").begin("digest", "run")
    yield made
    made.release()


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Free bytes of the disk and of shared memory."""
    bytes_of = {"disk": 10**12, "memory": 10**12}

    def usage(path: Any) -> Usage:
        return Usage(0, 0, bytes_of["memory" if str(path).startswith("/dev/shm") else "disk"])

    monkeypatch.setattr(shutil, "disk_usage", usage)
    return bytes_of


def check(folder: RunFolder, **options: Any) -> None:
    defaults: dict[str, Any] = {"sample_shapes": [[2, 1, 10, 10, 10]], "batch_size": 3, "num_workers": 2}
    check_start(folder, nn.Linear(100, 100, bias=False), **{**defaults, **options})


# start checks


def test_room_for_three_checkpoints(folder: RunFolder, free: dict[str, int]) -> None:
    size = 3 * 4 * 100 * 100 + 2**16  # weights, two moments, and the rest of the file
    assert start_checks.checkpoint_bytes(nn.Linear(100, 100, bias=False)) == size
    free["disk"] = 3 * size
    check(folder)
    free["disk"] = 3 * size - 1000
    with pytest.raises(
        FullDiskError, match=r"no room for 3 checkpoints of 185.5 kB: 556.6 kB needed, 555.6 kB free, 1.0"
    ):
        check(folder)
    store = CheckpointStore(folder.path / "checkpoints", keep=3)
    for step in (1, 2):
        store.save(step, {})
    free["disk"] = size  # two exist
    check(folder)
    with pytest.raises(FullDiskError, match="missing"):
        check(folder, ema_decay=0.9)  # another 40 kB
    folder.update(status="finished")
    check(folder, ema_decay=0.9)  # writes none


def test_checkpoint_is_as_large_as_was_said(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    path = save_safely(tmp_path / "x.pt", {"network": network.state_dict(), "optimizer": optimizer.state_dict()})
    said = start_checks.checkpoint_bytes(network)
    assert said - 2**16 < path.stat().st_size <= said


def test_shared_memory_for_what_workers_have_ready(
    folder: RunFolder, free: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # a sample has 2 * 10^3 float32; a batch 3 of them; 2 workers have 2 batches each, and one is in use
    needed = 4 * 2000 * 3 * 5
    free["memory"] = needed
    check(folder)
    free["memory"] = needed - 1
    with pytest.raises(
        StartError, match=r"/dev/shm.*num_workers=2: about 120.0 kB needed, 120.0 kB free. Lower --num_w"
    ):
        check(folder)
    check(folder, num_workers=0)
    monkeypatch.setattr(start_checks, "SHARED_MEMORY", Path("/nowhere"))
    check(folder)


def test_scans_of_the_validation_count_too(free: dict[str, int]) -> None:
    # 5 batches of 3 samples of 2 * 10^3 float32, as above; of 7 scans the 5 largest: 2 workers have 2 each, one is used
    scans = [(2, 100), (2, 200), (2, 300), (2, 400), (2, 500), (2, 600), (1, 20, 20, 30)]
    needed = 4 * 2000 * 3 * 5 + 4 * (12_000 + 2 * (600 + 500 + 400 + 300))
    options: dict[str, Any] = {"sample_shapes": [[2, 1, 10, 10, 10]], "batch_size": 3, "scan_shapes": scans}
    free["memory"] = needed
    check_validation_start(num_workers=2, **options)
    free["memory"] = needed - 1
    with pytest.raises(
        StartError, match=r"num_workers=2 and the scans of their validation: about 182.4 kB needed, 182.4 kB free. Low"
    ):
        check_validation_start(num_workers=2, **options)
    check_validation_start(num_workers=0, **options)


def test_workers_of_the_validation_open_files_too(monkeypatch: pytest.MonkeyPatch, free: dict[str, int]) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (200, 200))
    with pytest.raises(StartError, match=r"ulimit -n\): 200, about 336 needed for num_workers=2"):  # 64 + 2 * 2 * 68
        check_validation_start([[1]], 1, 2, [[1]])


def test_processes_of_a_machine_share_it(
    folder: RunFolder, free: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    free["memory"] = 8 * 120_000 - 1
    with pytest.raises(StartError, match="about 960.0 kB needed"):
        check(folder)


def test_open_files(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    limits, raised = {"now": (100, 1000)}, []
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits["now"])
    monkeypatch.setattr(resource, "setrlimit", lambda which, to: raised.append(to))
    check(folder)
    assert raised == [(200, 1000)]  # 64 + 2 workers with 4 + 2 batches of 32 each: raised where that is allowed
    limits["now"] = (40, 40)
    with pytest.raises(StartError, match=r"ulimit -n\): 40, about 200 needed for num_workers=2. Raise .*ulimit -n 200"):
        check(folder)
    limits["now"] = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    check(folder, num_workers=50)
    assert len(raised) == 1


# full disk later


def handler_in(folder: RunFolder, action: str) -> CheckpointHandler:
    folder.on_full_disk = action
    network = nn.Linear(10, 10)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    loader: Any = SimpleNamespace(sampler=SimpleNamespace(start_step=0))
    return CheckpointHandler(folder, network, optimizer, schedule, loader)


def at(step: int) -> Any:
    return SimpleNamespace(state=SimpleNamespace(iteration=step, epoch_length=9))


def files(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in (folder.path / "checkpoints").glob("*.pt"))


def fill_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, state: Mapping[str, Any]) -> None:
        path.write_bytes(b"half")
        with open("/dev/full", "wb") as file:
            torch.save({"more": torch.zeros(100_000)}, file)

    monkeypatch.setattr("mim_components.utils.tensor_files.save_to", full)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 100))


def test_full_disk_leaves_the_checkpoint_before(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = handler_in(folder, "stop")
    handler.save(at(2))
    with monkeypatch.context() as patched:
        fill_disk(patched)
        with pytest.raises(FullDiskError) as failed:
            handler.save(at(4))
    message = str(failed.value)
    # 10 * 10 weights and 10 biases in float32
    assert f"{folder.path}/checkpoints/step_00000004.pt, which needs 440 B: disk full: 100 B are free, 340 B" in message
    assert "step_00000002.pt. Make room; the same command continues" in message
    assert files(folder) == ["step_00000002.pt"] and read_checkpoint(handler.store.paths()[0])["step"] == 2


def test_full_disk_may_cost_the_checkpoint_only(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = handler_in(folder, "continue")
    with monkeypatch.context() as patched:
        fill_disk(patched)
        handler.save(at(2))
    assert files(folder) == [] and "There is no checkpoint yet. The training continues without" in folder.notes[0]
    handler.save(at(4))  # there is space again
    assert files(folder) == ["step_00000004.pt"]
    with pytest.raises(ValueError, match="on_full_disk must be one of stop, continue, got 'no'"):
        RunFolder(folder.path, on_full_disk="no")


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, torch.AcceleratorError, RuntimeError])
def test_error_of_the_device_is_not_a_full_disk(
    kind: type[RuntimeError], folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path, state: Mapping[str, Any]) -> None:
        raise kind("CUDA error: out of memory")

    monkeypatch.setattr("mim_components.utils.tensor_files.save_to", fails)
    with pytest.raises(kind, match="CUDA error: out of memory"):
        handler_in(folder, "continue").save(at(2))
    assert files(folder) == [] and folder.notes == []


def test_limit_of_file_sizes_is_named(tmp_path: Path) -> None:
    path, before = tmp_path / "x.pt", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(FullDiskError, match=r"needs 40.0 kB: files are limited to 2.0 kB \(ulimit -f\)"):
            save_safely(path, {"x": torch.ones(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    error = PermissionError(errno.EACCES, "denied")
    assert as_full_disk(error, tmp_path / "x", 1) is error
    broken = OSError(errno.EIO, "broken")
    assert as_full_disk(broken, tmp_path / "x", 1) is broken
    text = str(as_full_disk(OSError(errno.EDQUOT, "quota"), tmp_path / "no" / "x", 1))
    assert "quota; " in text and "are free" in text and free_bytes(tmp_path / "no" / "such") > 0


def test_bytes_of_nested_tensors() -> None:
    shared = torch.ones(10)
    assert tensor_bytes({"a": shared, "b": [shared, (torch.ones(5, dtype=torch.float64), 3)], "c": "x"}) == 40 + 40


# workers


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", "was killed.*memory ran out.*Lower --num_workers"),
        ("DataLoader worker (pid(s) 7) exited unexpectedly", "was killed.*The same command continues"),
        ("DataLoader timed out after 60 seconds", r"hangs: no batch for 60 s \(worker_timeout\). It was loading: a, b"),
        (
            "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that",
            "ran out of shared memory .*truncated",
        ),
        ("unable to write to file </torch_7_1_0>: No space left on device (28)", "shared memory .*shm-size"),
        ("Too many open files. Communication with the workers", "ulimit -n"),
    ],
)
def test_errors_of_workers_say_what_to_lower(raised: str, said: str) -> None:
    error = explain_worker_error(RuntimeError(raised), ["a", "b"])
    with pytest.raises(WorkerError, match=said):
        raise error or AssertionError
    elsewhere = explain_worker_error(RuntimeError(raised), [], "this command continues")
    assert "This command continues from the last checkpoint." in str(elsewhere)


def test_other_errors_are_none_of_workers() -> None:
    assert explain_worker_error(RuntimeError("mat1 and mat2 shapes")) is None
    assert explain_worker_error(ValueError("DataLoader timed out after 5 seconds")) is None
    assert explain_worker_error(WorkerError("DataLoader timed out after 5 seconds")) is None


def slow_or_dead(item: dict[str, Any]) -> dict[str, Any]:
    if item["name"] == "hangs":
        time.sleep(600)
    if item["name"] == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    return {"image": torch.zeros(1), "name": item["name"]}


# PyTorch's loader checks its workers when it is deleted, and fails on one that was just killed
@pytest.mark.filterwarnings("ignore:.*_MultiProcessingDataLoaderIter.__del__:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "said"), [("hangs", "hangs: no batch for 2.* s .*loading: hangs"), ("dies", "killed")]
)
def test_real_workers(what: str, said: str) -> None:
    dataset = KeyedDataset([{"name": "good"}, {"name": what}], slow_or_dead)
    steps, seen = StepLoader(dataset, 1, 2, num_workers=1, worker_timeout=2), []
    start = time.monotonic()
    try:
        for step in steps:
            seen += [batch["name"] for batch in step]
        raise AssertionError("nothing was raised")
    except RuntimeError as error:
        explained = explain_worker_error(error, steps.awaited_names())
        kill_workers()  # SIGTERM is ignored by them
    del step
    assert time.monotonic() - start < 20
    with pytest.raises(WorkerError, match=said):
        raise explained or AssertionError


def test_crops_that_rotations_would_turn_into_another_shape_are_refused() -> None:
    message = r"--roi_size \[64, 32, 32\]: expected the first two sides to be equal, .* set --rotate90_prob 0, or equal"
    with pytest.raises(OptionsError, match=message):
        sample_shapes([64, 32, 32], channels=1, rotate90_prob=0.1)
    assert sample_shapes([64, 32, 32], channels=1) == [[1, 1, 64, 32, 32]]
    assert sample_shapes([32, 32, 64], channels=1, rotate90_prob=0.1) == [[1, 1, 32, 32, 64]]


@pytest.mark.parametrize("name", ["btcv", "brats"])
def test_training_of_a_segmentation_checks_its_rotations(name: str) -> None:
    configs = Path(__file__).resolve().parents[2] / "bundles" / f"mim_{name}_segmentation" / "configs"
    parser = ConfigParser()
    parser.read_config(configs / "train.json")
    parser.read_meta(configs / "metadata.json")
    parser["roi_size"], parser["rotate90_prob"] = [64, 32, 32], 0.5
    with pytest.raises(RuntimeError) as error:
        parser.get_parsed_content("train::sample_shapes")
    assert "set --rotate90_prob 0" in str(root_cause(error.value))
