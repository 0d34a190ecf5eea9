"""What `monai.engines` lacks: the steps of training, evaluation and inference, and a whole training."""

from mim_components.engines.begin import begin_fine_tuning, begin_pretraining
from mim_components.engines.evaluation import EvaluationStep
from mim_components.engines.fit import fit_to_device
from mim_components.engines.inference import InferenceStep, ScanStep
from mim_components.engines.nonfinite import NonFiniteError, NonFiniteGuard
from mim_components.engines.precision import autocast_dtype
from mim_components.engines.pretraining import PretrainStep
from mim_components.engines.probe import ProbedEncoder, load_probed, run_probe
from mim_components.engines.step import FinetuneStep, OptimizerStep
from mim_components.engines.training import steps_of, train

__all__ = [
    "EvaluationStep",
    "FinetuneStep",
    "InferenceStep",
    "NonFiniteError",
    "NonFiniteGuard",
    "OptimizerStep",
    "PretrainStep",
    "ProbedEncoder",
    "ScanStep",
    "autocast_dtype",
    "begin_fine_tuning",
    "begin_pretraining",
    "fit_to_device",
    "load_probed",
    "run_probe",
    "steps_of",
    "train",
]
