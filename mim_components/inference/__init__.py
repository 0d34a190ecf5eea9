"""Use a pre-trained network on whole volumes: feature files, and a masked volume with its reconstruction."""

from mim_components.inference.saving import SaveResults
from mim_components.inference.step import MASKED_HU, InferenceStep, ScanStep
from mim_components.inference.volumes import LoadVolumed, ScanDataset, inference_items, unique_names

__all__ = [
    "InferenceStep",
    "LoadVolumed",
    "MASKED_HU",
    "SaveResults",
    "ScanDataset",
    "ScanStep",
    "inference_items",
    "unique_names",
]
