"""Networks for fine-tuning and their factories: ours with the hybrid encoder, and MONAI's own (docs/method.md, 6).

Segmentation is the hybrid encoder with Swin-UNETR's residual decoder. Classification is an encoder, the mean over its
tokens, and one linear layer.

Axes: image (B, C, H, W, D); feature maps (B, E, h, w, d); logits (B, K, H, W, D) or (B, K).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetrUpBlock
from monai.networks.blocks.transformerblock import TransformerBlock
from monai.networks.nets import UNETR, SwinUNETR
from monai.networks.nets.swin_unetr import SwinTransformer
from torch import Tensor, nn

from mim_components.networks.hybrid import HybridEncoder, PatchEmbedding
from mim_components.networks.presets import get_preset
from mim_components.networks.scripting import ScriptedByTrace
from mim_components.tokens import check_positions, nearest_multiples


class HybridSwinUNETR(ScriptedByTrace):
    """Hybrid encoder, one more stage, and Swin-UNETR's decoder.

    The pyramid of the encoder (1/2, 1/4, ...; 48, 96, 192, 384 channels for `base`) and a new map with half its last
    grid and twice its width replace Swin-UNETR's five hidden states. Like those, they are normalised over channels
    before the decoder reads them.

    Args:
        in_channels: channels C of the image.
        out_channels: channels K of the logits.
        preset: name of the sizes, see `mim_components.networks.PRESETS`.
        input_size: size in voxels of the network's input, see `HybridEncoder`.
        positions: "rescaled" or "index", see `HybridEncoder`.

    Raises:
        ValueError: unknown preset or `positions`; in `forward`, sides that are not multiples of twice the patch size,
            or so small that the deepest map has a single position.

    Example:
        >>> import torch
        >>> HybridSwinUNETR(in_channels=1, out_channels=3, preset="nano")(torch.zeros(1, 1, 32, 16, 16)).shape
        torch.Size([1, 3, 32, 16, 16])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        preset: str = "base",
        input_size: Sequence[int] | None = None,
        positions: str = "rescaled",
    ) -> None:
        super().__init__()
        self.encoder = HybridEncoder(in_channels, preset, dense_only=True, input_size=input_size, positions=positions)
        self.size_multiple = 2 * self.encoder.patch_size
        self.example_shape = (2, in_channels, *(input_size or [2 * self.size_multiple] * 3))
        *fine, last = self.encoder.channels
        self.down = PatchEmbedding(last, 2 * last)
        self.bottleneck = _residual_block(2 * last, 2 * last)
        # the encoder's last map goes into the decoder without a block, as in Swin-UNETR
        self.skips = nn.ModuleList([_residual_block(in_channels, fine[0]), *(_residual_block(w, w) for w in fine)])
        widths = [2 * last, last, *reversed(fine), fine[0]]  # from the deepest map to the full grid
        self.ups = nn.ModuleList(_up_block(deep, high) for deep, high in zip(widths, widths[1:], strict=False))
        self.out = UnetOutBlock(spatial_dims=3, in_channels=fine[0], out_channels=out_channels)

    def forward(self, image: Tensor) -> Tensor:
        """Logits `(B, K, H, W, D)` of an image `(B, C, H, W, D)`."""
        check_sides(image.shape[2:], self.size_multiple, "HybridSwinUNETR", least_positions=2)
        maps = self.encoder(image)  # (B, E, H/2, W/2, D/2), ... (B, 8E, H/16, W/16, D/16) with four stages
        deepest = self.down(maps[-1].permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)  # half the grid, twice the width
        *fine, last = [_normalize(each) for each in maps]
        skips = [block(each) for block, each in zip(self.skips, [image, *fine], strict=True)]
        x = self.bottleneck(deepest)
        for up, skip in zip(self.ups, [last, *reversed(skips)], strict=True):
            x = up(x, skip)  # twice the grid
        return self.out(x)  # (B, K, H, W, D)


