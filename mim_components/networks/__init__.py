"""The shared encoders, the pre-training network, and the fine-tuning networks."""

from mim_components.networks.fine_tuning import (
    HybridClassifier,
    HybridSwinUNETR,
    SwinViTClassifier,
    classification_network,
    segmentation_network,
)
from mim_components.networks.hybrid import HybridEncoder
from mim_components.networks.mim import MiM, MiMOutput, MiMReconstructor
from mim_components.networks.presets import PRESETS, Preset, get_patch_size, get_preset
from mim_components.networks.training_modes import for_training
from mim_components.networks.vit import ViTEncoder

__all__ = [
    "HybridClassifier",
    "HybridEncoder",
    "HybridSwinUNETR",
    "MiM",
    "MiMOutput",
    "MiMReconstructor",
    "PRESETS",
    "Preset",
    "SwinViTClassifier",
    "ViTEncoder",
    "classification_network",
    "for_training",
    "get_patch_size",
    "get_preset",
    "segmentation_network",
]
