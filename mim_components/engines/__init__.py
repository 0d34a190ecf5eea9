"""What `monai.engines` lacks: the step of a training and of an evaluation, and the training as a whole."""

from mim_components.engines.probe import FeatureProbe, ProbeResult
from mim_components.engines.run_probe import ProbedEncoder, load_probed, run_probe

__all__ = ["FeatureProbe", "ProbeResult", "ProbedEncoder", "load_probed", "run_probe"]
