"""What `monai.metrics` lacks: scores of pre-training, segmentation and classification."""

from mim_components.metrics.pretraining import alignment_scores, reconstruction_scores
from mim_components.metrics.probe import LinearClassifier, fit_linear, nearest_classes, recalls

__all__ = ["LinearClassifier", "alignment_scores", "fit_linear", "nearest_classes", "recalls", "reconstruction_scores"]
