"""What `monai.handlers` lacks: metrics, checkpoints, validation, tracking, pictures, reports, saved results."""

from typing import Any

from mim_components.handlers.checkpoint import CheckpointHandler
from mim_components.handlers.export import ExportHandler
from mim_components.handlers.metrics import ConsoleLog, ProgressHandler, StepMetrics
from mim_components.handlers.pictures import PictureHandler
from mim_components.handlers.probe import ProbeHandler
from mim_components.handlers.signals import StopSignals
from mim_components.handlers.tracking import RunTracker

__all__ = [
    "CheckpointHandler",
    "ConsoleLog",
    "ExportHandler",
    "PictureHandler",
    "ProbeHandler",
    "ProgressHandler",
    "RunTracker",
    "StepMetrics",
    "StopSignals",
    "registered",
]


def registered(handler: Any) -> Any:
    """The handler itself: MONAI's check of a bundle wants a dictionary in a list of handlers, not a bare reference."""
    return handler
