"""The probe during a training, with known figures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from safetensors.torch import load_file
from torch import nn

from mim_components.handlers import ProbeHandler
from mim_components.handlers.reports.probe import ProbeReport
from mim_components.metrics import ProbeResult
from mim_components.metrics.segmentation import CaseResult, TargetScore
from mim_components.networks import MiM
from mim_components.run import RunFolder
from mim_components.weights.contract import InputContract, read_contract

CONTRACT = InputContract("hybrid", "nano", 1, 8, (16, 16, 16), ((16, 16, 16),))


def result(dice: float) -> ProbeResult:
    case = CaseResult("a", {"organ": TargetScore(dice, float("nan"), 1.0, 1.0)})
    return ProbeResult([case], {"background": 1.0, "organ": 0.5})


class FakeProbe:
    """Returns the Dice values of a list, one per call with an encoder; 0.05 without one."""

    seed = 0

    def __init__(self, *values: float, data: str = "scans", classes: int = 1, **settings: Any) -> None:
        self.values = iter(values)
        self.prepared = SimpleNamespace(digest=data)
        self.labels = SimpleNamespace(values={classes: 1})
        self.settings = settings
        self.probed: list[nn.Module] = []

    def __call__(self, encoder: nn.Module | None) -> ProbeResult:
        if encoder is not None:
            self.probed.append(encoder)
        return result(0.05 if encoder is None else next(self.values))


class Sent:
    """Replaces a tracker, and records what is sent."""

    def __init__(self) -> None:
        self.numbers: dict[int, dict[str, float]] = {}

    def log_numbers(self, numbers: dict[str, float], step: int) -> None:
        self.numbers[step] = numbers


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    made = RunFolder(tmp_path / "run").begin("digest", "run")
    yield made
    made.release()


@pytest.fixture
def encoder() -> nn.Module:
    return nn.Linear(1, 1)


def train(handler: ProbeHandler, encoder: Any, steps: int, start: int = 0) -> None:
    """Train; each step sets the encoder's weight to the number of the step."""

    def step(engine: Engine, batch: Any) -> None:
        encoder.weight.data.fill_(engine.state.iteration)

    engine = Engine(step)
    engine.add_event_handler(Events.STARTED, lambda e: setattr(e.state, "iteration", start))
    handler.attach(engine)
    engine.run(range(steps), max_epochs=1, epoch_length=steps)


def lines(folder: RunFolder) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder.path / "probe.jsonl").read_text().splitlines()]


def handler_of(folder: RunFolder, encoder: nn.Module, *values: float, tracker: Any = None) -> ProbeHandler:
    folder.tracker = tracker
    return with_probe(folder, encoder, FakeProbe(*values))


def with_probe(folder: RunFolder, encoder: nn.Module, probe: Any) -> ProbeHandler:
    return ProbeHandler(folder, encoder, CONTRACT, probe, 2)


def test_best_encoder_is_kept(folder: RunFolder, encoder: nn.Module) -> None:
    sent = Sent()
    handler = handler_of(folder, encoder, 0.1, 0.3, 0.2, 0.25, tracker=sent)
    train(handler, encoder, 5)
    # before the first step, after 2 and 4, and after the last
    assert [(row["step"], row["probe_dice"]) for row in lines(folder)] == [(0, 0.1), (2, 0.3), (4, 0.2), (5, 0.25)]
    assert lines(folder)[0]["raw_dice"] == 0.05 and lines(folder)[1]["probe_dice_organ"] == 0.3
    assert sent.numbers[2] == {"probe_dice": 0.3, "probe_knn": 0.75}
    assert load_file(handler.path)["weight"].item() == 2
    assert read_contract(handler.path).step == 2
    assert handler.summary == "Best Dice of the probe: 0.3000 at step 2; its weights are encoder_best.safetensors"


def test_continued_run_keeps_the_best(folder: RunFolder, encoder: nn.Module) -> None:
    first = handler_of(folder, encoder, 0.1, 0.3, 0.2)
    train(first, encoder, 3)
    second = handler_of(folder, encoder, 0.2, 0.4)
    second.load_state_dict(first.state_dict())
    train(second, encoder, 6, start=2)  # 3 is repeated
    assert [row["step"] for row in lines(folder)] == [0, 2, 4, 6]
    assert (second.best, second.step, read_contract(second.path).step) == (0.4, 6, 6)
    third = handler_of(folder, encoder, 0.3)
    third.load_state_dict(second.state_dict())
    third.path.unlink()
    train(third, encoder, 8, start=6)
    assert (third.best, third.step) == (0.3, 8) and "is missing; the next is kept" in folder.notes[-1]


