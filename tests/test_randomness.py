"""Keyed randomness: known values, no collisions in practice, and steps independent of earlier draws."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from ignite.engine import Engine

from mim_components.randomness import SeedSteps, keyed_seed, set_determinism


def test_keyed_seed_is_the_first_four_bytes_of_the_hash_of_the_key() -> None:
    digest = hashlib.blake2b(b"(0, 'crop', 3)", digest_size=4).digest()
    assert keyed_seed(0, "crop", 3) == digest[0] + 256 * (digest[1] + 256 * (digest[2] + 256 * digest[3]))
    # in every process: a changed value would change every run that is to be repeated
    assert keyed_seed(0, "crop", 3) == 3588561809


def test_keys_in_use_do_not_collide() -> None:
    seeds = [
        keyed_seed(seed, "crop", epoch, index) for seed in (0, 1) for epoch in range(-1, 40) for index in range(50)
    ]
    seeds += [keyed_seed(seed, kind, number) for seed in (0, 1) for kind in ("step", "order") for number in range(500)]
    assert len(set(seeds)) == len(seeds) == 2 * (41 * 50 + 2 * 500)
    assert all(0 <= seed < 2**32 for seed in seeds)  # the range of numpy.random.RandomState


def draws(seed: int, steps: range, wasted: int = 0) -> list[float]:
    """A random number from PyTorch in each of the steps, in an engine that starts at the first of them."""
    numbers = []

    def step(engine: Engine, batch: None) -> None:
        numbers.append(float(torch.rand(1)))
        torch.rand(wasted)

    engine = Engine(step)
    SeedSteps(seed).attach(engine)
    engine.state.max_epochs, engine.state.epoch_length = 1, steps.stop - 1  # as MONAI's trainer does
    engine.state.iteration = steps.start - 1
    engine.run([None] * (steps.stop - 1), max_epochs=1)
    return numbers


def test_step_draws_the_same_whatever_was_drawn_before() -> None:
    whole = draws(3, range(1, 7))
    assert len(set(whole)) == 6
    assert draws(3, range(1, 7), wasted=11) == whole
    assert draws(3, range(4, 7)) == whole[3:]
    assert draws(4, range(1, 7)) != whole


def test_numpy_integers_are_the_same_key() -> None:
    assert keyed_seed(0, "crop", np.int64(3)) == keyed_seed(0, "crop", 3)


@pytest.mark.parametrize("deterministic", [True, False])
def test_cudnn_may_take_the_fastest_algorithm(deterministic: bool) -> None:
    set_determinism(3, deterministic)
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (deterministic, not deterministic)
    first = torch.rand(1)
    set_determinism(3, deterministic)
    assert torch.equal(torch.rand(1), first)
