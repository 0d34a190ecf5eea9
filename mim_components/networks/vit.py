"""Plain ViT encoder, for MiM with a UNETR network and for the MAE3D baseline (docs/method.md, 3.2).

Axes: image (B, C, H, W, D); tokens (B, N, E); n visible tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from monai.networks.blocks.transformerblock import TransformerBlock
from monai.networks.nets import ViT
from torch import Tensor

from mim_components.networks.blocks import init_linear
from mim_components.networks.hub import HubMixin
from mim_components.networks.presets import get_preset
from mim_components.tokens import (
    check_mask,
    check_positions,
    gather_tokens,
    sincos_positions,
    token_grid,
    visible_and_masked_ids,
)

if TYPE_CHECKING:
    from typing_extensions import Self

    from mim_components.weights.contract import InputContract


class ViTEncoder(HubMixin, ViT):
    """MONAI's ViT that can also run on visible tokens only; same interface as `HybridEncoder`.

    It has MONAI's keys, so its weights load into `monai.networks.nets.UNETR().vit` unchanged.

    Args:
        in_channels: channels C of the image.
        preset: name of the sizes, see `mim_components.networks.PRESETS`.
        input_size: size in voxels that the stored positions are for; other sizes get their own sin-cos positions.
        positions: for other sizes: "rescaled" to the range of the stored ones, or "index"; see `HybridEncoder`.

    Raises:
        ValueError: unknown preset or `positions`; a side that is not a multiple of the patch size.

    Example:
        >>> import torch
        >>> encoder = ViTEncoder(in_channels=1, preset="nano", input_size=(32, 32, 32))
        >>> [tuple(layer.shape[1:]) for layer in encoder(torch.zeros(1, 1, 32, 32, 32))]
        [(48, 4, 4, 4), (48, 4, 4, 4), (48, 4, 4, 4), (48, 4, 4, 4)]
    """

    kind = "vit"

    def __init__(
        self,
        in_channels: int = 1,
        preset: str = "base",
        input_size: Sequence[int] = (96, 96, 96),
        positions: str = "rescaled",
    ) -> None:
        sizes = get_preset(preset)
        grid = token_grid(input_size, sizes.patch_size)
        vit = sizes.vit
        super().__init__(
            in_channels,
            tuple(input_size),
            sizes.patch_size,
            hidden_size=vit.hidden_size,
            mlp_dim=4 * vit.hidden_size,
            num_layers=vit.depth,
            num_heads=vit.num_heads,
        )
        self.in_channels = in_channels
        self.patch_size = sizes.patch_size
        self.embed_dim = vit.hidden_size
        self.channels = (vit.hidden_size,) * 4
        self.apply(init_linear)
        stored = self.patch_embedding.position_embeddings
        stored.data.copy_(sincos_positions(grid, vit.hidden_size, stored))
        stored.requires_grad_(False)
        self.positions = check_positions(positions)
        self.grid = grid
        for block in self.blocks:
            assert isinstance(block, TransformerBlock)
            block.attn.use_flash_attention = True  # ViT's constructor does not pass it on
            block.norm_cross_attn.requires_grad_(False)  # unused; kept for MONAI's keys

    @classmethod
    def _from_contract(cls, contract: InputContract, dense_only: bool) -> Self:
        return cls(contract.in_channels, contract.preset, contract.input_size)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """The feature maps of a whole image; see `HybridEncoder`."""
        quarter = len(self.blocks) // 4
        modules = [*(f"blocks.{quarter * number}" for number in (1, 2, 3)), "norm"]
        return [{"num_chs": self.embed_dim, "reduction": self.patch_size, "module": module} for module in modules]

    def forward_features(self, image: Tensor) -> Tensor:
        """The last map `(B, E, h, w, d)` of an image `(B, C, H, W, D)`, as timm names it."""
        return self(image)[-1]

    def forward(
        self, image: Tensor, masked: Tensor | None = None, num_visible: int | None = None
    ) -> list[Tensor] | Tensor:
        """Encode a whole image to four feature maps, or the visible part of a masked one to tokens.

        Args:
            image: `(B, C, H, W, D)`, sides divisible by the patch size.
            masked: bool `(B, N)`, True = hidden, the same number in every row; None = dense.
            num_visible: number of visible tokens per row, if the caller knows it.

        Returns:
            Without `masked`, the maps `(B, E, h, w, d)` that UNETR reads: hidden states 3, 6 and 9 (of 12 blocks) and
            the normalised output. With `masked`, the visible tokens `(B, n, E)` in ascending token order, normalised.
        """
        grid = token_grid(image.shape[2:], self.patch_size)
        if masked is not None:
            check_mask(masked, len(image), grid)
        tokens = self.patch_embedding.patch_embeddings(image).flatten(2).transpose(1, 2)  # (B, N, E)
        positions: Tensor = self.patch_embedding.position_embeddings
        if grid != self.grid:
            trained = self.grid if self.positions == "rescaled" else None
            positions = sincos_positions(grid, self.embed_dim, tokens, trained).to(positions.dtype)
        tokens = tokens + positions
        if masked is not None:
            ids, _ = visible_and_masked_ids(masked, num_visible)
            tokens = gather_tokens(tokens, ids)  # (B, n, E)
        states = []
        for block in self.blocks:
            tokens = block(tokens)
            states.append(tokens)
        output = self.norm(tokens)
        if masked is not None:
            return output
        quarter = len(states) // 4
        layers = [states[quarter], states[2 * quarter], states[3 * quarter], output]
        return [layer.transpose(1, 2).unflatten(2, grid) for layer in layers]
