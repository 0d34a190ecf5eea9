"""The spread of context vectors, by hand, and the warning."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ignite.distributed as idist
import pytest
import torch

from mim_components.collapse import CollapseWarning, ContextSpread
from mim_components.handlers import metrics
from mim_components.runs import RunFolder


def spread_of(*passes: torch.Tensor) -> float:
    spread = ContextSpread()
    for context in passes:
        spread.add([context])
    return float(spread.take()["context_std_level1_2"])


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


def test_a_single_vector_has_no_spread_and_a_step_forgets_the_one_before() -> None:
    assert math.isnan(spread_of(torch.ones(1, 3)))
    spread = ContextSpread()
    spread.add([torch.eye(2), torch.ones(2, 2)])
    assert {name: round(float(value), 6) for name, value in spread.take().items()} == {
        "context_std_level1_2": 1.0,
        "context_std_level2_3": 0.0,
    }
    assert spread.take() == {}


def test_warns_once_below_the_bound_and_not_at_the_start(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    warning = CollapseWarning(folder, bound=0.05, after=10)

    def at(step: int, numbers: dict[str, float] | None) -> Any:
        return SimpleNamespace(state=SimpleNamespace(iteration=step, step_metrics=numbers))

    name = "context_std_level1_2"
    for step, value in ((10, 0.01), (20, 0.06), (30, math.nan), (40, 0.04), (50, 0.03)):
        warning(at(step, {name: value, "loss": 0.0}))
    warning(at(60, None))
    assert len(folder.notes) == 1 and folder.notes[0].startswith(f"{name} is 0.0400 at step 40, below 0.05: ")
    folder.release()
    with pytest.raises(ValueError, match=r"collapse_bound must be in \[0, 1\), 0 = no warning, got 1"):
        CollapseWarning(folder, 1)


def test_short_name_in_the_log() -> None:
    assert metrics._short("context_std_level1_2") == "std12"
