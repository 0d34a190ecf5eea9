"""Steps whose loss or gradient is not finite: unchanged state, messages, and the steps that follow."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ignite.distributed as idist
import pytest
import torch
from ignite.engine import Engine, Events
from monai.inferers import SimpleInferer
from monai.transforms import RandRotate90d
from torch import Tensor, nn

from mim_components.data.load.dataset import KeyedDataset
from mim_components.data.load.sampler import StepSampler
from mim_components.engines import FinetuneStep
from mim_components.engines.nonfinite import NonFiniteError, NonFiniteGuard
from mim_components.engines.pretraining import PretrainStep
from mim_components.engines.step import OptimizerStep
from mim_components.handlers import UpdateAverage, averaged_network
from mim_components.handlers.metrics import StepLines
from mim_components.run import RunFolder
from mim_components.run.checkpoints import CheckpointStore
from mim_tools.rebuild_batch import describe, main, rebuild_batches


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    made = RunFolder(tmp_path / "run").begin("digest", "run")
    yield made
    made.release()


class Levels(nn.Module):
    """A pre-training network with one weight for the reconstruction, and one that no loss term uses."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Linear(1, 1, bias=False)
        self.head = nn.Linear(1, 1, bias=False)

    def forward(self, images: tuple[Tensor, ...], masked: Any, num_visible: Any) -> Any:
        return SimpleNamespace(value=self.decoder(images[0].flatten(1).mean(1, keepdim=True)), context=())


def level_loss(output: Any, levels: Any, progress: float) -> dict[str, Tensor]:
    term = output.value.mean()
    return {"loss": term + 0.0, "reconstruction_level1": term}


def pretrain_batch(value: float, name: str) -> dict[str, Any]:
    image = torch.full((1, 1, 1, 2, 2, 2), value)
    return {"image_level1": image, "masked_level1": torch.zeros(1, 1, 8, dtype=torch.bool), "name": [name]}


def finetune_batch(value: float, name: str) -> dict[str, Any]:
    return {"image": torch.full((1, 1), value), "label": torch.zeros(1, 1), "name": [name]}


def make_engine(task: str) -> Any:
    network = Levels() if task == "pretrain" else nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    return SimpleNamespace(
        network=network,
        optimizer=optimizer,
        loss_function=level_loss if task == "pretrain" else lambda output, label: (output - label).mean(),
        inferer=SimpleInferer(),
        state=SimpleNamespace(device=torch.device("cpu"), iteration=1),
    )


def loader_of(accumulation: int = 2) -> Any:
    """The part of a loader that a step needs."""
    return SimpleNamespace(sampler=StepSampler(3, 9, accumulation, seed=4))


def make_step(task: str, folder: RunFolder | None = None, **options: Any) -> OptimizerStep:
    if task == "pretrain":
        return PretrainStep(1, loader_of(), folder=folder, max_norm=1.0, **options)
    return FinetuneStep(loader_of(), folder, 1.0, **options)


def step_with(task: str, step: OptimizerStep, engine: Any, *values: float) -> dict[str, Any]:
    make = pretrain_batch if task == "pretrain" else finetune_batch
    return step(engine, [make(value, f"scan_{value:g}.nii.gz") for value in values])


def state_of(engine: Any) -> list[Tensor]:
    """Weights, moments and step counts."""
    tensors = [value.clone() for value in engine.network.state_dict().values()]
    return tensors + [x.clone() for each in engine.optimizer.state.values() for x in each.values()]


