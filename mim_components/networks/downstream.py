"""Networks for fine-tuning by name: ours with the hybrid encoder, and MONAI's own."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.blocks.transformerblock import TransformerBlock
from monai.networks.nets import UNETR, SwinUNETR
from torch import nn

from mim_components.networks.classification import HybridClassifier, SwinViTClassifier
from mim_components.networks.fine_tuning import HybridSwinUNETR, check_sides
from mim_components.networks.presets import get_preset
from mim_components.tokens import check_positions

SEGMENTATION_NETWORKS = ("hybrid_swin_unetr", "unetr", "swin_unetr")
CLASSIFICATION_NETWORKS = ("hybrid", "swin_vit")
UNETR_PATCH_SIZE = 16  # fixed in MONAI's class
SWIN_MULTIPLE = 32  # five times halved


def segmentation_network(
    name: str,
    in_channels: int,
    out_channels: int,
    roi_size: Sequence[int],
    preset: str = "base",
    positions: str = "rescaled",
) -> nn.Module:
    """A network from images `(B, C, H, W, D)` to logits `(B, K, H, W, D)`.

    Args:
        name: "hybrid_swin_unetr"; "unetr", MONAI's, which a pre-trained plain ViT encoder fits; or "swin_unetr",
            MONAI's, from scratch only.
        in_channels: channels C of the image.
        out_channels: channels K of the logits.
        roi_size: size in voxels of what the network sees at a time; only "unetr" is built for this one size.
        preset: name of the sizes, see `mim_components.networks.PRESETS`.
        positions: of "hybrid_swin_unetr", see `HybridEncoder`; "unetr" gets its positions with its weights.

    Raises:
        ValueError: unknown name, preset or `positions`, a `roi_size` that the network cannot take (names the nearest
            that it can), or a preset whose patch size is not UNETR's.
    """
    sizes = get_preset(preset)
    check_positions(positions)
    if name == "hybrid_swin_unetr":
        check_sides(roi_size, 2 * sizes.patch_size, name, least_positions=2)
        return HybridSwinUNETR(in_channels, out_channels, preset, roi_size, positions)
    if name == "swin_unetr":
        check_sides(roi_size, SWIN_MULTIPLE, name, least_positions=2)
        return SwinUNETR(in_channels, out_channels, feature_size=sizes.feature_size)
    if name == "unetr":
        return _unetr(in_channels, out_channels, roi_size, preset)
    raise ValueError(f"network must be one of {', '.join(SEGMENTATION_NETWORKS)}, got {name!r}.")


def _unetr(in_channels: int, out_channels: int, roi_size: Sequence[int], preset: str) -> UNETR:
    sizes = get_preset(preset)
    if sizes.patch_size != UNETR_PATCH_SIZE:
        raise ValueError(
            f"unetr has tokens of {UNETR_PATCH_SIZE} voxels, those of preset {preset!r} have {sizes.patch_size}; "
            "use another preset, such as tiny."
        )
    check_sides(roi_size, UNETR_PATCH_SIZE, "unetr")
    network = UNETR(
        in_channels,
        out_channels,
        tuple(roi_size),
        feature_size=sizes.feature_size // 3,
        hidden_size=sizes.vit.hidden_size,
        mlp_dim=4 * sizes.vit.hidden_size,
        num_heads=sizes.vit.num_heads,
    )
    for block in network.vit.blocks:
        assert isinstance(block, TransformerBlock)
        block.norm_cross_attn.requires_grad_(False)  # never used, and DDP refuses a parameter without gradient
    return network


def classification_network(
    name: str,
    in_channels: int,
    num_classes: int,
    input_size: Sequence[int],
    preset: str = "base",
    positions: str = "rescaled",
) -> nn.Module:
    """A network from images `(B, C, H, W, D)` to logits `(B, K)`.

    Args:
        name: "hybrid"; or "swin_vit", MONAI's Swin transformer with a linear head, from scratch only.
        in_channels: channels C of the image.
        num_classes: number of classes K.
        input_size: size of an image in voxels.
        preset: name of the sizes, see `mim_components.networks.PRESETS`.
        positions: of "hybrid", see `HybridEncoder`.

    Raises:
        ValueError: unknown name, preset or `positions`, or a size that the network cannot take (names the nearest that
            it can).
    """
    check_positions(positions)
    if name == "hybrid":
        check_sides(input_size, get_preset(preset).patch_size, name)
        return HybridClassifier(in_channels, num_classes, preset, input_size, positions)
    if name == "swin_vit":
        check_sides(input_size, 1, name)
        return SwinViTClassifier(in_channels, num_classes, preset)
    raise ValueError(f"network must be one of {', '.join(CLASSIFICATION_NETWORKS)}, got {name!r}.")
