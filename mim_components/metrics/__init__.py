"""What `monai.metrics` lacks: scores of pre-training, segmentation and classification."""

from mim_components.metrics.classification import ClassScores, one_figure
from mim_components.metrics.pretraining import CropScores, alignment_scores, mean_error, reconstruction_scores
from mim_components.metrics.probe import FeatureProbe, ProbeResult
from mim_components.metrics.probe.heads import LinearClassifier, fit_linear, maximise_dice, nearest_classes, recalls
from mim_components.metrics.segmentation import CaseScores

__all__ = [
    "CaseScores",
    "ClassScores",
    "CropScores",
    "FeatureProbe",
    "LinearClassifier",
    "ProbeResult",
    "alignment_scores",
    "fit_linear",
    "maximise_dice",
    "mean_error",
    "nearest_classes",
    "one_figure",
    "recalls",
    "reconstruction_scores",
]
