"""The stream of samples: the same however a step is divided and after a restart, one permutation per epoch."""

from __future__ import annotations

import pytest

from mim_components.data.load.sampler import StepSampler, accumulation_steps

Sample = tuple[int, int]


def steps_of(
    num_devices: int, batch_size: int, start: int = 0, seed: int = 0, num_items: int = 7
) -> list[list[Sample]]:
    """Samples of each of 6 steps of 12, over all processes."""
    steps: list[list[Sample]] = [[] for _ in range(start, 6)]
    for rank in range(num_devices):
        sampler = StepSampler(num_items, 6, 12, batch_size, seed, rank, num_devices)
        sampler.start_step = start
        samples = list(sampler)
        assert len(samples) == len(sampler) == (6 - start) * 12 // num_devices
        per_step = 12 // num_devices
        for number in range(6 - start):
            steps[number] += samples[number * per_step : (number + 1) * per_step]
    return steps


@pytest.mark.parametrize(
    ("num_devices", "batch_size"), [(1, 1), (1, 4), (1, 12), (2, 1), (2, 3), (3, 2), (4, 3), (12, 1)]
)
def test_step_has_the_same_samples_however_it_is_divided(num_devices: int, batch_size: int) -> None:
    whole = steps_of(1, 12)
    assert [sorted(step) for step in steps_of(num_devices, batch_size)] == [sorted(step) for step in whole]


def test_every_epoch_is_a_permutation_of_all_volumes_and_each_another() -> None:
    stream = [sample for step in steps_of(1, 4) for sample in step]  # 72 samples = 10 epochs of 7 and 2 more
    orders = [[index for of, index in stream if of == epoch] for epoch in range(11)]
    assert [epoch for epoch, _ in stream] == [number // 7 for number in range(72)]
    assert all(sorted(order) == list(range(7)) for order in orders[:10]) and len(orders[10]) == 2
    assert len({tuple(order) for order in orders}) == 11


def test_epoch_may_end_inside_a_step_and_be_shorter_than_it() -> None:
    step = steps_of(2, 3, num_items=5)[0]  # 12 samples of 5 volumes: epochs 0, 1 and two of epoch 2
    assert sorted(step)[:10] == [(epoch, index) for epoch in (0, 1) for index in range(5)]
    assert [epoch for epoch, _ in sorted(step)[10:]] == [2, 2]
    assert {index for step in steps_of(1, 1, num_items=1) for _, index in step} == {0}


@pytest.mark.parametrize(("num_devices", "batch_size"), [(1, 1), (2, 3)])
def test_start_step_continues_the_same_stream_also_on_other_devices(num_devices: int, batch_size: int) -> None:
    whole = [sorted(step) for step in steps_of(1, 12)]
    for start in range(7):
        assert [sorted(step) for step in steps_of(num_devices, batch_size, start)] == whole[start:]


def test_epochs_are_passes_over_the_items() -> None:
    assert StepSampler(24, 18, 4).epochs == 3  # 18 x 4 / 24
    assert StepSampler(5, 1, 2).epochs == 0.4


def test_order_of_micro_batches_on_each_device() -> None:
    alone = list(StepSampler(100, 1, 8, 8, rank=0, num_devices=1))
    # 8 samples = 2 micro-batches x 2 devices x 2: device 1 gets the second pair of each four
    assert list(StepSampler(100, 1, 8, 2, rank=0, num_devices=2)) == [alone[k] for k in (0, 1, 4, 5)]
    assert list(StepSampler(100, 1, 8, 2, rank=1, num_devices=2)) == [alone[k] for k in (2, 3, 6, 7)]


def test_seed_decides_the_order_and_iterating_again_repeats_it() -> None:
    assert steps_of(1, 1, seed=1) != steps_of(1, 1, seed=0)
    sampler = StepSampler(7, 6, 12, 4)
    assert list(sampler) == list(sampler)
    assert [sampler.item(k) for k in (30, 3, 30)] == [list(sampler)[k] for k in (30, 3, 30)]


@pytest.mark.parametrize(
    ("global_batch_size", "batch_size", "num_devices", "steps"), [(12, 1, 1, 12), (12, 3, 2, 2), (12, 3, 4, 1)]
)
def test_accumulation_by_hand(global_batch_size: int, batch_size: int, num_devices: int, steps: int) -> None:
    assert accumulation_steps(global_batch_size, batch_size, num_devices) == steps
    assert StepSampler(5, 1, global_batch_size, batch_size, rank=0, num_devices=num_devices).accumulation == steps


@pytest.mark.parametrize(
    ("global_batch_size", "batch_size", "num_devices", "nearest", "devices"),
    [(12, 5, 1, "10, 15", ""), (13, 2, 3, "12, 18", ""), (2, 1, 4, "4", "1 or 2"), (0, 2, 1, "2", ""),
     (12, 2, 4, "8, 16", "1 or 2 or 3 or 6")],
)  # fmt: skip
def test_nearest_valid_values(
    global_batch_size: int, batch_size: int, num_devices: int, nearest: str, devices: str
) -> None:
    text = (
        f"multiple of batch_size x devices = {batch_size} x {num_devices}, got {global_batch_size}; "
        f"nearest valid values: {nearest}\\. Set --global_batch_size\\."
        + (f" A run that is continued keeps it: use {devices} devices\\.$" if devices else "$")
    )
    with pytest.raises(ValueError, match=text):
        accumulation_steps(global_batch_size, batch_size, num_devices)


@pytest.mark.parametrize(
    ("global_batch_size", "batch_size", "text"),
    [(4, 0, "batch_size must be at least 1, got 0"), (-3, 2, "got -3; nearest valid values: 2")],
)
def test_sizes_below_1_are_refused(global_batch_size: int, batch_size: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        accumulation_steps(global_batch_size, batch_size, 1)


def test_no_volumes_are_refused() -> None:
    with pytest.raises(ValueError, match="num_items must be at least 1, got 0"):
        StepSampler(0, 1, 1)
