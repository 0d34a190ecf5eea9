"""The spread of context vectors, by hand, and the warning of a collapse."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ignite.distributed as idist
import pytest
import torch

from mim_components.handlers import metrics
from mim_components.handlers.collapse import CollapseWarning, ContextSpread
from mim_components.run import RunFolder

NAME = "context_std_level1_2"


def spread_of(*passes: torch.Tensor) -> float:
    spread = ContextSpread()
    for context in passes:
        spread.add([context])
    return float(spread.take()[NAME])


def test_equal_vectors_have_none_whatever_their_length() -> None:
    assert spread_of(torch.tensor([[3.0, 4.0], [6.0, 8.0], [0.3, 0.4]])) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_orthonormal_vectors_have_one_whatever_their_number(count: int) -> None:
    assert spread_of(torch.eye(7)[:count]) == pytest.approx(1.0)


def test_it_is_the_root_of_1_minus_the_mean_cosine() -> None:
    # unit vectors at 0 and 60 degrees: cosine 1/2; in coordinates: variances 1/2 (1 - 1/2)^2 and 1/2 (sqrt(3)/2)^2
    vectors = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(0.75)]])
    assert spread_of(vectors) == pytest.approx(math.sqrt(0.5))
    assert spread_of(vectors) == pytest.approx(math.sqrt(torch.nn.functional.normalize(vectors).var(0).sum()))


def test_passes_and_processes_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    whole = spread_of(vectors)
    assert spread_of(vectors[:1], vectors[1:1], vectors[1:]) == pytest.approx(whole)
    monkeypatch.setattr(idist, "get_world_size", lambda: 2)
    monkeypatch.setattr(idist, "all_reduce", lambda total: 2 * total)  # the other process has the same vectors
    assert spread_of(vectors[:3], vectors[3:]) == pytest.approx(spread_of_twice(vectors))


def spread_of_twice(vectors: torch.Tensor) -> float:
    unit = torch.nn.functional.normalize(torch.cat([vectors, vectors]).double())
    return math.sqrt(unit.var(0).sum())


def test_a_single_vector_has_no_spread() -> None:
    assert math.isnan(spread_of(torch.ones(1, 3)))
    spread = ContextSpread()
    spread.add([torch.eye(2), torch.ones(2, 2)])
    assert {name: round(float(value), 6) for name, value in spread.take().items()} == {
        "context_std_level1_2": 1.0,
        "context_std_level2_3": 0.0,
    }
    assert ContextSpread().take() == {}


def test_windows_of_a_checkpoint_follow_the_vectors_to_their_device() -> None:
    before, after = ContextSpread(size=2), ContextSpread(size=2)
    before.add([torch.eye(2)])
    before.take()  # a full window, in a checkpoint on the CPU
    after.load_state_dict(before.state_dict())
    after.add([torch.ones(1, 2, device="meta")])
    assert after.take()[NAME].device.type == "meta"


def test_steps_add_up_until_a_window_is_full() -> None:
    spread, numbers = ContextSpread(size=4), []
    # unit vectors along x and y: 4 of one window, then 4 equal ones, then 2 more unrelated ones
    for vectors in (torch.eye(2), torch.eye(2), torch.ones(2, 2), torch.ones(2, 2), torch.eye(2)):
        spread.add([vectors])
        numbers.append(float(spread.take()[NAME]))
    # 2 of 6 pairs are equal: mean cosine 1/3
    full = math.sqrt(1 - 1 / 3)
    assert numbers == pytest.approx([1.0, full, full, 0.0, 0.0], abs=1e-7) and spread.full == {NAME: 2}


def test_vectors_that_are_not_finite_are_left_out() -> None:
    spread = ContextSpread()
    spread.add([torch.tensor([[1.0, 0.0], [math.nan, 1.0], [0.0, 1.0]])])
    assert float(spread.take()[NAME]) == pytest.approx(1.0)


def test_children_without_content_are_not_measured() -> None:
    spread = ContextSpread(size=4)
    air = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    spread.add([torch.cat([torch.eye(3)[:2], air])], [torch.tensor([True, True, False, False])])
    assert float(spread.take()[NAME]) == pytest.approx(1.0) and spread.full == {NAME: 1}
    spread.add([air], [torch.tensor([False, False])])
    spread.add([air], [torch.tensor([False, False])])
    assert math.isnan(float(spread.take()[NAME]))


def test_continued_run_has_the_same_numbers() -> None:
    vectors = torch.randn(20, 2, 3, generator=torch.Generator().manual_seed(0))
    one, first, second = ContextSpread(size=5), ContextSpread(size=5), ContextSpread(size=5)
    numbers = [[], []]
    for step, pair in enumerate(vectors):
        if step == 7:  # in the middle of a window
            second.load_state_dict(torch.load(saved(first.state_dict()), weights_only=True))
        for spread, seen in zip((one, second if step >= 7 else first), numbers, strict=True):
            spread.add([pair])
            seen.append(float(spread.take()[NAME]))
    assert numbers[0] == numbers[1] and one.full == second.full == {NAME: 6}


def saved(state: dict[str, Any]) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


# the warning


class Run:
    """Steps with vectors, judged at every tenth step."""

    def __init__(self, folder: RunFolder, **options: Any) -> None:
        self.spread = ContextSpread()
        self.warning = CollapseWarning(folder, SimpleNamespace(spread=self.spread), **{"after": 0, **options})
        self.engine: Any = SimpleNamespace(state=SimpleNamespace(iteration=0, epoch_length=1000, step_metrics=None))
        self.warning.start(self.engine)

    def step(self, vectors: torch.Tensor) -> None:
        self.engine.state.iteration += 1
        self.spread.add([vectors])
        numbers = {name: float(value) for name, value in self.spread.take().items()}
        self.engine.state.step_metrics = None if self.engine.state.iteration % 10 else numbers | {"loss": 0.0}
        self.warning(self.engine)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    made = RunFolder(tmp_path)
    yield made
    made.release()


def test_noisy_steps_of_two_unrelated_vectors_never_warn(folder: RunFolder) -> None:
    random = torch.Generator().manual_seed(0)
    run, lowest = Run(folder, bound=0.3), 1.0
    for _ in range(1000):
        vectors = torch.randn(2, 2, generator=random)  # in a plane, where two vectors are often nearly parallel
        lowest = min(lowest, spread_of(vectors))
        run.step(vectors)
    assert lowest < 0.01 and folder.notes == []


def test_equal_crops_of_one_volume_in_a_step_are_no_collapse(folder: RunFolder) -> None:
    random = torch.Generator().manual_seed(0)
    run = Run(folder, bound=0.3)
    for _ in range(200):
        run.step(torch.randn(1, 8, generator=random).expand(2, 8))
    assert folder.notes == []


def test_equal_vectors_warn_once_and_within_two_windows(folder: RunFolder) -> None:
    random = torch.Generator().manual_seed(0)
    run = Run(folder, bound=0.01, after=0.02)
    for _ in range(101):
        run.step(torch.randn(2, 8, generator=random))
    assert folder.notes == []
    count = 0
    while not folder.notes and count < 200:
        run.step(torch.ones(2, 8))
        count += 1
    assert 2 * count <= 2 * 64 + 20  # two windows, and the steps to the next judgement
    assert folder.notes[0].startswith(f"{NAME} is 0.0000 at step ") and "below 0.01: the alignment" in folder.notes[0]
    for _ in range(100):
        run.step(torch.ones(2, 8))
    assert len(folder.notes) == 1


def test_what_began_in_the_first_steps_or_before_a_resume_is_not_judged(folder: RunFolder) -> None:
    random = torch.Generator().manual_seed(0)
    run = Run(folder, bound=0.01, after=0.06)
    for _ in range(60):
        run.step(torch.ones(2, 8))  # a new network
    again = Run(folder, bound=0.01)
    again.spread.load_state_dict(run.spread.state_dict())
    again.warning.start(again.engine)
    for each in (run, again):
        for _ in range(100):
            each.step(torch.randn(2, 8, generator=random))
    assert folder.notes == []


def test_bound_is_checked(folder: RunFolder) -> None:
    with pytest.raises(ValueError, match=r"collapse_bound must be in \[0, 1\), 0 = no warning, got 1"):
        CollapseWarning(folder, SimpleNamespace(spread=ContextSpread()), 1)


def test_short_name_in_the_log() -> None:
    assert metrics._short("context_std_level1_2") == "std12"
    assert metrics._short("empty_children_level3") == "empty3"
