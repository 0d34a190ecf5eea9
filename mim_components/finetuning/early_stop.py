"""Stop when the validation no longer gets better; Ignite's early stopping, whose count a resumed run continues."""

from __future__ import annotations

import math
from typing import Any

from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping


class EarlyStop:
    """End the training after `patience` validations without a better metric.

    Args:
        metric: name of the metric among those of the validation; larger is better.
        patience: validations; 0 = never stop early.

    Raises:
        ValueError: `patience` is negative.
    """

    def __init__(self, metric: str, patience: int = 0) -> None:
        if patience < 0:
            raise ValueError(f"early_stop_patience must be 0 (off) or more validations, got {patience}.")
        self.metric = metric
        self.patience = patience
        self._stopping: EarlyStopping | None = None

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, after the validation."""
        if self.patience:
            self._stopping = EarlyStopping(self.patience, self._score, engine)
            engine.add_event_handler(Events.STARTED, self.start)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def start(self, engine: Engine) -> None:
        """End a run at once that was interrupted after it had stopped, before it was finished."""
        if self._stopping is not None and self._stopping.counter >= self.patience:
            engine.terminate()

    def _score(self, engine: Any) -> float:
        score = float(engine.state.validation[self.metric])
        return -math.inf if math.isnan(score) else score

    def __call__(self, engine: Any) -> None:
        """Count, if this step was validated."""
        if engine.state.validation is not None and self._stopping is not None:
            self._stopping(engine)

    def state_dict(self) -> dict[str, Any]:
        """The count and the best score so far."""
        return {} if self._stopping is None else dict(self._stopping.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue to count."""
        if state and self._stopping is not None:
            self._stopping.load_state_dict(state)
