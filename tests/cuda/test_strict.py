"""The bundles of the three tasks on a device that errors when devices mix; how often a step waits for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.slow
TASKS = ("pretraining", "segmentation", "classification")


@pytest.fixture(scope="module")
def seen(program: Callable[..., Any], extension: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The result of every task, or its traceback."""
    return program("strict", tmp_path_factory.mktemp("strict"), extension("strict"))


def test_the_device_refuses_what_cuda_refuses(seen: dict[str, Any]) -> None:
    assert len(seen["mixes"]) == 4
    assert all(text.startswith("Expected all tensors to be on the same device") for text in seen["mixes"])


@pytest.mark.parametrize("task", TASKS)
def test_a_bundle_trains_continues_evaluates_and_infers(task: str, seen: dict[str, Any]) -> None:
    assert not isinstance(seen[task], str), seen[task][-4000:]
    steps = {part: [int(step) for step in waits] for part, waits in seen[task].items()}
    assert steps == {"first": [1, 2, 3, 4, 5], "second": [4, 5, 6, 7, 8]}  # from the checkpoint after step 3


@pytest.mark.parametrize("task", TASKS)
def test_a_step_waits_once_and_a_logged_one_twice(task: str, seen: dict[str, Any]) -> None:
    for part, plain in (("first", "2"), ("first", "5"), ("second", "5"), ("second", "7")):
        assert seen[task][part][plain] == {"aten::_local_scalar_dense": 1}  # all is finite
    assert seen[task]["first"]["4"] == {"aten::_local_scalar_dense": 1, "copy to the host": 1}  # all numbers at once
