"""Set-up and tear-down of distributed runs; data/prepare/test_nodes.py tests the joint work of two processes."""

from __future__ import annotations

import pytest
import torch

from mim_components.run import processes
from mim_components.run.processes import (
    is_lost_process,
    is_silent_process,
    local_device,
    start_processes,
    stop_processes,
)


def test_without_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="needs torchrun: torchrun --nproc_per_node"):
        start_processes()


@pytest.mark.parametrize("timeout", [60, 600])
def test_process_must_have_the_time_to_say_that_its_worker_hangs(
    timeout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match=f"process_timeout must be longer than worker_timeout, got {timeout} and 600:"):
        start_processes(timeout=timeout, worker_timeout=600)


@pytest.mark.parametrize(("machines", "found"), [("1", False), ("2", True)])
def test_restarted_processes_do_not_find_what_the_dead_ones_left(
    machines: str, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = torch.distributed.HashStore()
    monkeypatch.setenv("GROUP_WORLD_SIZE", machines)
    for restart, there in (("0", True), ("1", found)):  # each machine counts its own restarts
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restart)
        part = processes._of_this_start(store)
        if restart == "0":
            part.set("address", "127.0.0.1")
        assert part.check(["address"]) is there


# as worded by gloo and NCCL
CLOSED = "[/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:23421. This is typically caused by"
RESET = "[/gloo/transport/tcp/pair.cc:547] Read error [127.0.0.1]:23421: Connection reset by peer"
WAITED = "[/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 15000ms for recv operation to complete"
WAITED_TOO = "Application timeout caused pair closure"
REMOTE = "NCCL error in: ncclRemoteError: A call failed possibly due to a network error or a remote process exiting"


@pytest.mark.parametrize(
    ("error", "lost", "silent"),
    [
        (RuntimeError(CLOSED), True, False),
        (RuntimeError(RESET), True, False),
        (torch.distributed.DistBackendError(REMOTE), True, False),
        (RuntimeError(WAITED), False, True),
        (RuntimeError(WAITED_TOO), False, True),
        (RuntimeError("Connection closed by peer"), False, False),  # such as one of MLflow
        (ValueError(WAITED), False, False),
        (ConnectionResetError("Connection reset by peer"), False, False),
    ],
)
def test_errors_about_another_process(error: Exception, lost: bool, silent: bool) -> None:
    assert (is_lost_process(error), is_silent_process(error)) == (lost, silent)


def test_device_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert local_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert local_device() == torch.device("cuda:3")
    monkeypatch.delenv("LOCAL_RANK")
    assert local_device() == torch.device("cuda:0")


def test_ending_what_was_not_begun_does_nothing() -> None:
    stop_processes()
    assert not torch.distributed.is_initialized()
