"""What `monai.handlers` lacks: metrics, checkpoints, validation, tracking, pictures, reports, saved results."""

from mim_components.handlers.best_model import BestModel, UpdateAverage, averaged_network
from mim_components.handlers.checkpoint import CheckpointHandler
from mim_components.handlers.collapse import CollapseWarning
from mim_components.handlers.export import ExportHandler
from mim_components.handlers.metrics import ConsoleLog, ProgressHandler, StepMetrics
from mim_components.handlers.pictures import PictureHandler
from mim_components.handlers.probe import ProbeHandler
from mim_components.handlers.reports.classification import ClassReport, SavePredictions
from mim_components.handlers.reports.pretraining import ReportHandler
from mim_components.handlers.reports.segmentation import EvaluationReport, is_original
from mim_components.handlers.saving.features import SaveResults
from mim_components.handlers.saving.label_maps import SaveSegmentation, write_label_files
from mim_components.handlers.signals import StopSignals
from mim_components.handlers.tracked_evaluation import TrackEvaluation
from mim_components.handlers.tracking import RunTracker
from mim_components.handlers.validation import EarlyStop, Validation, ValidationLog, validation_share

__all__ = [
    "BestModel",
    "CheckpointHandler",
    "ClassReport",
    "CollapseWarning",
    "ConsoleLog",
    "EarlyStop",
    "EvaluationReport",
    "ExportHandler",
    "PictureHandler",
    "ProbeHandler",
    "ProgressHandler",
    "ReportHandler",
    "RunTracker",
    "SavePredictions",
    "SaveResults",
    "SaveSegmentation",
    "StepMetrics",
    "StopSignals",
    "TrackEvaluation",
    "UpdateAverage",
    "Validation",
    "ValidationLog",
    "averaged_network",
    "is_original",
    "validation_share",
    "write_label_files",
]
