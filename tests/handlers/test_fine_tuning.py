"""Step, averaging, early stopping, best model and validation of a fine-tuning, on a trainer with known numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ignite.distributed as idist
import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from monai.inferers import SimpleInferer
from torch import nn

from mim_components.data.load.loader import StepLoader
from mim_components.data.load.sampler import StepSampler
from mim_components.data.prepare.cases import PreparedCases
from mim_components.engines import FinetuneStep, steps_of
from mim_components.engines.begin import begin_fine_tuning, length_of, log_finetune_plan
from mim_components.engines.nonfinite import NonFiniteError
from mim_components.engines.training import summary
from mim_components.handlers import (
    BestModel,
    EarlyStop,
    UpdateAverage,
    Validation,
    ValidationLog,
    averaged_network,
    validation_share,
)
from mim_components.run import RunFolder
from mim_components.utils.files import FullDiskError
from mim_components.utils.tensor_files import DamagedCheckpointError, read_checkpoint, save_safely
from mim_components.weights import ModelSettings, load_trained, on_device
from mim_components.weights.contract import WrongWeightsError
from mim_components.weights.trained import TrainedNetwork

SETTINGS = ModelSettings("mim_test", {"network": "hybrid_swin_unetr", "spacing": (1.0, 2.0, 3.0)}, ("spleen", "liver"))


class FakeEvaluator(Evaluator):
    """Returns the metrics of a list, one entry per run."""

    def __init__(self, metrics: list[float], details: list[list[float]] | None = None) -> None:  # creates no engine
        self.values = iter(metrics)
        self.details = details
        self.runs = 0
        self.state: Any = None

    def run(self, global_epoch: int = 1) -> None:
        self.runs += 1
        self.state = SimpleNamespace(
            metrics={"val_mean_dice": next(self.values), "text": "no number"},
            metric_details={} if self.details is None else {"val_mean_dice": torch.tensor(self.details)},
        )


def trainer_with(*handlers: Any, steps: int, start: int = 0) -> Engine:
    """Run an engine whose steps only count."""
    engine = Engine(lambda engine, batch: None)
    engine.add_event_handler(Events.STARTED, lambda e: setattr(e.state, "iteration", start))
    for handler in handlers:
        handler.attach(engine)
    engine.run(range(steps), max_epochs=1, epoch_length=steps)
    return engine


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    made = RunFolder(tmp_path / "run").begin("digest", "run")
    yield made
    made.release()


# how long


def cases_of(number: int) -> PreparedCases:
    return PreparedCases(training=[{"name": str(each)} for each in range(number)], validation=[])


def test_steps_of_a_number_of_epochs() -> None:
    assert steps_of(3, cases_of(24), 4, default=7) == 18
    assert steps_of(1, cases_of(5), 2, default=7) == 3  # 2.5 rounded up
    assert steps_of(0.01, cases_of(5), 2, default=7) == 1
    with pytest.raises(ValueError, match="must be positive, got 0, 5, 2"):
        steps_of(0, cases_of(5), 2, default=7)


@pytest.mark.parametrize("num_items", [1, 6, 24, 387])
def test_steps_without_a_number_of_epochs_do_not_depend_on_the_cases(num_items: int) -> None:
    assert steps_of(None, cases_of(num_items), 1, default=25_000) == 25_000


@pytest.mark.parametrize(
    ("cases", "steps", "batch", "crops", "text"),
    [
        (24, 25_000, 1, 4, "25,000 steps of 1 scan x 4 crops = 1,042 epochs of 24 scans"),  # 25,000 / 24 = 1,041.7
        (2_514, 62_850, 4, 1, "62,850 steps of 4 scans = 100 epochs of 2,514 scans"),
        (8, 200, 1, 2, "200 steps of 1 scan x 2 crops = 25 epochs of 8 scans"),
        (3, 1, 1, 1, "1 step of 1 scan = 0.333 epochs of 3 scans"),
        (1, 9, 1, 1, "9 steps of 1 scan = 9 epochs of 1 scan"),
    ],
)
def test_length_in_steps_and_epochs(cases: int, steps: int, batch: int, crops: int, text: str) -> None:
    assert length_of(StepSampler(cases, steps, batch), crops) == text


def test_plan_says_the_length_in_steps_and_epochs(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    prepared = SimpleNamespace(notes=[], bad=[])
    with caplog.at_level("INFO", logger="mim_components.engines.begin"):
        log_finetune_plan(
            folder, prepared, StepSampler(24, 25_000, 1), nn.Linear(9, 9), torch.device("cpu"), 500, num_samples=4
        )
    end = "25,000 steps of 1 scan x 4 crops = 1,042 epochs of 24 scans; validation every 500 steps"
    assert [message for message in caplog.messages if message.endswith(f"0.0 M parameters; {end}")]


def test_training_scans_stand_beside_the_model(folder: RunFolder) -> None:
    folder.release()
    cases = [{"name": name, "digest": ""} for name in "abc"]
    prepared = PreparedCases(cases[:2], cases[2:], images={"a": "2", "b": "1", "c": "3"})
    loader = StepLoader(prepared.training, num_steps=1, global_batch_size=1)
    again = RunFolder(folder.path.parent / "other")
    begin_fine_tuning(again, prepared, loader, nn.Linear(1, 1), torch.device("cpu"), "x", 1, [[1, 1, 8, 8, 8]])
    assert (again.path / "models" / "training_volumes.txt").read_text() == "1\n2\n"
    again.release()


# step


def test_loss_is_the_mean_over_micro_batches_and_the_gradient_its_gradient() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 2.0)
    engine = SimpleNamespace(
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.5),
        loss_function=lambda output, label: (output - label).mean(),
        inferer=SimpleInferer(),
        state=SimpleNamespace(device=torch.device("cpu"), iteration=1),
    )
    batches = [
        {"image": torch.tensor([[1.0], [3.0]]), "label": torch.zeros(2, 1), "name": ["a", "a"]},
        {"image": torch.tensor([[4.0], [4.0]]), "label": torch.ones(2, 1), "name": ["b", "b"]},
    ]
    output = FinetuneStep(SimpleNamespace(sampler=StepSampler(1, 1, 2)))(engine, batches)
    # losses 2 * 2 - 0 = 4 and 8 - 1 = 7; gradients 2 and 4, mean 3; weight 2 - 0.5 * 3
    assert output["loss"].item() == 5.5 and output["gradient_norm"].item() == 3.0
    assert network.weight.item() == 0.5
    assert output["names"] == ["a", "b"]


def test_not_finite_names_the_scans_and_leaves_the_weights() -> None:
    network = nn.Linear(1, 1, bias=False)
    before = network.weight.detach().clone()
    engine = SimpleNamespace(
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.5),
        loss_function=lambda output, label: (output * math.nan).mean(),
        inferer=SimpleInferer(),
        state=SimpleNamespace(device=torch.device("cpu"), iteration=7),
    )
    batch = {"image": torch.ones(1, 1), "label": torch.zeros(1, 1), "name": ["scan 3"]}
    with pytest.raises(NonFiniteError, match=r"step 7 is not finite[\s\S]*scan 3"):
        FinetuneStep(SimpleNamespace(sampler=StepSampler(1, 1, 1)))(engine, [batch])
    assert torch.equal(network.weight, before)


# average


def test_average_follows_the_weights(folder: RunFolder) -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 1.0)
    averaged = averaged_network(network, 0.75)
    assert averaged is not None
    nn.init.constant_(network.weight, 5.0)
    trainer_with(UpdateAverage(folder, averaged, network), steps=1)
    assert averaged.module.weight.item() == 5.0  # PyTorch's first update takes the weights as they are
    nn.init.constant_(network.weight, 1.0)
    trainer_with(UpdateAverage(folder, averaged, network), steps=1)
    assert averaged.module.weight.item() == 0.75 * 5 + 0.25 * 1


def test_no_average_by_default(folder: RunFolder) -> None:
    assert averaged_network(nn.Linear(1, 1)) is None
    trainer_with(UpdateAverage(folder, None, nn.Linear(1, 1)), steps=1)
    with pytest.raises(ValueError, match=r"ema_decay must be in \[0, 1\), 0 = off, got 1.0"):
        averaged_network(nn.Linear(1, 1), 1.0)


# validation


def test_validation_runs_at_the_interval_and_after_the_last_step() -> None:
    evaluator = FakeEvaluator([0.1, 0.2, 0.3])
    seen: list[tuple[int, Any]] = []
    validation = Validation(evaluator, 2)
    engine = Engine(lambda engine, batch: None)
    validation.attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.append((e.state.iteration, e.state.validation)))
    engine.run(range(5), max_epochs=1)
    metric = "val_mean_dice"
    assert seen == [(1, None), (2, {metric: 0.1}), (3, None), (4, {metric: 0.2}), (5, {metric: 0.3})]
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        Validation(evaluator, 0)


def test_dice_of_a_target_is_its_mean_over_the_scans_that_have_it() -> None:
    evaluator = FakeEvaluator([0.5], details=[[0.4, math.nan], [0.8, 0.5]])
    engine = trainer_with(Validation(evaluator, 1, ("spleen", "liver")), steps=1)
    assert engine.state.validation == pytest.approx({"val_mean_dice": 0.5, "dice_spleen": 0.6, "dice_liver": 0.5})


def test_log_is_valid_json_and_rewinds(folder: RunFolder) -> None:
    path = folder.path / "validation.jsonl"
    evaluator = FakeEvaluator([0.1, math.nan, 0.3])
    trainer_with(Validation(evaluator, 1), ValidationLog(folder, "val_mean_dice"), steps=3)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [{"step": n, "val_mean_dice": v} for n, v in ((1, 0.1), (2, None), (3, 0.3))]
    ValidationLog(folder, "val_mean_dice").start(SimpleNamespace(state=SimpleNamespace(iteration=1)))  # type: ignore[arg-type]
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1]


def test_every_item_is_validated_by_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idist, "get_world_size", lambda: 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(idist, "get_rank", lambda rank=rank: rank)
        shares.append(validation_share([10, 11, 12, 13]))
    assert shares == [[10, 13], [11], [12]]
    assert validation_share([10, 11]) == [10, 11]  # fewer than processes: all do all


# early stop


def test_stops_after_patience_validations_without_a_better_one(folder: RunFolder) -> None:
    evaluator = FakeEvaluator([0.1, 0.4, 0.3, math.nan, 0.2, 0.9])
    stop = EarlyStop(folder, "val_mean_dice", patience=2)
    engine = trainer_with(Validation(evaluator, 1), stop, steps=6)
    assert engine.state.iteration == 4 and evaluator.runs == 4
    assert folder.ending == [stop]
    assert stop.summary == "Stopped early at step 4 of 6: 2 validations without a better val_mean_dice"


def test_summary_has_the_last_step_and_what_the_parts_say(folder: RunFolder) -> None:
    (folder.path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 70, "loss": 0.5}\n')
    tracker: Any = SimpleNamespace(page="here")
    text = summary(folder, tracker, 75, ["Stopped early"])
    assert text.startswith("Finished at step 75. Losses") and "\nStopped early\n" in text


def test_count_of_early_stop_survives_a_resume(folder: RunFolder) -> None:
    first = EarlyStop(folder, "val_mean_dice", patience=2)
    trainer_with(Validation(FakeEvaluator([0.4, 0.3]), 1), first, steps=2)
    second = EarlyStop(folder, "val_mean_dice", patience=2)
    engine = Engine(lambda engine, batch: None)
    evaluator = FakeEvaluator([0.2, 0.9])
    Validation(evaluator, 1).attach(engine)
    second.attach(engine)
    second.load_state_dict(first.state_dict())
    engine.run(range(2), max_epochs=1)
    assert engine.state.iteration == 1


def test_run_that_was_interrupted_after_it_had_stopped_does_not_go_on(folder: RunFolder) -> None:
    first = EarlyStop(folder, "val_mean_dice", patience=1)
    trainer_with(Validation(FakeEvaluator([0.4, 0.3]), 1), first, steps=4)
    second = EarlyStop(folder, "val_mean_dice", patience=1)
    engine, completed = Engine(lambda engine, batch: None), []
    second.attach(engine)
    second.load_state_dict(first.state_dict())
    engine.add_event_handler(Events.COMPLETED, lambda engine: completed.append(engine.state.iteration))
    engine.run(range(4), max_epochs=1)
    assert completed == [0]  # no step is run, but the run ends properly
    assert EarlyStop(folder, "val_mean_dice", patience=1).summary == ""


def test_early_stop_is_off_by_default(folder: RunFolder) -> None:
    stop = EarlyStop(folder, "val_mean_dice")
    engine = trainer_with(Validation(FakeEvaluator([0.4, 0.3]), 1), stop, steps=2)
    assert engine.state.iteration == 2 and stop.state_dict() == {}
    stop.load_state_dict({})
    with pytest.raises(ValueError, match="early_stop_patience must be 0"):
        EarlyStop(folder, "val_mean_dice", -1)


# best model


def weight_of(path: Path) -> float:
    return float(read_checkpoint(path)["weight"])


class Training:
    """Weight = number of the step."""

    def __init__(self, folder: RunFolder, metrics: list[float]) -> None:
        self.network = nn.Linear(1, 1, bias=False)
        self.best = BestModel(folder, self.network, "val_mean_dice", SETTINGS)
        self.validation = Validation(FakeEvaluator(metrics), 1)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.count)
        self.validation.attach(engine)
        self.best.attach(engine)

    def count(self, engine: Engine) -> None:
        nn.init.constant_(self.network.weight, float(engine.state.iteration))


def test_best_model_is_kept_with_what_it_is(folder: RunFolder) -> None:
    training = Training(folder, [0.2, 0.6, math.nan, 0.6, 0.4])
    trainer_with(training, steps=5)
    path = folder.path / "models" / "model.pt"
    assert weight_of(path) == 2.0
    facts = json.loads(path.with_suffix(".json").read_text())
    assert (facts["step"], facts["metric_value"], facts["targets"]) == (2, 0.6, ["spleen", "liver"])
    assert training.best.summary == "Best val_mean_dice: 0.6000 at step 2; its weights are models/model.pt"
    assert folder.notes == ["val_mean_dice of step 3 is not a number: no scan has any target."]


def test_a_worse_model_after_a_resume_does_not_replace_a_better_one(folder: RunFolder) -> None:
    trainer_with(Training(folder, [0.2, 0.9]), steps=2)
    again = Training(folder, [0.5, 0.95])
    again.best.load_state_dict({"best": 0.2, "step": 1})  # from a checkpoint before the best validation
    trainer_with(again, steps=3, start=1)
    # step 2 was validated with 0.5 this time: the 0.9 of models/model.json counts; step 3 beats it
    assert weight_of(folder.path / "models" / "model.pt") == 3.0
    assert (again.best.best, again.best.step) == (0.95, 3)
    worse = Training(folder, [0.5])
    worse.best.load_state_dict({"best": 0.2, "step": 1})
    trainer_with(worse, steps=3, start=2)
    assert weight_of(folder.path / "models" / "model.pt") == 3.0


@pytest.mark.parametrize("values", [[math.nan, 0.3, 0.2], [-math.inf, 0.3, 0.2]])
def test_first_validation_that_is_no_number_blocks_no_later_best(folder: RunFolder, values: list[float]) -> None:
    training, stop = Training(folder, values), EarlyStop(folder, "val_mean_dice", patience=2)
    engine = trainer_with(training, stop, steps=3)
    assert weight_of(folder.path / "models" / "model.pt") == 2.0 and training.best.best == 0.3
    assert engine.state.iteration == 3  # the early stop counts from the first number


def test_count_before_the_first_number_survives_a_resume(folder: RunFolder) -> None:
    first = Training(folder, [math.nan])
    trainer_with(first, steps=1)
    path = save_safely(folder.path / "step.pt", {"best": first.best.state_dict()})
    again = Training(folder, [0.1])
    again.best.load_state_dict(read_checkpoint(path)["best"])
    trainer_with(again, steps=2, start=1)
    assert weight_of(folder.path / "models" / "model.pt") == 2.0


def test_run_without_a_checkpoint_keeps_its_best_too(folder: RunFolder) -> None:
    trainer_with(Training(folder, [0.2, 0.9]), steps=2)
    folder.release()
    again = RunFolder(folder.path)  # killed before its first checkpoint: begins at step 0
    trainer_with(Training(again, [0.5]), steps=1)
    assert weight_of(folder.path / "models" / "model.pt") == 2.0
    (folder.path / "run.json").unlink()
    again.release()
    new = RunFolder(folder.path)  # another run: the model in the folder is not its own
    trainer_with(Training(new, [0.5]), steps=1)
    assert weight_of(folder.path / "models" / "model.pt") == 1.0
    new.release()


def test_model_of_other_settings_does_not_count(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mim_components.run.folder.current_config", lambda: {"seed": 1})
    trainer_with(Training(folder, [0.2, 0.9]), steps=2)
    folder.release()
    again = RunFolder(folder.path).begin("digest", "run")  # no checkpoint: begins at step 0 with other settings
    later = Training(again, [0.5])
    trainer_with(later, steps=1)
    assert weight_of(folder.path / "models" / "model.pt") == 1.0 and later.best.best == 0.5
    again.release()
    same = RunFolder(folder.path).begin("digest", "run")
    worse = Training(same, [0.4])
    trainer_with(worse, steps=1)
    assert worse.best.best == 0.5
    same.release()


def test_checkpoint_alone_in_a_new_folder_keeps_the_next_model(folder: RunFolder) -> None:
    training = Training(folder, [0.3])
    training.best.load_state_dict({"best": 0.9, "step": 1})
    trainer_with(training, steps=2, start=1)
    assert weight_of(folder.path / "models" / "model.pt") == 2.0 and training.best.best == 0.3
    assert "model of step 1, is missing: the next is kept instead" in folder.notes[0]


def test_full_disk_leaves_the_best_model_and_the_next_one_tries_again(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, state: Any) -> Path:
        raise FullDiskError(28, f"cannot write {path}: disk full")

    training = Training(folder, [0.2, 0.5, 0.4])
    with monkeypatch.context() as patched:
        trainer_with(training, steps=1)
        patched.setattr("mim_components.handlers.best_model.save_safely", full)
        worse = Training(folder, [0.5])
        with pytest.raises(FullDiskError, match=r"model.pt: disk full. There is no checkpoint yet. Make room"):
            trainer_with(worse, steps=2, start=1)
        folder.on_full_disk = "continue"
        worse = Training(folder, [0.5])
        trainer_with(worse, steps=2, start=1)
        assert weight_of(training.best.path) == 1.0 and worse.best.best == 0.2  # the content of the file
        assert "better models may be missing from now on" in folder.notes[0]
    trainer_with(Training(folder, [0.4]), steps=3, start=2)
    assert weight_of(training.best.path) == 3.0


def test_damaged_facts_fall_back_to_the_checkpoint(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    trainer_with(Training(folder, [0.9]), steps=1)
    (folder.path / "models" / "model.json").write_text("{")
    again = Training(folder, [0.5])
    again.best.load_state_dict({"best": 0.2, "step": 1})
    with caplog.at_level("WARNING"):
        trainer_with(again, steps=2, start=1)
    assert "model.json is damaged" in caplog.text and again.best.best == 0.5


def test_nothing_kept_is_said(folder: RunFolder) -> None:
    best = Training(folder, []).best
    assert best.summary == "No model was kept: there was no validation with val_mean_dice."


def test_last_model_is_kept_where_no_validation_is_a_number(folder: RunFolder) -> None:
    training = Training(folder, [math.nan, math.nan])
    trainer_with(training, steps=2)
    path = folder.path / "models" / "model.pt"
    text = "No val_mean_dice was a number: models/model.pt is the last model, of step 2, not the best"
    assert training.best.summary == text and weight_of(path) == 2.0
    facts = json.loads(path.with_suffix(".json").read_text())
    assert facts["metric_value"] is None and facts["step"] == 2
    assert TrainedNetwork(training.network, path, facts=facts).origin == (
        f"{path}, step 2, the last model, no validation gave a number"
    )
    again = Training(folder, [math.nan])
    trainer_with(again, steps=2, start=2)  # nothing is left to do
    assert again.best.summary == text
    better = Training(folder, [0.1])
    trainer_with(better, steps=3, start=2)
    assert weight_of(path) == 3.0 and better.best.best == 0.1


def test_validation_without_any_target_is_no_number() -> None:
    evaluator = FakeEvaluator([0.0], details=[[math.nan, math.nan], [math.nan, math.nan]])
    engine = trainer_with(Validation(evaluator, 1, ("spleen", "liver")), steps=1)
    assert all(math.isnan(value) for value in engine.state.validation.values())


# and back


def test_load_what_was_kept(folder: RunFolder) -> None:
    trainer_with(Training(folder, [0.5]), steps=1)
    network = on_device(nn.Linear(1, 1, bias=False), torch.device("cpu"))
    trained = load_trained(network, None, [folder.path], SETTINGS)
    assert network.weight.item() == 1.0 and not network.training  # type: ignore[operator]
    assert trained.origin == f"{folder.path / 'models' / 'model.pt'}, step 1, val_mean_dice 0.5000"


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (
            ModelSettings("b", {"network": "unetr", "spacing": (1, 2, 3)}, ("spleen", "liver")),
            r"network: 'hybrid_swin_unetr' in the file, 'unetr' here\nSet --network hybrid_swin_unetr",
        ),
        (
            ModelSettings("b", dict(SETTINGS.settings), ("spleen",)),
            r"targets: \['spleen', 'liver'\] in the file, \['spleen'\] here\nSet the bundle",
        ),
    ],
)
def test_other_settings_are_refused(folder: RunFolder, settings: ModelSettings, match: str) -> None:
    trainer_with(Training(folder, [0.5]), steps=1)
    with pytest.raises(WrongWeightsError, match=match):
        load_trained(nn.Linear(1, 1, bias=False), None, [folder.path], settings)


def test_weights_without_facts_must_fit(tmp_path: Path) -> None:
    torch.save({"network": {"weight": torch.ones(1, 1)}, "step": 3}, tmp_path / "step.pt")
    network = nn.Linear(1, 1, bias=False)
    trained = load_trained(network, tmp_path / "step.pt", [], SETTINGS)
    assert trained.origin == str(tmp_path / "step.pt") and network.weight.item() == 1.0
    with pytest.raises(
        WrongWeightsError, match=r"bias is absent in the file, \(5,\) in the network; .* Set --architecture"
    ):
        load_trained(nn.Linear(1, 5), tmp_path / "step.pt", [], SETTINGS)
    with pytest.raises(WrongWeightsError, match="and 1 more"):
        load_trained(nn.Sequential(nn.Linear(1, 5), nn.Linear(5, 1, bias=False)), tmp_path / "step.pt", [], SETTINGS)
    (tmp_path / "step.json").write_text("[]")
    with pytest.raises(WrongWeightsError, match="step.json: damaged"):
        load_trained(network, tmp_path / "step.pt", [], SETTINGS)


def test_checkpoint_of_a_run_is_compared_with_the_settings_of_its_model(folder: RunFolder) -> None:
    trainer_with(Training(folder, [0.5]), steps=1)
    path = folder.path / "checkpoints" / "step_00000003.pt"
    path.parent.mkdir(exist_ok=True)
    torch.save({"network": {"weight": torch.ones(1, 1)}, "step": 3}, path)
    network = nn.Linear(1, 1, bias=False)
    assert load_trained(network, path, [], SETTINGS).origin == f"{path}, step 3"  # 0.5 is the Dice of another step
    other = ModelSettings("b", dict(SETTINGS.settings), ("spleen",))
    with pytest.raises(WrongWeightsError, match="targets"):
        load_trained(network, path, [], other)


def test_checkpoint_with_an_average_gives_the_average(folder: RunFolder) -> None:
    network = nn.Linear(1, 1, bias=False)
    averaged = averaged_network(network, 0.75)
    assert averaged is not None
    nn.init.constant_(averaged.module.weight, 5.0)
    nn.init.constant_(network.weight, 1.0)
    path = folder.path / "step.pt"
    torch.save({"network": network.state_dict(), "averaged": averaged.state_dict(), "step": 3}, path)
    assert load_trained(network, path, [], SETTINGS).network.weight.item() == 5.0  # type: ignore[operator]
    nn.init.constant_(averaged.module.weight, math.nan)
    torch.save({"network": network.state_dict(), "averaged": averaged.state_dict(), "step": 3}, path)
    with pytest.raises(DamagedCheckpointError, match="weights are not finite: module.weight"):
        load_trained(network, path, [], SETTINGS)


def test_missing_weights_say_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model.pt: there is no such file. Fine-tune first"):
        load_trained(nn.Linear(1, 1), None, [tmp_path], SETTINGS)
