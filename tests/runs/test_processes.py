"""Beginning and ending several processes; what two of them do together is in data/test_distributed.py."""

from __future__ import annotations

import pytest
import torch

from mim_components.runs.processes import local_device, start_processes, stop_processes


def test_without_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="needs torchrun: torchrun --nproc_per_node"):
        start_processes()


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
