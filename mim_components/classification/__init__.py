"""Classification of whole scans: slice folders to volumes, patient-wise splits, figures, predictions."""

from mim_components.classification.finding import find_scans
from mim_components.classification.handlers import ClassReport, SavePredictions
from mim_components.classification.items import scan_items
from mim_components.classification.scores import ClassScores, one_figure

__all__ = ["ClassReport", "ClassScores", "SavePredictions", "find_scans", "one_figure", "scan_items"]
