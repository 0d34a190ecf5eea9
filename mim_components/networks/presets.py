"""Named sizes of the networks (docs/method.md, 3)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HybridSizes:
    """Hybrid encoder: every stage halves the grid; the last one is the transformer.

    Attributes:
        channels: width of each stage; the last is the token width and is divisible by 6 and by `num_heads`.
        depths: number of blocks of each stage.
        num_heads: attention heads of the last stage.
    """

    channels: tuple[int, ...]
    depths: tuple[int, ...]
    num_heads: int

    @property
    def patch_size(self) -> int:
        """Edge of a token in voxels: the product of the strides, 2 for each stage."""
        return 2 ** len(self.channels)


@dataclass(frozen=True)
class TransformerSizes:
    """A plain stack of transformer blocks; `hidden_size` is divisible by 6 and by `num_heads`."""

    hidden_size: int
    depth: int
    num_heads: int


@dataclass(frozen=True)
class Preset:
    """One named size of the whole pre-training network.

    Attributes:
        hybrid: the hybrid encoder.
        vit: the plain ViT encoder of the same patch size; depth 12 fits MONAI's UNETR.
        decoder: the decoder.
        head_width: hidden width of the two alignment heads.
        feature_size: first width of the baseline Swin UNETR, a multiple of 12; UNETR's is a third (MONAI: 48 and 16).
    """

    hybrid: HybridSizes
    vit: TransformerSizes
    decoder: TransformerSizes
    head_width: int
    feature_size: int

    @property
    def patch_size(self) -> int:
        """Edge of a token in voxels."""
        return self.hybrid.patch_size


PRESETS: dict[str, Preset] = {
    "nano": Preset(
        hybrid=HybridSizes(channels=(8, 16, 48), depths=(1, 1, 2), num_heads=4),
        vit=TransformerSizes(48, 4, 4),
        decoder=TransformerSizes(48, 1, 4),
        head_width=32,
        feature_size=12,
    ),
    "tiny": Preset(
        hybrid=HybridSizes(channels=(12, 24, 48, 96), depths=(1, 1, 1, 3), num_heads=4),
        vit=TransformerSizes(96, 12, 4),
        decoder=TransformerSizes(96, 2, 4),
        head_width=64,
        feature_size=12,
    ),
    "small": Preset(
        hybrid=HybridSizes(channels=(24, 48, 96, 192), depths=(2, 2, 2, 6), num_heads=6),
        vit=TransformerSizes(384, 12, 6),
        decoder=TransformerSizes(288, 4, 8),
        head_width=128,
        feature_size=24,
    ),
    "base": Preset(
        hybrid=HybridSizes(channels=(48, 96, 192, 384), depths=(2, 2, 2, 11), num_heads=12),
        vit=TransformerSizes(768, 12, 12),
        decoder=TransformerSizes(576, 8, 16),
        head_width=256,
        feature_size=48,
    ),
}


def get_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ValueError: there is none; lists the names.
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}.")
    return PRESETS[name]


def get_patch_size(preset: str) -> int:
    """Edge of a token of a preset, in voxels of the resized volume.

    Example:
        >>> get_patch_size("base"), get_patch_size("nano")
        (16, 8)
    """
    return get_preset(preset).patch_size
