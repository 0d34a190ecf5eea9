"""What `monai.metrics` lacks: scores of pre-training, segmentation and classification."""

from mim_components.metrics.probe import LinearClassifier, fit_linear, nearest_classes, recalls

__all__ = ["LinearClassifier", "fit_linear", "nearest_classes", "recalls"]
