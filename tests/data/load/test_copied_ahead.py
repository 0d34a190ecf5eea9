"""Batches copied to CUDA ahead of their step, with recorded streams."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mim_components.data.load import loader as loader_module
from mim_components.data.load.loader import StepLoader, copied_ahead


class Items:
    """Samples whose value is their key."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, key: tuple[int, int]) -> torch.Tensor:
        return torch.tensor(key)


class Streams:
    """Replaces `torch.cuda`: records the calls on its two streams, in order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.inside = "computing"

    def Stream(self, device: torch.device) -> str:  # noqa: N802
        return "copying"

    def current_stream(self, device: torch.device) -> Any:
        return SimpleNamespace(wait_stream=lambda stream: self.log.append(f"wait for {stream}"))

    @contextmanager
    def stream(self, name: str) -> Iterator[None]:
        self.inside = name
        yield
        self.inside = "computing"


class Pinned(torch.Tensor):
    """A tensor whose copies are recorded."""

    cuda: Streams

    def to(self, device: torch.device, non_blocking: bool = False) -> Pinned:  # type: ignore[override]
        assert non_blocking
        self.cuda.log.append(f"{self.cuda.inside}: copy {int(self.item())}")
        return self

    def record_stream(self, stream: object) -> None:
        self.cuda.log.append(f"keep {int(self.item())}")


def test_the_next_batch_is_copied_while_a_step_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Pinned.cuda = Streams()
    monkeypatch.setattr(loader_module.torch, "cuda", cuda)

    def batches() -> Iterator[dict[str, Any]]:
        for number in range(3):
            cuda.log.append(f"load {number}")
            yield {"image": torch.tensor(float(number)).as_subclass(Pinned), "name": [f"scan_{number}"]}

    names = []
    for batch in copied_ahead(batches(), torch.device("cuda")):
        names += batch["name"]
        cuda.log.append(f"step {len(names) - 1}")
    assert names == ["scan_0", "scan_1", "scan_2"]
    assert cuda.log == [
        "load 0", "copying: copy 0",
        "wait for copying", "keep 0", "load 1", "copying: copy 1", "step 0",
        "wait for copying", "keep 1", "load 2", "copying: copy 2", "step 1",
        "wait for copying", "keep 2", "step 2",
    ]  # fmt: skip


def test_steps_have_their_micro_batches_whatever_is_copied_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_ahead(batches: Iterator[Any], device: torch.device) -> Iterator[Any]:
        following = next(batches, None)
        while following is not None:
            batch, following = following, next(batches, None)
            yield batch

    plain = StepLoader(Items(), num_steps=3, global_batch_size=4, batch_size=2)
    ahead = StepLoader(Items(), num_steps=3, global_batch_size=4, batch_size=2)
    monkeypatch.setattr(loader_module, "copied_ahead", one_ahead)
    ahead.device = torch.device("cuda")
    assert [[batch.tolist() for batch in step] for step in ahead] == [
        [batch.tolist() for batch in step] for step in plain
    ]
    assert ahead.awaited == []
