"""Classification of whole scans: slice folders to volumes, patient-wise splits, figures, predictions."""

from mim_components.classification.handlers import ClassReport, SavePredictions
from mim_components.classification.scores import ClassScores, one_figure

__all__ = ["ClassReport", "ClassScores", "SavePredictions", "one_figure"]
