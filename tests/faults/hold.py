"""Handlers that the configuration gives to the runs: one waits at a step, one makes checkpoints large."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from mim_components.run.folder import RunFolder


class Hold:
    """Create a file at a step and wait until it is removed, so that faults occur at exact places on any machine.

    It replaces a bundle's progress bar or pictures, whose drawing takes longer than these runs.

    Args:
        event: name of Ignite's event.
        step: step to wait at; 0 = never.
        file: file to create.
    """

    def __init__(self, event: str = "ITERATION_STARTED", step: int = 0, file: str = "") -> None:
        self.event, self.step, self.file = event, step, Path(file)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        if self.step:
            engine.add_event_handler(Events[self.event], self.hold)

    def hold(self, engine: Engine) -> None:
        """Wait, if this is the step."""
        if engine.state.iteration == self.step:
            self.file.touch()
            while self.file.exists():
                time.sleep(0.005)

    def close(self) -> None:
        """Nothing to restore."""


class Ballast:
    """A handler whose state in the checkpoint is so large that writing it takes a while.

    Args:
        folder: run folder.
        size: size of the state in bytes.
    """

    def __init__(self, folder: RunFolder, size: int) -> None:
        self.folder, self.size = folder, size

    def attach(self, engine: Engine) -> None:
        """Register the state for the checkpoint."""
        self.folder.keep("ballast", self)

    def state_dict(self) -> dict[str, Any]:
        """Zeros."""
        return {"zeros": torch.zeros(self.size, dtype=torch.uint8)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""
