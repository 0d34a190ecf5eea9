"""Networks: the shared encoders and the pre-training network."""

from mim_components.networks.hybrid import HybridEncoder
from mim_components.networks.mim import MiM, MiMOutput
from mim_components.networks.presets import PRESETS, Preset, get_patch_size, get_preset
from mim_components.networks.vit import ViTEncoder

__all__ = ["PRESETS", "HybridEncoder", "MiM", "MiMOutput", "Preset", "ViTEncoder", "get_patch_size", "get_preset"]
