"""Handlers for runs of several processes, in place of the bundle's progress bar."""

from __future__ import annotations

import os

from ignite.engine import Engine, Events

from tests.faults.hold import Hold


class HoldEach(Hold):
    """Every process waits at a step while its own file exists: `file` with `_` and its rank."""

    def __init__(self, event: str, step: int, file: str) -> None:
        super().__init__(event, step, f"{file}_{os.environ['RANK']}")


class FailOnRank:
    """Raise ValueError after a step, in one process.

    Args:
        rank: rank of the process.
        step: step after which it fails.
    """

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        if int(os.environ["RANK"]) == self.rank:
            engine.add_event_handler(Events.ITERATION_COMPLETED(once=self.step), self.fail)

    def fail(self, engine: Engine) -> None:
        """Fail."""
        raise ValueError(f"scan_7: broken in process {self.rank}")

    def close(self) -> None:
        """Nothing to restore."""
