"""The pre-training network: encoder, decoder, prediction head and alignment heads (docs/method.md, 3.1-3.3).

`MiMReconstructor` applies it to single images: mask tokens and fill them in.

Axes: image (B, C, H, W, D); token grid (h, w, d), N = h * w * d; tokens (B, N, E), row-major over the grid; n visible
and M masked tokens per volume; P = C * p^3 voxels of a token; D = width of the alignment space. B counts volumes of a
level: samples * V_l.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mim_components.networks.blocks import init_linear, transformer_block
from mim_components.networks.hybrid import HybridEncoder
from mim_components.networks.presets import TransformerSizes, get_preset
from mim_components.networks.scripting import ScriptedByTrace
from mim_components.networks.vit import ViTEncoder
from mim_components.randomness import keyed_seed
from mim_components.tokens import (
    draw_masks,
    gather_tokens,
    num_visible_tokens,
    patchify,
    restore_tokens,
    sincos_positions,
    token_grid,
    unpatchify,
    visible_and_masked_ids,
)

ENCODERS = ("hybrid", "vit")


class MiMOutput(NamedTuple):
    """What the losses need, one entry per level (or pair of levels), outermost first.

    Attributes:
        prediction: voxels of the masked tokens in ascending token order, `(B_l, M, P)`.
        context: for each pair (l, l+1), the context vector of every child, `(B_(l+1), D)`.
        patches: for each pair (l, l+1), the projected tokens of every parent, `(B_l, N, D)`.
        latent: latent features of all tokens, `(B_l, N, E_d)`, detached: parents for later passes.
    """

    prediction: tuple[Tensor, ...]
    context: tuple[Tensor, ...]
    patches: tuple[Tensor, ...]
    latent: tuple[Tensor, ...] = ()


class Decoder(nn.Module):
    """Lightweight decoder: visible tokens plus mask tokens to latent features of all N tokens.

    Args:
        embed_dim: width E of the encoder's tokens.
        sizes: width, depth and heads of the decoder.
    """

    def __init__(self, embed_dim: int, sizes: TransformerSizes) -> None:
        super().__init__()
        self.embed = nn.Linear(embed_dim, sizes.hidden_size)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, sizes.hidden_size))
        self.blocks = nn.ModuleList(transformer_block(sizes.hidden_size, sizes.num_heads) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(sizes.hidden_size)
        nn.init.normal_(self.mask_token, std=0.02)
        self.apply(init_linear)

    def forward(self, visible: Tensor, visible_ids: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """`visible` `(B, n, E)` at the token numbers `visible_ids` `(B, n)` to latent features q `(B, N, E_d)`."""
        x = self.embed(visible)
        num_tokens = grid[0] * grid[1] * grid[2]
        tokens = self.mask_token.to(x.dtype).expand(len(x), num_tokens, -1)
        tokens = tokens.scatter(1, visible_ids.unsqueeze(-1).expand_as(x), x)
        tokens = tokens + sincos_positions(grid, tokens.shape[-1], tokens).to(self.mask_token.dtype)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


class AlignmentHeads(nn.Module):
    """The pair of heads of one pair of levels: child volume -> context vector, parent token -> patch vector."""

    def __init__(self, width: int, hidden: int, projection_dim: int) -> None:
        super().__init__()
        self.context = _mlp(width, hidden, projection_dim)
        self.patch = _mlp(width, hidden, projection_dim)
        self.apply(init_linear)

    def forward(self, child: Tensor, parent: Tensor) -> tuple[Tensor, Tensor]:
        """Latents of children `(B_(l+1), N, E_d)` and parents `(B_l, N, E_d)` to `(B_(l+1), D)` and `(B_l, N, D)`."""
        return self.context(child.mean(1)), self.patch(parent)


class MiM(nn.Module):
    """Mask in Mask: reconstruct nested masked volumes together and align them across levels.

    Volumes of all levels share one encoder and one decoder and go through them in one batched call.

    Args:
        in_channels: channels C of the image.
        input_size: size in voxels of every volume the network sees.
        preset: name of the sizes, see `mim_components.networks.PRESETS`.
        encoder: "hybrid", or "vit" for the plain ViT.
        num_levels: number of levels L; 1 has no alignment (MCMAE with the hybrid encoder, MAE3D with the ViT).
        projection_dim: width D of the alignment space.
        stop_gradient: detach the parent's latent features before its patch head, so that the alignment's gradient
            reaches only the child.
        sparse: see `HybridEncoder`; the ViT never computes masked tokens.
        positions: for the encoder on a grid other than that of `input_size`, outside this network; see `HybridEncoder`.

    Raises:
        ValueError: unknown preset, encoder or `positions`, no level, or an `input_size` that is not divisible by the
            patch size.

    Example:
        >>> network = MiM(input_size=(16, 16, 16), preset="nano", num_levels=2, projection_dim=32)
        >>> masked = torch.arange(8) > 2  # 3 of 8 tokens are visible
        >>> images = torch.rand(1, 1, 16, 16, 16), torch.rand(4, 1, 16, 16, 16)  # a scan and its 4 children
        >>> output = network(images, [masked.repeat(len(image), 1) for image in images])
        >>> [tuple(each.shape) for each in output.prediction]  # 5 masked tokens of 8 x 8 x 8 voxels
        [(1, 5, 512), (4, 5, 512)]
    """

    def __init__(
        self,
        in_channels: int = 1,
        input_size: Sequence[int] = (96, 96, 96),
        preset: str = "base",
        encoder: str = "hybrid",
        num_levels: int = 3,
        projection_dim: int = 2048,
        stop_gradient: bool = True,
        sparse: bool = True,
        positions: str = "rescaled",
    ) -> None:
        super().__init__()
        sizes = get_preset(preset)
        if encoder not in ENCODERS:
            raise ValueError(f"encoder must be one of {', '.join(ENCODERS)}, got {encoder!r}.")
        if num_levels < 1:
            raise ValueError(f"num_levels must be at least 1, got {num_levels}.")
        self.patch_size = sizes.patch_size
        self.input_size = tuple(input_size)
        self.grid = token_grid(input_size, self.patch_size)
        self.stop_gradient = stop_gradient
        self.encoder: HybridEncoder | ViTEncoder
        if encoder == "hybrid":
            self.encoder = HybridEncoder(in_channels, preset, sparse=sparse, input_size=input_size, positions=positions)
        else:
            self.encoder = ViTEncoder(in_channels, preset, input_size, positions)
        self.decoder = Decoder(self.encoder.embed_dim, sizes.decoder)
        width = sizes.decoder.hidden_size
        self.prediction_head = nn.Linear(width, in_channels * self.patch_size**3)
        self.alignment_heads = nn.ModuleList(
            AlignmentHeads(width, sizes.head_width, projection_dim) for _ in range(num_levels - 1)
        )
        init_linear(self.prediction_head)

    def forward(
        self,
        images: Sequence[Tensor],
        masked: Sequence[Tensor],
        num_visible: int | None = None,
        parents: Sequence[Tensor | None] | None = None,
    ) -> MiMOutput:
        """Encode, decode and project the volumes of all levels.

        Args:
            images: one `(B_l, C, *input_size)` per level.
            masked: one bool `(B_l, N)` per level, True = hidden, the same number in every row of every level.
            num_visible: number of visible tokens per volume, if the caller knows it.
            parents: when volumes go through the network in several passes: for each pair (l, l+1) the latent features
                `(P, N, E_d)` of the parents of this pass's children, from an earlier pass; None = a pair without
                children in this pass. Levels may then be empty.

        Raises:
            ValueError: the number of levels, or the size of the volumes, differs from the network's; or `parents` are
                given without `stop_gradient`.
        """
        if len(images) != len(masked) or len(images) != len(self.alignment_heads) + 1:
            raise ValueError(
                f"this network has {len(self.alignment_heads) + 1} levels, got {len(images)} images "
                f"and {len(masked)} masks."
            )
        if parents is not None and not self.stop_gradient:
            raise ValueError(
                "max_volumes_per_pass needs stop_gradient=True: with stop_gradient=False the alignment of a child also "
                "has a gradient in its parent, and both must go through the network in one pass."
            )
        latent, masked_ids = self._latent(torch.cat(list(images)), torch.cat(list(masked)), num_visible)
        prediction = self.prediction_head(gather_tokens(latent, masked_ids))  # (sum B_l, M, P)
        sizes = [len(image) for image in images]
        q = latent.split(sizes)
        context, patches = [], []
        detached = tuple(each.detach() for each in q)
        for pair, heads in enumerate(self.alignment_heads):
            parent: Tensor | None = detached[pair] if self.stop_gradient else q[pair]
            if parents is not None:
                parent = parents[pair]
            # heads without children in this pass project an empty batch, which keeps them in the graph for DDP
            c, p = heads(q[pair + 1], detached[pair][:0] if parent is None else parent)
            context.append(c)
            patches.append(p)
        return MiMOutput(prediction.split(sizes), tuple(context), tuple(patches), detached)

    def reconstruct(self, image: Tensor, masked: Tensor, standardized: bool = False) -> Tensor:
        """Fill the masked tokens of `image` with the prediction; visible voxels stay as they are.

        Args:
            image: `(B, C, *input_size)`.
            masked: bool `(B, N)`, True = hidden, the same number in every row.
            standardized: the network was trained on standardised tokens; its prediction gets the mean and the standard
                deviation of the true token.

        Returns:
            `(B, C, *input_size)`, in the intensities of `image`.
        """
        latent, masked_ids = self._latent(image, masked, None)
        prediction = self.prediction_head(gather_tokens(latent, masked_ids)).to(image.dtype)
        tokens = patchify(image, self.patch_size)
        if standardized:
            prediction = restore_tokens(prediction, gather_tokens(tokens, masked_ids))
        filled = tokens.scatter(1, masked_ids.unsqueeze(-1).expand_as(prediction), prediction)
        return unpatchify(filled, self.grid, self.patch_size)

    def _latent(self, image: Tensor, masked: Tensor, num_visible: int | None) -> tuple[Tensor, Tensor]:
        """Latent features of all tokens `(B, N, E_d)` and the masked token numbers `(B, M)`."""
        if tuple(image.shape[2:]) != self.input_size:
            raise ValueError(f"volumes must be input_size={self.input_size}, got {tuple(image.shape[2:])}.")
        visible_ids, masked_ids = visible_and_masked_ids(masked, num_visible)
        visible = self.encoder(image, masked=masked, num_visible=visible_ids.shape[1])  # (B, n, E)
        return self.decoder(visible, visible_ids, self.grid), masked_ids


def _mlp(width: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))


class MiMReconstructor(MiM, ScriptedByTrace):
    """`MiM` as a network from an image to its reconstruction from a random part of its tokens; same state-dict keys.

    The mask of a window depends only on the seed and on where the window begins, not on earlier draws.

    Args:
        in_channels: channels C of the image.
        input_size: size in voxels of every window.
        preset: name of the sizes, see `mim_components.networks.PRESETS`.
        encoder: "hybrid" or "vit".
        num_levels: number of levels L of the training; there are L - 1 pairs of alignment heads.
        projection_dim: width of the alignment space.
        mask_ratio: share of the N tokens to mask, in (0, 1); floor(N * (1 - mask_ratio)) stay visible.
        seed: seed of the masks.
        standardized: the network was trained on standardised tokens (`normalize_target`); its prediction gets the mean
            and the standard deviation of the true token.
        positions: see `MiM`.

    Raises:
        ValueError: as `MiM`; or `mask_ratio` leaves no token visible or none masked.

    Example:
        >>> network = MiMReconstructor(input_size=(32, 32, 32), preset="nano", projection_dim=16)
        >>> network(torch.zeros(2, 1, 32, 32, 32)).shape
        torch.Size([2, 1, 32, 32, 32])
    """

    def __init__(
        self,
        in_channels: int = 1,
        input_size: Sequence[int] = (96, 96, 96),
        preset: str = "base",
        encoder: str = "hybrid",
        num_levels: int = 3,
        projection_dim: int = 2048,
        mask_ratio: float = 0.6,
        seed: int = 0,
        standardized: bool = False,
        positions: str = "rescaled",
    ) -> None:
        super().__init__(in_channels, input_size, preset, encoder, num_levels, projection_dim, positions=positions)
        self.num_tokens = int(np.prod(self.grid))
        self.num_visible = num_visible_tokens(self.num_tokens, mask_ratio)
        if not 0 < self.num_visible < self.num_tokens:
            raise ValueError(
                f"mask_ratio must leave tokens visible and mask some, got {mask_ratio} of {self.num_tokens} tokens."
            )
        self.seed = seed
        self.standardized = standardized
        self.example_shape = (1, in_channels, *input_size)  # a trace keeps the mask of its one example window

    def forward(self, image: Tensor) -> Tensor:  # type: ignore[override]
        """Reconstruct `(B, C, *input_size)`; visible voxels stay as they are, every row has a mask of its own."""
        masked = self.draw_masks([(number,) for number in range(len(image))])
        return self.reconstruct(image, masked.to(image.device), self.standardized)

    def draw_masks(self, keys: Sequence[Sequence[int]]) -> Tensor:
        """One random mask per key: bool `(len(keys), N)`, True = hidden."""
        seeds = (keyed_seed(self.seed, "reconstruct", *key) for key in keys)
        rows = [draw_masks(np.random.RandomState(seed), 1, self.num_tokens, self.num_visible)[1] for seed in seeds]
        return torch.from_numpy(np.concatenate(rows))

    def reconstruct_windows(self, image: Tensor, windows: Sequence[Sequence[slice]]) -> tuple[Tensor, Tensor]:
        """Predictor for MONAI's sliding window with `with_coord=True`.

        Args:
            image: windows `(B, C, *input_size)`.
            windows: position of each: slices over (batch, channel, H, W, D) of the volume.

        Returns:
            The reconstruction, as in `forward`, and the mask on the token grid `(B, 1, h, w, d)`, 1 = masked.
        """
        masked = self.draw_masks([[each.start for each in window[2:]] for window in windows]).to(image.device)
        filled = self.reconstruct(image, masked, self.standardized)
        return filled.to(image.dtype), masked.view(-1, 1, *self.grid).to(image.dtype)
