"""Validation during training: when, on which scans, its log, and early stopping.

Early stopping is Ignite's, with a count that a resumed run continues.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping
from monai.engines import Evaluator
from monai.handlers import ValidationHandler

from mim_components.handlers.metrics import StepLines, untimed
from mim_components.handlers.spool import tracked_name
from mim_components.run.folder import RunFolder
from mim_components.utils.text import counted

logger = logging.getLogger(__name__)


def validation_share(items: Sequence[Any]) -> list[Any]:
    """The items that this process validates; each item belongs to one process.

    With more processes than items, each validates all: the mean is the same, and none is without items, on
    which MONAI's metrics would fail.

    Example:
        >>> validation_share(["a", "b", "c"])  # of one process
        ['a', 'b', 'c']
    """
    count = idist.get_world_size()
    return list(items) if len(items) < count else list(items[idist.get_rank() :: count])


class Validation(ValidationHandler):
    """MONAI's handler, also run after the last step; later handlers find the metrics in `state.validation`.

    `state.validation` is None after a step that was not validated.

    Args:
        evaluator: evaluator to run.
        interval: optimizer steps between two validations.
        targets: column names of the metric's details (classes or regions), for `dice_<target>`.

    Raises:
        ValueError: `interval` is less than 1.

    Example:
        >>> from ignite.metrics import Average
        >>> from monai.engines import SupervisedEvaluator
        >>> options = {"iteration_update": lambda engine, dice: dice, "key_val_metric": {"val_mean_dice": Average()}}
        >>> evaluator = SupervisedEvaluator("cpu", [0.25, 0.75], torch.nn.Identity(), **options)
        >>> trainer = Engine(lambda engine, batch: None)
        >>> Validation(evaluator, interval=2).attach(trainer)
        >>> show = lambda engine: print(engine.state.iteration, engine.state.validation)
        >>> _ = trainer.add_event_handler(Events.ITERATION_COMPLETED, show)
        >>> _ = trainer.run(range(3))  # the last step is validated too
        1 None
        2 {'val_mean_dice': 0.5}
        3 {'val_mean_dice': 0.5}
    """

    def __init__(self, evaluator: Evaluator, interval: int, targets: Sequence[str] = ()) -> None:
        if interval < 1:
            raise ValueError(f"the interval between validations must be at least 1 step, got {interval}.")
        super().__init__(interval, evaluator, epoch_level=False)
        self.targets = tuple(targets)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    @untimed
    def __call__(self, engine: Any) -> None:
        """Validate, if due."""
        step = engine.state.iteration
        engine.state.validation = None
        if step % self.interval and step != engine.state.epoch_length:
            return
        assert self.validator is not None
        self.validator.run(1)
        engine.state.validation = self._numbers()

    def _numbers(self) -> dict[str, float]:
        state: Any = self.validator.state if self.validator is not None else None
        numbers = {name: float(value) for name, value in state.metrics.items() if _is_number(value)}
        details = getattr(state, "metric_details", {}).get("val_mean_dice")
        if self.targets and details is not None:
            means = torch.nanmean(torch.as_tensor(details, dtype=torch.float64).reshape(-1, len(self.targets)), dim=0)
            numbers |= {f"dice_{name}": value for name, value in zip(self.targets, means.tolist(), strict=True)}
            if bool(means.isnan().all()):
                numbers["val_mean_dice"] = math.nan  # no scan has any target: MONAI's mean of nothing is 0
        return numbers


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, torch.Tensor) and value.numel() == 1)


class ValidationLog:
    """Write every validation to a file of JSON lines, to the log and to the tracker.

    Args:
        folder: run folder, for `validation.jsonl`; its tracker gets the numbers. Resuming a run removes lines
            of repeated steps.
        metric: name of the metric shown in the log.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> trainer = Engine(lambda engine, numbers: setattr(engine.state, "validation", numbers))
        >>> with TemporaryDirectory() as place:
        ...     ValidationLog(RunFolder(place), metric="dice").attach(trainer)
        ...     _ = trainer.run([None, {"dice": 0.5, "dice_spleen": math.nan}])
        ...     print(Path(place, "validation.jsonl").read_text(), end="")
        {"step": 2, "dice": 0.5, "dice_spleen": null}
    """

    def __init__(self, folder: RunFolder, metric: str) -> None:
        self.folder = folder
        self.lines = StepLines(folder, "validation.jsonl")
        self.metric = metric

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, after the validation."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def start(self, engine: Engine) -> None:
        """Remove lines of repeated steps."""
        self.lines.rewind(engine.state.iteration)

    def __call__(self, engine: Any) -> None:
        """Write, if this step was validated."""
        numbers = engine.state.validation
        if numbers is None:
            return
        # JSON has no NaN, the score of a class that no scan has
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self.lines.append(engine.state.iteration, finite)
        others = ", ".join(f"{name} {value:.3f}" for name, value in numbers.items() if name != self.metric)
        logger.info(
            "validation after step %d/%d: %s %.4f%s",
            engine.state.iteration,
            engine.state.epoch_length,
            self.metric,
            numbers[self.metric],
            f" ({others})" if others else "",
        )
        if self.folder.tracker is not None:
            sent = {tracked_name(name, "val_"): value for name, value in finite.items() if value is not None}
            self.folder.tracker.log_numbers(sent, engine.state.iteration)


class EarlyStop:
    """End the training after `patience` validations without a better metric.

    Args:
        folder: run folder, whose checkpoints keep the count.
        metric: name of the metric among those of the validation; larger is better.
        patience: number of validations; 0 = never stop early.

    Raises:
        ValueError: `patience` is negative.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> trainer = Engine(lambda engine, dice: setattr(engine.state, "validation", {"dice": dice}))
        >>> with TemporaryDirectory() as place:
        ...     EarlyStop(RunFolder(place), "dice", patience=2).attach(trainer)
        >>> trainer.run([0.5, 0.75, 0.5, 0.25, 0.875]).iteration  # the fourth is the second without a better one
        4
    """

    def __init__(self, folder: RunFolder, metric: str, patience: int = 0) -> None:
        if patience < 0:
            raise ValueError(f"early_stop_patience must be 0 (off) or more validations, got {patience}.")
        self.folder = folder
        self.metric = metric
        self.patience = patience
        self._stopping: EarlyStopping | None = None
        self._stopped = (0, 0)  # after a step, of so many

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, after the validation."""
        self.folder.keep("early_stop", self)
        if self.patience:
            self.folder.at_end(self)
            self._stopping = EarlyStopping(self.patience, self._score, engine)
            engine.add_event_handler(Events.STARTED, self.start)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def start(self, engine: Engine) -> None:
        """End at once a run that was interrupted between stopping and finishing."""
        if self._stopping is not None and self._stopping.counter >= self.patience:
            engine.terminate()
            self._note(engine)

    def _score(self, engine: Any) -> float:
        score = float(engine.state.validation[self.metric])
        return -math.inf if math.isnan(score) else score

    def __call__(self, engine: Any) -> None:
        """Count, if this step was validated."""
        if engine.state.validation is not None and self._stopping is not None:
            self._stopping(engine)
            if self._stopping.counter >= self.patience:
                self._note(engine)

    def _note(self, engine: Engine) -> None:
        self._stopped = (engine.state.iteration, engine.state.epoch_length or 0)

    @property
    def summary(self) -> str:
        """One line for the end of the run; empty if it was not stopped early."""
        step, steps = self._stopped
        if not step or step == steps:
            return ""
        validations = counted(self.patience, "validation")
        return f"Stopped early at step {step} of {steps}: {validations} without a better {self.metric}"

    def state_dict(self) -> dict[str, Any]:
        """The count and the best score so far."""
        return {} if self._stopping is None else dict(self._stopping.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the count."""
        if state and self._stopping is not None:
            self._stopping.load_state_dict(state)
