"""Runs that are killed, or told to stop, and go on as if nothing had been."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.runs import PRETRAIN, SEGMENTATION, Bundle, assert_same, finish, start

pytestmark = pytest.mark.slow

Data = Callable[[Bundle], dict[str, str]]
Reference = Callable[[Bundle], Path]


@pytest.mark.parametrize(
    ("bundle", "workers"),
    [
        pytest.param(
            PRETRAIN, 0,
            marks=pytest.mark.fault("A1", fault="kill -9 mid-epoch, 0 workers", injection="SIGKILL at a random step",
                                    expected="weights equal to an undisturbed run, bit for bit"),
        ),
        pytest.param(
            SEGMENTATION, 0,
            marks=pytest.mark.fault("A1s", fault="kill -9 mid-epoch, segmentation",
                                    injection="SIGKILL at a random step",
                                    expected="weights equal to an undisturbed run, bit for bit"),
        ),
    ],
)  # fmt: skip
def test_killed(bundle: Bundle, workers: int, data_of: Data, reference: Reference, tmp_path: Path) -> None:
    options = {**data_of(bundle), "num_workers": workers}
    run = start(bundle, tmp_path / "run", **options)
    run.wait_for(random.randrange(1, bundle.steps - 1))
    run.kill()
    assert run.wait() == -9
    assert not (run.output / "models" / "encoder.safetensors").exists()
    finish(start(bundle, run.output, **options))
    assert_same(run.output, reference(bundle))
