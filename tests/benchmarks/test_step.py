"""The benchmark of a step: ratios, parts that add up, MONAI's auto-encoder in our sizes, steps in other processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import mae, step
from benchmarks.pretraining import Settings, Training
from benchmarks.step_parts import PARTS, Clock, _part, parts_table, write_ct

LEVELS = ((64, 64, 32), (32, 32, 32))


def test_ratios_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {"dense": [(9.0, 9.0, 1.0), (4.0, 6.0, 3.0), (6.0, 8.0, 4.0)],
               "sparse": [(9.0, 9.0, 1.0), (1.0, 3.0, 1.0), (3.0, 4.0, 1.0)]}  # fmt: skip
    calls = []

    class Fake:
        def __init__(self, settings: Settings) -> None:
            self.form, self.limit = settings.form, settings.limit
            self.numbers = iter(numbers[settings.form])

        def __call__(self) -> tuple[float, float, float]:
            calls.append(self.form)
            return next(self.numbers)

        def close(self) -> None:
            calls.append(f"{self.form} closed")

    monkeypatch.setattr(step, "StepProcess", Fake)
    dense, sparse = step.forms_table("nano", 32, 2, (4, 0), repetitions=2)
    assert calls == ["dense", "sparse"] * 3 + ["dense closed", "sparse closed"]
    assert (dense["max_volumes_per_pass"], sparse["max_volumes_per_pass"]) == ("4", "null")
    assert (dense["s/sample"], sparse["s/sample"]) == (5.0, 2.0)  # the first round does not count
    assert (sparse["times faster"], sparse["CPU times faster"], sparse["share of peak"]) == (2.5, 2.0, 0.25)


@pytest.mark.slow
def test_a_step_in_another_process() -> None:
    process = step.StepProcess(Settings("nano", 16, levels=1))
    seconds, cpu, peak = process()
    process.close()
    assert seconds > 0 and cpu > 0 and 0.1 < peak < 10
    assert process.process.exitcode == 0


def test_parts_by_hand() -> None:
    seconds = {"data": 1.0, "encoder": 2.0, "network": 5.0, "losses": 0.5, "optimizer": 0.25, "step": 10.0}
    assert [_part(part, seconds) for part in PARTS] == [1.0, 2.0, 3.0, 0.5, 4.25, 0.25]


def test_parts_of_a_step(tmp_path: Path) -> None:
    write_ct(tmp_path, (70, 66, 40))
    rows = parts_table(tmp_path, LEVELS, Settings("nano", 32, limit=1), repetitions=1)
    assert tuple(row["part"] for row in rows) == PARTS
    assert all(row["ms"] > 0 for row in rows)
    assert sum(row["share %"] for row in rows) == pytest.approx(100)


def test_clock_adds_up_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 1.5, 10.0, 12.0])
    monkeypatch.setattr("benchmarks.step_parts.perf_counter", lambda: next(times))
    clock, layer = Clock(), torch.nn.Linear(2, 2)
    clock.watch("layer", layer)
    for _ in range(2):
        layer(torch.zeros(1, 2))
    assert clock.seconds == {"layer": pytest.approx(2.5)}


def test_autoencoder_has_our_sizes() -> None:
    settings = Settings("nano", 32, levels=1, samples=2)
    network = mae.monai_autoencoder(settings)
    ours = Training(Settings("nano", 32, levels=1, encoder="vit")).network
    assert len(network.blocks) - 1 == len(ours.encoder.blocks)  # MONAI's last one is the norm
    assert len(network.decoder_blocks) - 1 == len(ours.decoder.blocks)
    prediction, masked = network(torch.rand(2, 1, 32, 32, 32))
    assert prediction.shape == (2, 64, 512)
    assert masked.sum(1).tolist() == [39, 39]  # 64 - floor(64 * 0.4), as in our network


def test_autoencoder_learns() -> None:
    network = mae.monai_autoencoder(Settings("nano", 16, levels=1))
    before = [each.detach().clone() for each in network.parameters()]
    mae.monai_step(network, torch.rand(1, 1, 16, 16, 16))()
    assert any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_dense_and_sparse_steps_are_the_same_training() -> None:
    dense, sparse = (Training(Settings("nano", 32, levels=2, form=form)) for form in ("dense", "sparse"))
    sparse.batch = dense.batch
    assert float(dense()["loss"]) == pytest.approx(float(sparse()["loss"]), rel=1e-4)
