"""Segmentation network: the hybrid encoder with Swin-UNETR's residual decoder (docs/method.md, fine-tuning).

Axes: image (B, C, H, W, D); feature maps (B, E, h, w, d); logits (B, K, H, W, D).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetrUpBlock
from torch import Tensor, nn

from mim_components.networks.hybrid import HybridEncoder, PatchEmbedding
from mim_components.networks.image_conv import replace_image_convs
from mim_components.networks.instance_norm import replace_instance_norms
from mim_components.tokens import nearest_multiples


class HybridSwinUNETR(nn.Module):
    """Hybrid encoder, one more stage, and Swin-UNETR's decoder.

    The pyramid of the encoder (1/2, 1/4, ...; 48, 96, 192, 384 channels for `base`) and a new map of half its last grid
    and twice its width take the place of Swin-UNETR's five hidden states. Like those, they are normalised over channels
    before the decoder reads them.

    Args:
        in_channels: channels C of the image.
        out_channels: channels K of the logits.
        preset: name of the sizes, see `mim_components.networks.PRESETS`.
        input_size: size in voxels of what the network sees at a time, see `HybridEncoder`.
        positions: "rescaled" or "index", see `HybridEncoder`.

    Raises:
        ValueError: unknown preset or `positions`; in `forward`, sides that are no multiple of twice the patch size,
            or so small that the deepest map has one position.

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
        *fine, last = self.encoder.channels
        self.down = PatchEmbedding(last, 2 * last)
        self.bottleneck = _residual_block(2 * last, 2 * last)
        # the encoder's last map goes into the decoder as it is, as in Swin-UNETR
        self.skips = nn.ModuleList([_residual_block(in_channels, fine[0]), *(_residual_block(w, w) for w in fine)])
        widths = [2 * last, last, *reversed(fine), fine[0]]  # from the deepest map to the full grid
        self.ups = nn.ModuleList(_up_block(deep, high) for deep, high in zip(widths, widths[1:], strict=False))
        self.out = UnetOutBlock(spatial_dims=3, in_channels=fine[0], out_channels=out_channels)
        replace_instance_norms(self)
        replace_image_convs(self.skips[0], in_channels)

    def forward(self, image: Tensor) -> Tensor:
        """Logits `(B, K, H, W, D)` of an image `(B, C, H, W, D)`."""
        check_sides(image.shape[2:], self.size_multiple, "HybridSwinUNETR", least_positions=2)
        maps = self.encoder(image)
        deepest = self.down(maps[-1].permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)
        *fine, last = [_normalize(each) for each in maps]
        skips = [block(each) for block, each in zip(self.skips, [image, *fine], strict=True)]
        x = self.bottleneck(deepest)
        for up, skip in zip(self.ups, [last, *reversed(skips)], strict=True):
            x = up(x, skip)
        return self.out(x)


def check_sides(spatial_size: Sequence[int], multiple: int, network: str, least_positions: int = 1) -> None:
    """Raise ValueError unless a network can take images of that size; the error names the nearest sizes it can.

    Args:
        spatial_size: three sides in voxels.
        multiple: what every side must be a multiple of.
        network: named in the error.
        least_positions: 2 where the network normalises over the positions of its deepest map, whose grid is `multiple`
            times coarser: one alone would always become 0, and PyTorch refuses it.
    """
    sides = tuple(spatial_size)
    if len(sides) != 3 or any(side <= 0 or side % multiple for side in sides):
        valid = f"; nearest valid sizes: {nearest_multiples(sides, multiple)}" if len(sides) == 3 else ""
        raise ValueError(f"{network} needs three sides that are multiples of {multiple}, got {sides}{valid}.")
    if math.prod(side // multiple for side in sides) < least_positions:
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
