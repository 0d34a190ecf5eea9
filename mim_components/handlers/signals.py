"""Graceful shutdown on SIGTERM and SIGINT: finish the step, save, say how to continue."""

from __future__ import annotations

import signal
import threading
from time import monotonic
from types import FrameType
from typing import Any

import ignite.distributed as idist
import torch.distributed as dist
from ignite.engine import Engine, Events

from mim_components.run.folder import RunFolder

SAME_SECONDS = 3.0  # a workload manager signals every process of a job, and torchrun forwards the signal


class StopSignals:
    """On SIGTERM or SIGINT finish the step, save and exit with 128 + signal; a second signal exits at once.

    Under `torchrun` the same signal within three seconds is not a second one: it comes from both the workload manager
    and torchrun.

    Args:
        folder: run folder, whose checkpoint handler saves.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from types import SimpleNamespace
        >>> trainer = Engine(lambda engine, batch: signal.raise_signal(signal.SIGTERM))
        >>> with TemporaryDirectory() as place:
        ...     folder = RunFolder(place)
        ...     folder.checkpoints = SimpleNamespace(save=lambda engine: print("saved step", engine.state.iteration))
        ...     stop = StopSignals(folder)
        ...     stop.attach(trainer)
        ...     try:
        ...         trainer.run(range(9))
        ...     except SystemExit as error:
        ...         error.code
        ...     stop.close()
        saved step 1
        143
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._received = 0
        self._when = 0.0
        self._before: dict[int, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, after the checkpoints; signals reach the main thread only."""
        if threading.current_thread() is threading.main_thread():
            self.folder.at_end(self)
            engine.add_event_handler(Events.STARTED, self.start)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def start(self, engine: Engine) -> None:
        """Install the signal handlers."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self.receive)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Remember the first signal; the second one takes effect immediately."""
        if self._received and not self._is_the_same(number):
            self.close()
            signal.raise_signal(number)
        self._received, self._when = number, monotonic()

    def _is_the_same(self, number: int) -> bool:
        soon = monotonic() - self._when < SAME_SECONDS
        return dist.is_torchelastic_launched() and number == self._received and soon

    def __call__(self, engine: Engine) -> None:
        """After a step, stop if a signal came."""
        if idist.get_world_size() > 1:  # stop all after the same step
            self._received = int(idist.all_reduce(self._received, op="MAX"))
        if self._received:
            self.folder.checkpoints.save(engine)
            self.folder.stopped = (
                f"{signal.Signals(self._received).name}: stopped after step {engine.state.iteration} of "
                f"{engine.state.epoch_length}, checkpoint saved; {self.folder.how_to_continue}."
            )
            raise SystemExit(128 + self._received)

    def close(self) -> None:
        """Restore the previous signal handlers; also after an error."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
