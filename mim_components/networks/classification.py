"""Classification networks: an encoder, the mean over its tokens, one linear layer (docs/method.md, fine-tuning).

Axes: image (B, C, H, W, D); feature map (B, E, h, w, d); logits (B, K).
"""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets.swin_unetr import SwinTransformer
from torch import Tensor, nn

from mim_components.networks.hybrid import HybridEncoder
from mim_components.networks.presets import get_preset


class HybridClassifier(nn.Module):
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

    def forward(self, image: Tensor) -> Tensor:
        """Logits `(B, K)` of an image `(B, C, H, W, D)`."""
        return self.head(self.norm(self.encoder(image)[-1].mean((2, 3, 4))))


class SwinViTClassifier(nn.Module):
    """The baseline: MONAI's Swin transformer, mean over the tokens of its last stage, LayerNorm, linear.

    Args:
        in_channels: channels C of the image.
        num_classes: number of classes K.
        preset: gives the width after the first stage, 48 for `base`; the last is 16 times as wide.

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
