"""How good a pre-training is: reconstruction error per level and alignment accuracy on validation volumes."""

from mim_components.evaluation.handler import ReportHandler

__all__ = ["ReportHandler"]
