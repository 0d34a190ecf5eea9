"""Stop in good order when the machine is taken away: finish the step, save, say how to go on."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

from mim_components.handlers.checkpoint import CheckpointHandler

logger = logging.getLogger(__name__)


class StopSignals:
    """On SIGTERM or SIGINT finish the step, save and exit with 128 + signal; a second signal exits at once.

    Args:
        checkpoints: that saves.
    """

    def __init__(self, checkpoints: CheckpointHandler) -> None:
        self.checkpoints = checkpoints
        self._received = 0
        self._before: dict[int, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, after the checkpoints; signals reach the main thread only."""
        if threading.current_thread() is threading.main_thread():
            engine.add_event_handler(Events.STARTED, self.start)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def start(self, engine: Engine) -> None:
        """Take the signals."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self.receive)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Remember the first signal; let the second one have its way."""
        if self._received:
            self.close()
            signal.raise_signal(number)
        self._received = number

    def __call__(self, engine: Engine) -> None:
        """After a step, stop if a signal came."""
        if idist.get_world_size() > 1:  # stop all after the same step
            self._received = int(idist.all_reduce(self._received, op="MAX"))
        if self._received:
            self.checkpoints.save(engine)
            logger.warning(
                "%s: stopped after step %d of %s, checkpoint saved; the same command with --resume auto continues.",
                signal.Signals(self._received).name,
                engine.state.iteration,
                engine.state.epoch_length,
            )
            raise SystemExit(128 + self._received)

    def close(self) -> None:
        """Give the signals back; also after an error."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