@pytest.mark.parametrize("change", [{"data": "others"}, {"classes": 2}, {"voxels_per_class": 64}])
def test_scores_of_another_probe_are_not_compared(
    folder: RunFolder, encoder: nn.Module, change: dict[str, Any]
) -> None:
    first = handler_of(folder, encoder, 0.1, 0.3)
    train(first, encoder, 2)
    changed = FakeProbe(0.02, 0.2, **change)
    second = with_probe(folder, encoder, changed)
    second.load_state_dict(first.state_dict())
    train(second, encoder, 4, start=2)
    # 0.2 of the new probe is less than 0.3 of the old one, and yet the best
    assert (second.best, second.step, read_contract(second.path).step) == (0.2, 4, 4)
    assert "of step 2: the probe has other scans, classes or settings than then; the next" in folder.notes[-1]
    rows = lines(folder)
    assert [(row["step"], row["probe_dice"]) for row in rows] == [(0, 0.1), (2, 0.3), (0, 0.02), (4, 0.2)]
    names = [row["probe"] for row in rows]
    assert names == [first.digest[:8]] * 2 + [second.digest[:8]] * 2 and names[0] != names[2]
    # killed before a checkpoint of the new probe, and continued: its scores of step 0 are there
    third = with_probe(folder, encoder, FakeProbe(0.2, **change))
    third.load_state_dict(first.state_dict())
    train(third, encoder, 4, start=2)
    assert [(row["step"], row["probe_dice"]) for row in lines(folder)] == [(0, 0.1), (2, 0.3), (0, 0.02), (4, 0.2)]


def test_the_place_of_the_list_is_no_difference(folder: RunFolder, encoder: nn.Module) -> None:
    one, two = (with_probe(folder, encoder, FakeProbe(datalist=name, seed=0)) for name in ("a.json", "b.json"))
    assert one.digest == two.digest


def test_probe_that_begins_in_a_continued_run_has_the_initial_encoder(folder: RunFolder, encoder: nn.Module) -> None:
    probe = FakeProbe(0.1, 0.3)
    state = torch.get_rng_state()
    train(with_probe(folder, encoder, probe), encoder, 4, start=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert [(row["step"], "raw_dice" in row) for row in lines(folder)] == [(0, True), (4, False)]
    untrained, last = probe.probed
    torch.manual_seed(0)
    weights = MiM(1, (16, 16, 16), "nano", num_levels=2).encoder.state_dict()  # as the run began
    assert all(torch.equal(value, weights[name]) for name, value in untrained.state_dict().items())
    assert last is encoder


def test_best_file_of_another_step_is_not_the_best_of_the_checkpoint(folder: RunFolder, encoder: nn.Module) -> None:
    first = handler_of(folder, encoder, 0.1, 0.3)
    train(first, encoder, 2)
    checkpoint = first.state_dict()
    train(with_probe(folder, encoder, FakeProbe(0.5)), encoder, 4, start=2)  # killed after it wrote a better one
    second = handler_of(folder, encoder, 0.2)
    second.load_state_dict(checkpoint)
    train(second, encoder, 4, start=2)
    assert "holds that of step 4; the next is kept" in folder.notes[-1]
    assert (second.best, second.step, read_contract(second.path).step) == (0.2, 4, 4)


def test_off_does_nothing(folder: RunFolder, encoder: nn.Module) -> None:
    handler = ProbeHandler(folder, encoder, CONTRACT)
    train(handler, encoder, 3)
    assert not (folder.path / "probe.jsonl").exists() and not handler.path.exists() and handler.summary == ""
    with pytest.raises(ValueError, match=r"probe_interval must be 0 \(off\) or more steps, got -1"):
        ProbeHandler(folder, encoder, CONTRACT, interval=-1)


def test_dice_that_is_no_number_is_never_the_best(folder: RunFolder, encoder: nn.Module) -> None:
    handler = handler_of(folder, encoder, 0.1, float("nan"))
    train(handler, encoder, 2)
    assert not handler.path.exists() and lines(folder)[1]["probe_dice"] is None
    assert torch.isfinite(torch.tensor(lines(folder)[1]["probe_knn"]))


def test_table_of_the_report() -> None:
    class Probe:
        class labels:  # noqa: N801
            names = ("background", "organ")

    fake: Any = Probe()
    table = ProbeReport({"encoder": result(0.5), "raw": result(float("nan"))}, {}, fake).table()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert cells[0] == ["in %", "Dice, encoder", "Dice, raw", "kNN, encoder", "kNN, raw"]
    assert cells[2:] == [
        ["background", "-", "-", "100.0", "100.0"],
        ["organ", "50.0", "-", "50.0", "50.0"],
        ["mean", "50.0", "-", "75.0", "75.0"],
    ]


def test_report_says_which_scans_were_in_the_pre_training() -> None:
    fake: Any = None
    notes = [ProbeReport({}, {}, fake, seen)._seen(3) for seen in (None, [], ["a", "b"])]
    assert "is unknown: the weights have no training_volumes.txt" in notes[0]
    assert "on none of the validation scans" in notes[1]
    assert "on 2 of the 3 validation scans, with the same voxels" in notes[2] and notes[2].endswith(": a, b.")
