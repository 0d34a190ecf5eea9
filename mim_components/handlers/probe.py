"""Probe the encoder during training, and keep the best."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import nn

from mim_components.handlers.metrics import StepLines
from mim_components.metrics.probe.probe import FeatureProbe
from mim_components.run.folder import RunFolder
from mim_components.weights.contract import InputContract
from mim_components.weights.pretrained import save_encoder

logger = logging.getLogger(__name__)


class ProbeHandler:
    """Every `interval` steps and at the last one, probe the encoder; write the best to `encoder_best.safetensors`.

    Before the first step the untrained encoder is probed, and intensity with position. Scores are appended to
    `probe.jsonl`; the tracker gets `probe_dice` and `probe_knn`. The training is unaffected, bit for bit: nothing
    draws from its generators. The first process probes while the others wait, at most as long as processes wait for
    each other.

    Args:
        folder: run folder; its tracker gets the scores, its checkpoints keep the best.
        encoder: encoder that is trained, without wrappers.
        contract: its input contract; the step is filled in.
        probe: probe on labelled scans; None only with `interval` 0.
        interval: steps between two probes; 0 = never.

    Raises:
        ValueError: `interval` is negative.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from types import SimpleNamespace
        >>> dice = iter([0.1, 0.2, 0.5, 0.4])  # untrained, intensity and position, step 1, step 2
        >>> probe = lambda encoder: SimpleNamespace(dice=next(dice), knn=0.5, class_dice={})
        >>> contract = InputContract("hybrid", "nano", 1, 8, (16, 16, 16), ((16, 16, 16),))
        >>> trainer = Engine(lambda engine, batch: None)
        >>> with TemporaryDirectory() as place:
        ...     handler = ProbeHandler(RunFolder(place), nn.Linear(1, 1), contract, probe, interval=1)
        ...     handler.attach(trainer)
        ...     _ = trainer.run(range(2))
        ...     handler.summary
        'Best Dice of the probe: 0.5000 at step 1; its weights are encoder_best.safetensors'
    """

    def __init__(
        self,
        folder: RunFolder,
        encoder: nn.Module,
        contract: InputContract,
        probe: FeatureProbe | None = None,
        interval: int = 0,
    ) -> None:
        if interval < 0:
            raise ValueError(f"probe_interval must be 0 (off) or more steps, got {interval}.")
        self.folder = folder
        self.lines = StepLines(folder, "probe.jsonl")
        self.encoder = encoder
        self.contract = contract
        self.probe = probe if interval else None
        self.interval = interval
        self.best = -math.inf
        self.step = 0

    @property
    def path(self) -> Path:
        """File of the best encoder."""
        return self.folder.path / "models" / "encoder_best.safetensors"

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, after the tracker and before the checkpoints."""
        self.folder.keep("probe", self, since_version=True)
        self.folder.at_end(self)
        if self.probe is not None:
            engine.add_event_handler(Events.STARTED, self.start)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def start(self, engine: Engine) -> None:
        """Remove lines of repeated steps; probe the initial encoder."""
        step = engine.state.iteration
        self.lines.rewind(step or -1)
        if self.best > -math.inf and not self.path.exists():
            self.folder.note(f"{self.path}, the encoder of step {self.step}, is missing: the next is kept instead.")
            self.best, self.step = -math.inf, 0
        if step == 0:
            self._run(0)

    def __call__(self, engine: Engine) -> None:
        """Probe, if due, and keep the encoder if it is the best."""
        step = engine.state.iteration
        if step % self.interval and step != engine.state.epoch_length:
            return
        dice = self._run(step)
        if not dice > self.best:
            return
        with self.folder.unless_full("better encoders"):
            if idist.get_rank() == 0:
                save_encoder(self.encoder, self.path, replace(self.contract, step=step))
            self.best, self.step = dice, step

    def _run(self, step: int) -> float:
        """Probe and return the mean Dice, in all processes."""
        dice = 0.0
        if idist.get_rank() == 0:
            assert self.probe is not None
            result = self.probe(self.encoder)
            numbers = {"probe_dice": result.dice, "probe_knn": result.knn}
            if step == 0:
                raw = self.probe(None)
                numbers |= {"raw_dice": raw.dice, "raw_knn": raw.knn}
            classes = {f"probe_dice_{name}": value for name, value in result.class_dice.items()}
            self.lines.append(step, numbers | classes)
            if self.folder.tracker is not None:
                self.folder.tracker.log_numbers(numbers, step)
            logger.info("probe after step %d: Dice %.4f, kNN %.4f", step, result.dice, result.knn)
            dice = result.dice
        if idist.get_world_size() == 1:
            return dice
        # a plain number would be sent as float32
        return float(torch.as_tensor(idist.broadcast(torch.tensor(dice, dtype=torch.float64), src=0)))

    @property
    def summary(self) -> str:
        """One line for the end of the run; empty if no encoder was kept."""
        if not self.step:
            return ""
        return f"Best Dice of the probe: {self.best:.4f} at step {self.step}; its weights are {self.path.name}"

    def state_dict(self) -> dict[str, Any]:
        """The best Dice and its step."""
        return {"best": self.best, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the best Dice and its step."""
        self.best, self.step = float(state["best"]), int(state["step"])
