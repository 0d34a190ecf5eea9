"""Probe the encoder during training, and keep the best."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import nn

from mim_components.handlers.metrics import StepLines, untimed
from mim_components.metrics.probe.probe import FeatureProbe
from mim_components.run.folder import RunFolder
from mim_components.utils.files import read_rows, text_digest
from mim_components.weights.contract import InputContract, read_contract
from mim_components.weights.pretrained import random_encoders, save_encoder

logger = logging.getLogger(__name__)


class ProbeHandler:
    """Every `interval` steps and at the last one, probe the encoder; write the best to `encoder_best.safetensors`.

    Before the first step the untrained encoder is probed, and intensity with position. Scores are appended to
    `probe.jsonl`; the tracker gets `probe_dice` and `probe_knn`. The training is unaffected, bit for bit: nothing
    draws from its generators. The first process probes while the others wait, at most as long as processes wait for
    each other.

    A continued run may have another probe. Scores of different scans, classes or settings are not compared: the new
    probe gets its own scores of step 0 and its own best encoder, and every line names its probe, as `probe`.

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
        >>> probe.prepared, probe.labels = SimpleNamespace(digest=""), SimpleNamespace(values={})
        >>> probe.settings = {}
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
        self.digest = "" if self.probe is None else _digest_of(self.probe)
        self.best = -math.inf
        self.step = 0
        self.best_digest = ""

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

    @untimed
    def start(self, engine: Engine) -> None:
        """Remove lines of repeated steps, drop a best encoder that cannot be compared; probe the initial encoder."""
        step = engine.state.iteration
        self.lines.rewind(step or -1)
        if self.step and (reason := self._why_dropped()):
            self.folder.note(f"The best encoder of the probe, of step {self.step}: {reason}; the next is kept instead.")
            self.best, self.step = -math.inf, 0
        if idist.get_rank() == 0 and not self._has_baseline():
            assert self.probe is not None
            encoder = self.encoder
            if step:
                device = next(encoder.parameters()).device
                encoder = random_encoders(self.contract, self.probe.seed, 1)[0].to(device)
            self._probe(encoder, 0)

    def _why_dropped(self) -> str:
        """Why the best encoder of the checkpoint is not the one to beat; "" if it is."""
        if self.best_digest != self.digest:
            return "the probe has other scans, classes or settings than then"
        try:
            found = read_contract(self.path).step
        except FileNotFoundError:
            return f"{self.path} is missing"
        except (OSError, ValueError) as error:
            return str(error)
        return "" if found == self.step else f"{self.path} holds that of step {found}"

    def _has_baseline(self) -> bool:
        rows = read_rows(self.lines.path)
        return any(row.get("probe") == self.digest[:8] and "raw_dice" in row for row in rows)

    @untimed
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
            self.best, self.step, self.best_digest = dice, step, self.digest

    def _probe(self, encoder: nn.Module, step: int) -> float:
        """Probe, write the scores, and return the mean Dice; at step 0 also intensity with position."""
        assert self.probe is not None
        result = self.probe(encoder)
        numbers = {"probe_dice": result.dice, "probe_knn": result.knn}
        if step == 0:
            raw = self.probe(None)
            numbers |= {"raw_dice": raw.dice, "raw_knn": raw.knn}
        classes = {f"probe_dice_{name}": value for name, value in result.class_dice.items()}
        self.lines.append(step, {"probe": self.digest[:8], **numbers, **classes})
        if self.folder.tracker is not None:
            self.folder.tracker.log_numbers(numbers, step)
        logger.info("probe after step %d: Dice %.4f, kNN %.4f", step, result.dice, result.knn)
        return result.dice

    def _run(self, step: int) -> float:
        """Probe in the first process; the mean Dice, in all processes."""
        dice = self._probe(self.encoder, step) if idist.get_rank() == 0 else 0.0
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
        """The best Dice, its step, and the digest of the probe that gave it."""
        return {"best": self.best, "step": self.step, "digest": self.best_digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the best Dice, its step, and the digest of the probe that gave it."""
        self.best, self.step = float(state["best"]), int(state["step"])
        self.best_digest = state.get("digest", self.digest)  # a checkpoint of an earlier version has none


def _digest_of(probe: FeatureProbe) -> str:
    """Equal for probes whose scores can be compared: same scans, classes and settings, wherever the list is."""
    settings = {name: value for name, value in probe.settings.items() if name != "datalist"}
    classes = sorted(probe.labels.values.items())
    return text_digest(json.dumps([probe.prepared.digest, classes, settings], sort_keys=True))
