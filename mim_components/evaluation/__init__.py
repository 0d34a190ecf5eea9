"""How good a pre-training is: reconstruction error per level and alignment accuracy on validation volumes."""

from mim_components.evaluation.crops import EvaluationCrops, find_validation
from mim_components.evaluation.handler import ReportHandler
from mim_components.evaluation.scores import alignment_scores, reconstruction_scores
from mim_components.evaluation.step import CropScores, EvaluationStep, mean_error
from mim_components.evaluation.weights import TrainedNetwork, WrongWeightsError, load_trained

__all__ = [
    "CropScores",
    "EvaluationCrops",
    "EvaluationStep",
    "ReportHandler",
    "TrainedNetwork",
    "WrongWeightsError",
    "alignment_scores",
    "find_validation",
    "load_trained",
    "mean_error",
    "reconstruction_scores",
]