def check_sides(spatial_size: Sequence[int], multiple: int, network: str, least_positions: int = 1) -> None:
    """Check that a network can take images of this size.

    Args:
        spatial_size: three sides in voxels.
        multiple: what every side must be a multiple of.
        network: name for the error.
        least_positions: 2 where the network normalises over the positions of its deepest map, whose grid is `multiple`
            times coarser: a single one would always become 0, and PyTorch refuses it.

    Raises:
        ValueError: it cannot; names the nearest sizes that it can take.
    """
    sides = tuple(int(side) for side in spatial_size)  # under torch.jit.trace they are tensors
    if len(sides) != 3 or any(side <= 0 or side % multiple for side in sides):
        valid = f"; nearest valid sizes: {nearest_multiples(sides, multiple)}" if len(sides) == 3 else ""
        raise ValueError(f"{network} needs three sides that are multiples of {multiple}, got {sides}{valid}.")
    if math.prod([side // multiple for side in sides]) < least_positions:  # a list: Dynamo traces no generator here
        raise ValueError(
            f"{network} needs at least {least_positions} positions on its coarsest grid, of {multiple} voxels each, "
            f"got {sides}; nearest valid size: {(least_positions * multiple, *sides[1:])}."
        )


def _normalize(features: Tensor) -> Tensor:
    """Layer norm over the channels of `(B, E, h, w, d)`, without parameters."""
    return F.layer_norm(features.permute(0, 2, 3, 4, 1), features.shape[1:2]).permute(0, 4, 1, 2, 3)


def _residual_block(in_channels: int, out_channels: int) -> UnetrBasicBlock:
    return UnetrBasicBlock(3, in_channels, out_channels, kernel_size=3, stride=1, norm_name="instance", res_block=True)


def _up_block(in_channels: int, out_channels: int) -> UnetrUpBlock:
    return UnetrUpBlock(
        3, in_channels, out_channels, kernel_size=3, upsample_kernel_size=2, norm_name="instance", res_block=True
    )


class HybridClassifier(ScriptedByTrace):
    """Hybrid encoder, mean over the tokens of its last stage, LayerNorm, linear.

    Args:
        in_channels: channels C of the image.
        num_classes: number of classes K.
        preset: name of the sizes, see `mim_components.networks.PRESETS`.
        input_size: size of an image in voxels, see `HybridEncoder`.
        positions: "rescaled" or "index", see `HybridEncoder`.

    Raises:
        ValueError: unknown preset or `positions`; in `forward`, a side that is not a multiple of the patch size.

    Example:
        >>> import torch
        >>> HybridClassifier(in_channels=1, num_classes=3, preset="nano")(torch.zeros(2, 1, 16, 16, 8)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        preset: str = "base",
        input_size: Sequence[int] | None = None,
        positions: str = "rescaled",
    ) -> None:
        super().__init__()
        self.encoder = HybridEncoder(in_channels, preset, dense_only=True, input_size=input_size, positions=positions)
        self.norm = nn.LayerNorm(self.encoder.embed_dim)
        self.head = nn.Linear(self.encoder.embed_dim, num_classes)
        self.example_shape = (2, in_channels, *(input_size or [self.encoder.patch_size] * 3))

    def forward(self, image: Tensor) -> Tensor:
        """Logits `(B, K)` of an image `(B, C, H, W, D)`."""
        tokens = self.encoder(image)[-1]  # (B, E, h, w, d)
        return self.head(self.norm(tokens.mean((2, 3, 4))))


class SwinViTClassifier(nn.Module):
    """The baseline: MONAI's Swin transformer, mean over the tokens of its last stage, LayerNorm, linear.

    Args:
        in_channels: channels C of the image.
        num_classes: number of classes K.
        preset: sets the width of the first stage, 48 for `base`; the last is 16 times as wide.

    Raises:
        ValueError: unknown preset.

    Example:
        >>> import torch
        >>> SwinViTClassifier(in_channels=1, num_classes=3, preset="nano")(torch.zeros(1, 1, 32, 32, 32)).shape
        torch.Size([1, 3])
    """

    def __init__(self, in_channels: int, num_classes: int, preset: str = "base") -> None:
        super().__init__()
        width = get_preset(preset).feature_size
        self.swin = SwinTransformer(
            in_chans=in_channels,
            embed_dim=width,
            window_size=(7, 7, 7),
            patch_size=(2, 2, 2),
            depths=(2, 2, 2, 2),
            num_heads=(3, 6, 12, 24),
        )
        self.norm = nn.LayerNorm(16 * width)
        self.head = nn.Linear(16 * width, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits `(B, K)` of an image `(B, C, H, W, D)` of any size."""
        return self.head(self.norm(self.swin(image, normalize=False)[-1].mean((2, 3, 4))))


SEGMENTATION_NETWORKS = ("hybrid_swin_unetr", "unetr", "swin_unetr")
CLASSIFICATION_NETWORKS = ("hybrid", "swin_vit")
UNETR_PATCH_SIZE = 16  # fixed in MONAI's class
SWIN_MULTIPLE = 32  # the grid is halved five times


def segmentation_network(
    name: str,
    in_channels: int,
    out_channels: int,
    roi_size: Sequence[int],
    preset: str = "base",
    positions: str = "rescaled",
) -> nn.Module:
    """A segmentation network, from images `(B, C, H, W, D)` to logits `(B, K, H, W, D)`.

    Args:
        name: "hybrid_swin_unetr"; "unetr", MONAI's, which takes a pre-trained plain ViT encoder; or "swin_unetr",
            MONAI's, from scratch only.
        in_channels: channels C of the image.
        out_channels: channels K of the logits.
        roi_size: size in voxels of crops and windows; only "unetr" is tied to this size.
        preset: name of the sizes, see `mim_components.networks.PRESETS`.
        positions: for "hybrid_swin_unetr", see `HybridEncoder`; "unetr" gets its positions with its weights.

    Raises:
        ValueError: unknown name, preset or `positions`, a `roi_size` that the network cannot take (names the nearest
            valid ones), or a preset whose patch size is not UNETR's.

    Example:
        >>> import torch
        >>> network = segmentation_network("hybrid_swin_unetr", 1, 14, roi_size=(32, 16, 16), preset="nano")
        >>> network(torch.zeros(1, 1, 32, 16, 16)).shape
        torch.Size([1, 14, 32, 16, 16])
    """
    sizes = get_preset(preset)
    check_positions(positions)
    if name == "hybrid_swin_unetr":
        check_sides(roi_size, 2 * sizes.patch_size, name, least_positions=2)
        return HybridSwinUNETR(in_channels, out_channels, preset, roi_size, positions)
    if name == "swin_unetr":
        check_sides(roi_size, SWIN_MULTIPLE, name, least_positions=2)
        network = SwinUNETR(in_channels, out_channels, feature_size=sizes.feature_size)
        # MONAI's check uses NumPy, which does not compile
        network._check_input_size = partial(check_sides, multiple=SWIN_MULTIPLE, network=name)  # type: ignore[method-assign]
        return network
    if name == "unetr":
        return _unetr(in_channels, out_channels, roi_size, preset)
    raise ValueError(f"network must be one of {', '.join(SEGMENTATION_NETWORKS)}, got {name!r}.")


def _unetr(in_channels: int, out_channels: int, roi_size: Sequence[int], preset: str) -> UNETR:
    sizes = get_preset(preset)
    if sizes.patch_size != UNETR_PATCH_SIZE:
        raise ValueError(
            f"unetr needs a patch size of {UNETR_PATCH_SIZE} voxels, preset {preset!r} has {sizes.patch_size}; "
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
        block.norm_cross_attn.requires_grad_(False)  # unused, and DDP refuses parameters without gradients
    return network


def classification_network(
    name: str,
    in_channels: int,
    num_classes: int,
    input_size: Sequence[int],
    preset: str = "base",
    positions: str = "rescaled",
) -> nn.Module:
    """A classification network, from images `(B, C, H, W, D)` to logits `(B, K)`.

    Args:
        name: "hybrid"; or "swin_vit", MONAI's Swin transformer with a linear head, from scratch only.
        in_channels: channels C of the image.
        num_classes: number of classes K.
        input_size: size of an image in voxels.
        preset: name of the sizes, see `mim_components.networks.PRESETS`.
        positions: for "hybrid", see `HybridEncoder`.

    Raises:
        ValueError: unknown name, preset or `positions`, or a size that the network cannot take (names the nearest valid
            ones).

    Example:
        >>> import torch
        >>> network = classification_network("hybrid", 1, 3, input_size=(16, 16, 8), preset="nano")
        >>> network(torch.zeros(2, 1, 16, 16, 8)).shape
        torch.Size([2, 3])
    """
    check_positions(positions)
    if name == "hybrid":
        check_sides(input_size, get_preset(preset).patch_size, name)
        return HybridClassifier(in_channels, num_classes, preset, input_size, positions)
    if name == "swin_vit":
        check_sides(input_size, 1, name)
        return SwinViTClassifier(in_channels, num_classes, preset)
    raise ValueError(f"network must be one of {', '.join(CLASSIFICATION_NETWORKS)}, got {name!r}.")
