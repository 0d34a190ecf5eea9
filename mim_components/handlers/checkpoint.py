"""Checkpoints of the complete state of a training, and resuming from them."""

from __future__ import annotations

import logging
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mim_components.data.load.loader import StepLoader
from mim_components.handlers.metrics import untimed
from mim_components.run.checkpoints import CheckpointStore
from mim_components.run.folder import RunFolder
from mim_components.utils.files import FullDiskError

logger = logging.getLogger(__name__)


class DifferentStepsError(RuntimeError):
    """The processes of a run would continue from different steps."""


class CheckpointHandler:
    """Save network, optimizer, schedule and step every n steps; continue from the newest intact checkpoint.

    Parts registered with the folder (`RunFolder.keep`) are saved with them. Randomness is keyed by step and sample
    and needs no saving.

    Args:
        folder: run folder; if a checkpoint does not fit on the disk, its `on_full_disk` "stop" raises, "continue"
            trains on without it, and tries again at the next one.
        network: network without the wrapper for several devices.
        optimizer: optimizer of the run.
        lr_scheduler: schedule by step.
        loader: loader of the trainer; is told where to continue.
        interval: steps between two checkpoints.
        keep: number of checkpoints to keep.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> network = nn.Linear(1, 1, bias=False)
        >>> optimizer = torch.optim.SGD(network.parameters())
        >>> parts = network, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer)
        >>> trainer = Engine(lambda engine, weight: nn.init.constant_(network.weight, weight))
        >>> with TemporaryDirectory() as place:
        ...     handler = CheckpointHandler(RunFolder(place), *parts, StepLoader([0], 3, 1), interval=2)
        ...     handler.attach(trainer)
        ...     _ = trainer.run([0.25, 0.5, 0.75])
        ...     _ = nn.init.zeros_(network.weight)
        ...     handler.restore(trainer), network.weight.item()
        (3, 0.75)
    """

    def __init__(
        self,
        folder: RunFolder,
        network: nn.Module,
        optimizer: Optimizer,
        lr_scheduler: LRScheduler,
        loader: StepLoader,
        interval: int = 500,
        keep: int = 2,
    ) -> None:
        self.folder = folder
        self.store = CheckpointStore(folder.path / "checkpoints", keep)
        self.own: dict[str, Any] = {"network": network, "optimizer": optimizer, "lr_scheduler": lr_scheduler}
        self.loader = loader
        self.interval = interval
        self._saved = -1

    @property
    def parts(self) -> dict[str, Any]:
        """What every checkpoint holds, by name."""
        return self.own | self.folder.kept

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, after the schedule and before pictures and export."""
        self.folder.checkpoints = self
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.interval), self.save)
        engine.add_event_handler(Events.COMPLETED, self.save)

    @untimed
    def save(self, engine: Engine) -> None:
        """Save the state after the current step; the first process writes.

        Raises:
            FullDiskError: the disk is full; earlier checkpoints are intact, and the newest is named.
        """
        step = engine.state.iteration
        if idist.get_rank() != 0 or step == self._saved:
            return
        state = {name: part.state_dict() for name, part in (self.parts | self.folder.kept_if_there).items()}
        try:
            self.store.save(step, {"step": step, **state})
        except FullDiskError as error:
            if self.folder.on_full_disk == "stop":
                raise self.folder.with_advice(error) from error
            newest = self.store.newest_named()
            self.folder.note(f"{error.strerror}. {newest} The training continues without this checkpoint.")
            return
        self._saved = step

    def restore(self, engine: Engine) -> int:
        """Load the newest intact checkpoint of the folder into the trainer; returns its step, 0 if there is none.

        Raises:
            DamagedCheckpointError: there are checkpoints, and all are damaged.
            DifferentStepsError: the processes of the run found different ones.
        """
        state = self.store.newest([*self.parts, "step"])
        self._check_same(0 if state is None else int(state["step"]))
        if state is None:
            if self.folder.state.get("status") == "interrupted":
                logger.info("%s has no checkpoint yet: the run starts from step 0.", self.folder.path)
            return 0
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        for name, part in self.folder.kept_if_there.items():
            if name in state:
                part.load_state_dict(state[name])
        step = self._saved = int(state["step"])
        engine.state.iteration = step
        self.loader.sampler.start_step = step
        logger.info("Continuing the run in %s from step %d of %s.", self.folder.path, step, engine.state.epoch_length)
        return step

    def _check_same(self, step: int) -> None:
        steps = torch.as_tensor(idist.all_gather(step) if idist.get_world_size() > 1 else [step]).tolist()
        if len(set(steps)) > 1:
            raise DifferentStepsError(
                f"processes of this run found different checkpoints in {self.store.directory}, of steps "
                f"{', '.join(map(str, steps))}: --output_dir must be on a disk that all machines share."
            )
