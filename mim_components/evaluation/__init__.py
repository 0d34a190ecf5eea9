"""How good a pre-training is: reconstruction error per level and alignment accuracy on validation volumes."""

from mim_components.evaluation.handler import ReportHandler
from mim_components.evaluation.scores import alignment_scores, reconstruction_scores
from mim_components.evaluation.step import CropScores, EvaluationStep, mean_error
from mim_components.evaluation.weights import TrainedNetwork, WrongWeightsError, load_trained

__all__ = [
    "CropScores",
    "EvaluationStep",
    "ReportHandler",
    "TrainedNetwork",
    "WrongWeightsError",
    "alignment_scores",
    "load_trained",
    "mean_error",
    "reconstruction_scores",
]
