"""A batch lost with its worker; run/test_start_checks.py tests other failures of workers."""

from __future__ import annotations

import pytest
from torch.utils.data import DataLoader, Dataset

from mim_components.data.load.loader import WorkerError, explain_worker_error


class Lost(Dataset):
    """Items whose reading raises the error that the main process gets when a worker is gone."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> object:
        raise self.error


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), EOFError()], ids=["reset", "end"])
def test_connection_to_a_worker_that_is_lost(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        next(iter(DataLoader(Lost(error))))
    with pytest.raises(WorkerError, match="was killed.* It was loading: a. Lower --num_workers.*The same command"):
        raise explain_worker_error(caught.value, ["a"]) or AssertionError


def test_other_connections_are_none_of_workers() -> None:
    with pytest.raises(ConnectionError) as caught:
        raise ConnectionResetError(104, "a server")
    assert explain_worker_error(caught.value) is None
