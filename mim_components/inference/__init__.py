"""Use a pre-trained network on whole volumes: feature files, and a masked volume with its reconstruction."""

from mim_components.inference.saving import SaveResults
from mim_components.inference.step import MASKED_HU, InferenceStep, ScanStep

__all__ = ["InferenceStep", "MASKED_HU", "SaveResults", "ScanStep"]
