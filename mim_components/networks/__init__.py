"""Networks: the shared encoders, the pre-training network, and those for fine-tuning."""

from mim_components.networks.classification import HybridClassifier, SwinViTClassifier
from mim_components.networks.downstream import classification_network, segmentation_network
from mim_components.networks.fine_tuning import HybridSwinUNETR
from mim_components.networks.hybrid import HybridEncoder
from mim_components.networks.mim import MiM, MiMOutput
from mim_components.networks.presets import PRESETS, Preset, get_patch_size, get_preset
from mim_components.networks.training_modes import for_training
from mim_components.networks.vit import ViTEncoder

__all__ = [
    "HybridClassifier",
    "HybridEncoder",
    "HybridSwinUNETR",
    "MiM",
    "MiMOutput",
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
