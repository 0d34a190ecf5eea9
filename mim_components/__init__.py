"""Components of the MiM bundles: what self-supervised pre-training with Mask in Mask needs and MONAI lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mim_components.losses import MiMLoss
    from mim_components.networks import HybridEncoder, MiM
    from mim_components.transforms.crop import MultiLevelCropMask, MultiLevelCropMaskd
    from mim_components.weights.contract import read_contract
    from mim_components.weights.pretrained import load_pretrained

__version__ = "0.1.0"

__all__ = [
    "HybridEncoder",
    "MiM",
    "MiMLoss",
    "MultiLevelCropMask",
    "MultiLevelCropMaskd",
    "__version__",
    "load_pretrained",
    "read_contract",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first access, so that importing the package does not import MONAI."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mim_components.losses import MiMLoss
    from mim_components.networks import HybridEncoder, MiM
    from mim_components.transforms.crop import MultiLevelCropMask, MultiLevelCropMaskd
    from mim_components.weights.contract import read_contract
    from mim_components.weights.pretrained import load_pretrained

    public = (HybridEncoder, MiM, MiMLoss, MultiLevelCropMask, MultiLevelCropMaskd, load_pretrained, read_contract)
    return {each.__name__: each for each in public}[name]