@pytest.mark.parametrize("task", ["pretrain", "finetune"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_stop_leaves_weights_momentum_and_a_report(folder: RunFolder, task: str, bad: float) -> None:
    sampler = StepSampler(num_items=3, num_steps=9, global_batch_size=2, seed=4)
    step, engine = make_step(task, folder), make_engine(task)
    CheckpointStore(folder.path / "checkpoints").save(1, {"network": {}})
    step_with(task, step, engine, 1.0, 2.0)  # gives the optimizer a momentum
    before = state_of(engine)
    engine.state.iteration = 3
    with pytest.raises(NonFiniteError, match=r"step 3 is not finite \(loss .*were not updated") as failed:
        step_with(task, step, engine, 2.0, bad)
    assert all(torch.equal(a, b) for a, b in zip(before, state_of(engine), strict=True))
    message = str(failed.value)
    term = "reconstruction_level1" if task == "pretrain" else "loss"
    assert f"First: {term} of scan_{bad:g}.nii.gz" in message and "\n  scan_2.nii.gz\n  scan_" in message
    assert f"Last good checkpoint: {folder.path / 'checkpoints' / 'step_00000001.pt'}" in message
    path = folder.path / "nonfinite_step_00000003.json"
    assert f"rebuild_batch {path}" in message
    report = json.loads(path.read_text(), parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert (report["step"], report["seed"], report["ranks"][0]["rank"]) == (3, 4, 0)
    good, poor = report["ranks"][0]["micro_batches"]
    # the third step has the samples 4 and 5 of the stream, of the epoch 4 // 3 = 1
    assert [good["samples"], poor["samples"]] == [[list(sampler.item(4))], [list(sampler.item(5))]]
    assert good["samples"][0][0] == 1
    assert isinstance(good["terms"]["loss"], float) and poor["terms"]["loss"] in ("nan", "inf", "-inf")
    assert report["parameters"] == ["decoder.weight" if task == "pretrain" else "weight"]


@pytest.mark.parametrize("task", ["pretrain", "finetune"])
def test_skipped_step_is_as_if_it_had_not_been(task: str, folder: RunFolder) -> None:
    step, engine = make_step(task, folder, on_nonfinite="skip"), make_engine(task)
    plain, reference = make_step(task), make_engine(task)
    reference.network.load_state_dict(engine.network.state_dict())
    for values in ((1.0, 2.0), (1.0, math.nan), (3.0, 0.5)):
        output = step_with(task, step, engine, *values)
        if math.isfinite(sum(values)):
            step_with(task, plain, reference, *values)
    assert all(torch.equal(a, b) for a, b in zip(state_of(engine), state_of(reference), strict=True))
    assert float(output["skipped_steps"]) == 1 and step.guard.summary.startswith("1 step skipped")
    assert (folder.path / "nonfinite_step_00000001.json").exists()


def test_the_schedule_goes_on_and_the_first_step_may_be_skipped() -> None:
    engine = make_engine("finetune")
    schedule = torch.optim.lr_scheduler.LambdaLR(engine.optimizer, lambda step: 1 / (1 + step))
    step_with("finetune", make_step("finetune", on_nonfinite="skip"), engine, 1.0, math.nan)
    schedule.step()  # PyTorch warns if the optimizer was not called before
    assert engine.optimizer.param_groups[0]["lr"] == 0.05


def test_more_in_a_row_than_allowed_stop_also_across_a_restart() -> None:
    skipping = {"on_nonfinite": "skip", "max_skipped": 2}
    step, engine = make_step("finetune", **skipping), make_engine("finetune")
    for value in (math.nan, math.nan, 1.0, math.nan):  # the finite step resets the count
        step_with("finetune", step, engine, value, 1.0)
    again = make_step("finetune", **skipping)
    again.guard.load_state_dict(step.guard.state_dict())
    step = again
    assert float(step_with("finetune", step, engine, math.nan, 1.0)["skipped_steps"]) == 4
    with pytest.raises(
        NonFiniteError, match=r"3 steps in a row are not finite \(max_skipped 2\); .*[\s\S]*no checkpoint"
    ):
        step_with("finetune", step, engine, math.nan, 1.0)


def test_loss_that_is_not_finite_counts_even_where_the_gradient_is() -> None:
    engine = make_engine("finetune")
    engine.loss_function = lambda output, label: output.mean() + math.inf
    with pytest.raises(NonFiniteError, match=r"^the loss of step 1 is not finite .*First: loss of scan_1"):
        step_with("finetune", make_step("finetune"), engine, 1.0, 1.0)


def test_norm_too_large_for_float32() -> None:
    engine = make_engine("finetune")
    engine.network = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(engine.network.weight)
    with pytest.raises(NonFiniteError, match="First: the norm, which is too large"):  # the square of 1e30 is
        FinetuneStep(loader_of(1))(engine, [{"image": torch.full((1, 2), 1e30), "label": torch.zeros(1, 1)}])


def test_gradient_alone_names_the_parameter() -> None:
    engine = make_engine("finetune")
    engine.loss_function = lambda output, label: (output - output.detach()).abs().sqrt().mean()  # 0, and slope 1 / 0
    with pytest.raises(NonFiniteError, match="the gradient of step 1 is not finite .loss 0.*First: gradient of weight"):
        step_with("finetune", make_step("finetune"), engine, 1.0, 1.0)


def test_disk_that_is_full_does_not_hide_the_error(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mim_components.engines.nonfinite.write_text_safely", full)
    with pytest.raises(NonFiniteError, match="is not finite"):
        step_with("finetune", make_step("finetune", folder), make_engine("finetune"), 1.0, math.nan)


def test_every_process_decides_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    step = make_step("finetune")
    monkeypatch.setattr(idist, "get_world_size", lambda: 2)
    monkeypatch.setattr(idist, "all_reduce", lambda value, op: torch.zeros(()))  # the other one has a NaN
    monkeypatch.setattr(idist, "all_gather", lambda own: [own, {"rank": 1, "micro_batches": [OTHER]}])
    with pytest.raises(NonFiniteError, match=r"First: loss of scan_of_the_other[\s\S]*scan_1[\s\S]*scan_of_the_other"):
        step_with("finetune", step, make_engine("finetune"), 1.0, 1.0)


OTHER = {"samples": None, "names": ["scan_of_the_other"], "terms": {"loss": "nan"}}


def test_average_does_not_follow_a_skipped_step(folder: RunFolder) -> None:
    engine, network = Engine(lambda engine, batch: None), nn.Linear(1, 1)
    averaged = averaged_network(network, 0.5)
    assert averaged is not None
    UpdateAverage(folder, averaged, network).attach(engine)
    engine.add_event_handler(Events.ITERATION_STARTED, lambda e: setattr(e.state, "skipped", e.state.iteration == 1))
    engine.run(range(2), max_epochs=1)
    assert averaged.n_averaged == 1


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="on_nonfinite must be one of stop, skip, got 'go'"):
        NonFiniteGuard("go")
    with pytest.raises(ValueError, match="max_skipped must be at least 1, got 0"):
        NonFiniteGuard("skip", 0)


def test_numbers_that_are_not_finite_are_null_in_the_file(folder: RunFolder) -> None:
    StepLines(folder, "lines").append(1, {"loss": math.nan, "norm": math.inf, "rate": 0.5})
    assert json.loads((folder.path / "lines").read_text()) == {"step": 1, "loss": None, "norm": None, "rate": 0.5}


# the recreated batch


class Dataset(KeyedDataset):
    """Three images with random rotations."""

    def __init__(self) -> None:
        data = [{"image": torch.arange(9.0).view(1, 3, 3) + 10 * i, "name": f"scan_{i}"} for i in range(3)]
        super().__init__(data, RandRotate90d("image", prob=1.0), seed=1)


def run_until_report(folder: RunFolder) -> list[Any]:
    """Run until a step is reported; returns the batches of that step."""
    dataset, sampler = Dataset(), StepSampler(3, 9, 2, seed=1)
    batches = [[dataset[key] for key in keys] for keys in sampler.samples_of(4)]
    engine = make_engine("finetune")
    engine.network, engine.state.iteration = nn.Sequential(nn.Flatten(), nn.Linear(9, 1)), 5
    engine.loss_function = lambda output, label: output.mean() * math.nan
    loaded = [
        {"image": items[0]["image"][None], "label": torch.zeros(1), "name": [items[0]["name"]]} for items in batches
    ]
    with pytest.raises(NonFiniteError):
        FinetuneStep(SimpleNamespace(sampler=sampler), folder)(engine, copy.deepcopy(loaded))
    return loaded


def test_batch_is_made_again(folder: RunFolder) -> None:
    loaded = run_until_report(folder)
    again = rebuild_batches(folder.path / "nonfinite_step_00000005.json", Dataset())
    assert len(again) == 2
    for first, second in zip(loaded, again, strict=True):
        assert torch.equal(first["image"], torch.as_tensor(second["image"])) and first["name"] == second["name"]


def test_command_makes_it_from_the_configuration_of_the_run(
    folder: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_until_report(folder)
    monkeypatch.setattr("mim_components.data.load.dataset.TestDataset", Dataset, raising=False)
    dataset = {"_target_": "mim_components.data.load.dataset.TestDataset"}
    folder.update(config={"prepared": {}, "train": {"dataset": dataset}})
    assert main([str(folder.path / "nonfinite_step_00000005.json")]) == 0
    printed = capsys.readouterr().out
    assert "step 5, first: loss of scan_" in printed and "1x1x3x3" in printed and "0 not finite" in printed


def test_values_that_are_not_finite_are_counted() -> None:
    lines = list(describe({"image": torch.tensor([1.0, math.nan, 3.0]), "none": torch.tensor([math.nan]), "name": "x"}))
    assert "1 to 3, 1 not finite" in lines[0] and "nan to nan, 1 not finite" in lines[1] and len(lines) == 2


def test_report_without_samples(folder: RunFolder) -> None:
    step = make_step("finetune")
    step.guard = NonFiniteGuard(folder=folder)
    with pytest.raises(NonFiniteError):
        step_with("finetune", step, make_engine("finetune"), math.nan)
    with pytest.raises(ValueError, match="does not say which samples"):
        rebuild_batches(folder.path / "nonfinite_step_00000001.json", Dataset())
