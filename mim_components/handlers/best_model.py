"""Keep the weights of the best validation, also across interruptions: a worse model never replaces them.

Also an exponential moving average (EMA) of the weights, PyTorch's, off by default.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mim_components.run.folder import RunFolder
from mim_components.utils.files import write_text_safely
from mim_components.utils.tensor_files import save_safely
from mim_components.weights.contract import ModelSettings

logger = logging.getLogger(__name__)


class BestModel:
    """After a validation that is better than all before, write `models/model.pt` and `models/model.json`.

    `model.pt` is a plain state dict; `model.json` describes it: settings, step and metric. The best metric is in
    every checkpoint, and `model.json` counts too: a run that continues from before its best validation keeps that
    model until there is a better one. If a checkpoint was copied into a new folder without the model, the next
    validation's model is kept. As long as no validation gives a number, the last model is kept, and labelled so.

    Args:
        folder: run folder.
        network: network whose weights are kept, without wrappers.
        metric: name of the metric among those of the validation; larger is better.
        settings: settings of the network.
        training: facts about the training for `model.json`, such as its `fold` and `label_ratio`.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> trainer = Engine(lambda engine, dice: setattr(engine.state, "validation", {"dice": dice}))
        >>> with TemporaryDirectory() as place:
        ...     best = BestModel(RunFolder(place), nn.Linear(1, 1), "dice", ModelSettings("bundle", {}, ["spleen"]))
        ...     best.attach(trainer)
        ...     _ = trainer.run([0.5, 0.75, 0.25])
        ...     best.summary
        'Best dice: 0.7500 at step 2; its weights are models/model.pt'
    """

    def __init__(
        self,
        folder: RunFolder,
        network: nn.Module,
        metric: str,
        settings: ModelSettings,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.network = network
        self.metric = metric
        self.settings = settings
        self.training = dict(training or {})
        self.best = -math.inf
        self.step = 0
        self.last = 0  # step of the model kept while no validation has given a number

    @property
    def path(self) -> Path:
        """File of the weights."""
        return self.folder.path / "models" / "model.pt"

    @property
    def _run(self) -> str | None:
        """Name of the run: a folder may hold the model of an earlier one, with other settings."""
        return self.folder.state.get("name")

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, after the validation and before the checkpoints."""
        self.folder.keep("best", self)
        self.folder.at_end(self)
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def start(self, engine: Engine) -> None:
        """Account for a model that an interrupted part of this run wrote after its last checkpoint."""
        beside = self.path.with_suffix(".json")
        if not self.path.exists():
            if self.step:
                self.folder.note(f"{self.path}, the model of step {self.step}, is missing: the next is kept instead.")
                self.best, self.step = -math.inf, 0
            return
        if not beside.exists() or (engine.state.iteration == 0 and not self.folder.continued):
            return
        try:
            kept = json.loads(beside.read_text())
            if kept.get("run", self._run) != self._run:
                return
            if kept["metric_value"] is None:
                self.last = int(kept["step"])
                return
            value, step = float(kept["metric_value"]), int(kept["step"])
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("%s is damaged (%s); the checkpoint's best metric is used.", beside, error)
            return
        if value > self.best:
            self.best, self.step = value, step

    def __call__(self, engine: Any) -> None:
        """Write, if this step was validated and is the best."""
        if engine.state.validation is None:
            return
        value = float(engine.state.validation[self.metric])
        if math.isnan(value):
            self.folder.note(f"{self.metric} of step {engine.state.iteration} is not a number: no scan has any target.")
        if not value > self.best and self.best > -math.inf:
            return
        numbered = value > self.best
        with self.folder.unless_full("better models"):
            if idist.get_rank() == 0:
                state = {name: tensor.detach().cpu().clone() for name, tensor in self.network.state_dict().items()}
                save_safely(self.path, state)
            step = engine.state.iteration
            if numbered:
                self.best, self.step = value, step  # only once written: else the next one tries again
            else:
                self.last = step
            if idist.get_rank() == 0:
                known = value if numbered else None
                facts = {**self.settings.as_dict(), "metric": self.metric, "metric_value": known, "step": step}
                facts |= {"training": self.training, "run": self._run}
                write_text_safely(self.path.with_suffix(".json"), json.dumps(facts, indent=1))
                if numbered:
                    logger.info("best model so far: %s %.4f at step %d", self.metric, value, step)
                else:
                    logger.info("the last model is kept, of step %d: no %s has been a number so far", step, self.metric)

    @property
    def summary(self) -> str:
        """One line for the end of the run."""
        if not self.step and self.last:
            return (
                f"No {self.metric} was a number: models/model.pt is the last model, of step {self.last}, not the best"
            )
        if not self.step:
            return f"No model was kept: there was no validation with {self.metric}."
        return f"Best {self.metric}: {self.best:.4f} at step {self.step}; its weights are models/model.pt"

    def state_dict(self) -> dict[str, Any]:
        """The best metric and its step."""
        return {"best": self.best, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the best metric and its step."""
        self.best, self.step = float(state["best"]), int(state["step"])


def averaged_network(network: nn.Module, decay: float = 0.0) -> AveragedModel | None:
    """A copy of `network` that follows its weights: `average = decay * average + (1 - decay) * weights` every step.

    Args:
        network: network with its initial weights, on its device, without the wrapper for several devices.
        decay: decay in [0, 1); 0 = no average, returns None.

    Raises:
        ValueError: `decay` is out of range.

    Example:
        >>> network = nn.Linear(1, 1, bias=False)
        >>> averaged_network(network, decay=0.0) is None
        True
        >>> average = averaged_network(network, decay=0.75)
        >>> average.update_parameters(network)  # the first one copies
        >>> _ = nn.init.zeros_(average.module.weight), nn.init.ones_(network.weight)
        >>> average.update_parameters(network)
        >>> average.module.weight.item()
        0.25
    """
    if not 0 <= decay < 1:
        raise ValueError(f"ema_decay must be in [0, 1), 0 = off, got {decay}.")
    if decay == 0:
        return None
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


class UpdateAverage:
    """Update the average of the weights after every step; does nothing without one.

    Args:
        folder: run folder, whose checkpoints keep the average.
        averaged: result of `averaged_network`.
        network: network that is trained.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> network = nn.Linear(1, 1, bias=False)
        >>> averaged = averaged_network(network, decay=0.75)
        >>> trainer = Engine(lambda engine, weight: nn.init.constant_(network.weight, weight))
        >>> with TemporaryDirectory() as place:
        ...     UpdateAverage(RunFolder(place), averaged, network).attach(trainer)
        >>> _ = trainer.run([0.0, 1.0])  # 0.75 * 0 + 0.25 * 1
        >>> averaged.module.weight.item()
        0.25
    """

    def __init__(self, folder: RunFolder, averaged: AveragedModel | None, network: nn.Module) -> None:
        self.folder = folder
        self.averaged = averaged
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, before validation and checkpoints."""
        if self.averaged is not None:
            self.folder.keep("averaged", self.averaged)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Update, unless the step was skipped."""
        assert self.averaged is not None
        if not getattr(engine.state, "skipped", False):
            self.averaged.update_parameters(self.network)
