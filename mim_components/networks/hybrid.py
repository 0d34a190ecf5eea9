"""Hybrid (convolution + transformer) encoder: MCMAE's masked convolutional encoder in 3D (docs/method.md, 3.1).

Masked input is computed on visible tokens only, as blocks: the voxels that each token covers.

Axes: image (B, C, H, W, D); inside the convolutional stages (B, H, W, D, C), so that norms, 1x1x1 convolutions and MLPs
act on the last axis and the convolutions see the channels-last layout; tokens (B, N, E); token grid (h, w, d),
N = h * w * d; n visible tokens, token numbers `ids` (B, n) in ascending order; blocks (B, n, s, s, s, C) of the visible
tokens only, s = edge of a token at the stage. Rows (B * n * s^3, C) are the voxels of all blocks. The neighbourhood of
a block is the block with a margin of r voxels, edge k = s + 2r, where masked voxels are zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from monai.networks.blocks.mlp import MLPBlock
from torch import Tensor, nn

from mim_components.networks.blocks import init_linear, transformer_block
from mim_components.networks.depthwise import depthwise
from mim_components.networks.hub import HubMixin
from mim_components.networks.presets import get_preset
from mim_components.tokens import (
    Grid,
    check_mask,
    check_positions,
    gather_tokens,
    sincos_positions,
    token_grid,
    upsample_mask,
    visible_and_masked_ids,
)

if TYPE_CHECKING:
    from typing_extensions import Self

    from mim_components.weights.contract import InputContract

KERNEL_SIZE = 5  # of the depth-wise convolutions


class PatchEmbedding(nn.Module):
    """Halve the grid: convolution with kernel = stride = 2, LayerNorm, GELU; acts inside blocks of 2x2x2 only."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size=2, stride=2)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, H, W, D, C)` to `(B, H/2, W/2, D/2, C')`; blocks `(B, n, s, s, s, C)` likewise, s to s/2."""
        return F.gelu(self.norm(_conv(self.conv, x) if x.dim() == 5 else conv_blocks(self.conv, x)))


class ConvBlock(nn.Module):
    """Convolutional block: `x + conv1(dwconv5(visible * conv1(LN(x))))`, then `x + MLP(LN(x))`.

    The depth-wise convolution is the only operation that mixes positions; masked positions are zeroed before it, so no
    masked voxel reaches a visible position.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.conv1 = nn.Linear(channels, channels)  # 1x1x1 convolutions, on the last axis
        self.depthwise = nn.Conv3d(channels, channels, KERNEL_SIZE, padding=KERNEL_SIZE // 2, groups=channels)
        self.conv2 = nn.Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = MLPBlock(channels, 4 * channels)

    def forward(self, x: Tensor, hidden: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        """Mix positions, then channels.

        Args:
            x: `(B, H, W, D, C)`, or blocks `(B, n, s, s, s, C)`.
            hidden: for the whole grid: bool `(B, H, W, D, 1)`, True = masked, None = all visible.
            rows: for blocks: rows of their neighbourhoods, from `neighbour_rows`.
        """
        y = self.conv1(self.norm1(x))
        y = depthwise(self.depthwise, y if hidden is None else y.masked_fill(hidden, 0.0), rows)
        x = x + self.conv2(y)
        return x + self.mlp(self.norm2(x))


class HybridEncoder(HubMixin):
    """3D hybrid encoder: convolutional stages, then a transformer over the (visible) tokens.

    One class serves pre-training and fine-tuning with the same state-dict keys. Positions are fixed sin-cos, computed
    for the grid of the input. The grid that the weights were trained on is part of the state dict, as `_extra_state`,
    so that positions mean the same wherever the weights are used.

    Args:
        in_channels: channels C of the image.
        preset: name of the sizes, see `mim_components.networks.PRESETS`; its strides give the patch size p.
        dense_only: leave out `MASKED_ONLY`, the modules that only masked input uses: under DDP a parameter without
            gradient is an error. The other keys stay the same.
        sparse: compute the convolutional stages of masked input on visible tokens only; False computes the whole grid
            and discards the masked part, with the same result up to rounding.
        input_size: size in voxels of the volumes it is trained on; loaded weights bring their own. None = unknown.
        positions: "rescaled": on a grid other than the trained one, coordinates are rescaled to the trained range;
            "index", or where the trained grid is unknown: tokens are numbered from 0.

    Raises:
        ValueError: unknown preset or `positions`; a side of `input_size`, or of the image in `forward`, that is not a
            multiple of p; or masked input to a `dense_only` network.

    Example:
        >>> import torch
        >>> encoder = HybridEncoder(in_channels=1, preset="nano")
        >>> [tuple(stage.shape[1:]) for stage in encoder(torch.zeros(1, 1, 32, 32, 32))]
        [(8, 16, 16, 16), (16, 8, 8, 8), (48, 4, 4, 4)]
        >>> masked = torch.arange(64).unsqueeze(0) >= 25
        >>> encoder(torch.zeros(1, 1, 32, 32, 32), masked=masked).shape
        torch.Size([1, 25, 48])
    """

    MASKED_ONLY = ("stage_outputs.", "norm.")
    kind = "hybrid"

    def __init__(
        self,
        in_channels: int = 1,
        preset: str = "base",
        dense_only: bool = False,
        sparse: bool = True,
        input_size: Sequence[int] | None = None,
        positions: str = "rescaled",
    ) -> None:
        super().__init__()
        sizes = get_preset(preset).hybrid
        widths = (in_channels, *sizes.channels)
        self.in_channels = in_channels
        self.patch_size = sizes.patch_size
        self.channels = sizes.channels
        self.embed_dim = sizes.channels[-1]
        self.trained_grid = None if input_size is None else token_grid(input_size, sizes.patch_size)
        self.positions = check_positions(positions)
        self.embeddings = nn.ModuleList(PatchEmbedding(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.stages = nn.ModuleList(
            nn.ModuleList(ConvBlock(width) for _ in range(depth))
            for width, depth in zip(sizes.channels[:-1], sizes.depths[:-1], strict=True)
        )
        if not dense_only:
            # brings each convolutional stage to the token grid: kernel = stride = edge of a token at that stage
            self.stage_outputs = nn.ModuleList(
                nn.Conv3d(width, self.embed_dim, kernel_size=k, stride=k)
                for width, k in zip(sizes.channels[:-1], self._stage_edges(), strict=True)
            )
            # 12 M weights of base, used as matrices with the channels last: this layout saves copying them
            nn.utils.convert_conv3d_weight_memory_format(self.stage_outputs, torch.channels_last_3d)
        self.projection = nn.Linear(self.embed_dim, self.embed_dim)
        self.blocks = nn.ModuleList(transformer_block(self.embed_dim, sizes.num_heads) for _ in range(sizes.depths[-1]))
        if not dense_only:
            self.norm = nn.LayerNorm(self.embed_dim)
        self.dense_only = dense_only
        self.sparse = sparse
        self.apply(init_linear)

    @classmethod
    def _from_contract(cls, contract: InputContract, dense_only: bool) -> Self:
        return cls(contract.in_channels, contract.preset, dense_only, input_size=contract.input_size)

    def get_extra_state(self) -> Tensor:
        """The trained grid, int64 `(3,)`, zeros if unknown; no buffer, since EMA would average it like weights."""
        return torch.tensor(self.trained_grid or (0, 0, 0))

    def set_extra_state(self, state: Tensor) -> None:
        """Adopt the trained grid of loaded weights."""
        h, w, d = state.tolist()
        self.trained_grid = (h, w, d) if h * w * d else None

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """The feature maps of a whole image in timm's form: channels, edge in voxels, module."""
        modules = [*(f"stages.{number}" for number in range(len(self.stages))), "blocks"]
        return [
            {"num_chs": width, "reduction": 2 ** (number + 1), "module": module}
            for number, (width, module) in enumerate(zip(self.channels, modules, strict=True))
        ]

    def forward_features(self, image: Tensor) -> Tensor:
        """The last map `(B, E, h, w, d)` of an image `(B, C, H, W, D)`, as timm names it."""
        return self(image)[-1]

    def _stage_edges(self) -> list[int]:
        """Edge of a token on the grid of each convolutional stage, e.g. [8, 4, 2]."""
        return [self.patch_size // 2 ** (stage + 1) for stage in range(len(self.channels) - 1)]

    def forward(
        self, image: Tensor, masked: Tensor | None = None, num_visible: int | None = None
    ) -> list[Tensor] | Tensor:
        """Encode a whole image to its pyramid, or the visible part of a masked one to tokens.

        Args:
            image: `(B, C, H, W, D)`, sides divisible by the patch size.
            masked: bool `(B, N)`, True = hidden, the same number in every row; None = dense.
            num_visible: number of visible tokens per row if the caller knows it, which saves a device synchronisation.

        Returns:
            Without `masked`, the feature maps of all stages, `(B, channels[i], H / 2^(i+1), ...)`, the last being the
            transformer's own output. With `masked`, the visible tokens `(B, n, E)` in ascending token order: the
            transformer's output plus the convolutional stages brought to the token grid, normalised.

        Raises:
            ValueError: a side of the image is not a multiple of the patch size, the mask does not fit it, or the
                encoder is `dense_only` and gets one.
        """
        grid = token_grid(image.shape[2:], self.patch_size)
        if masked is not None:
            if self.dense_only:
                raise ValueError("an encoder with dense_only=True cannot take masked input.")
            check_mask(masked, len(image), grid)
            if self.sparse:
                return self._encode_visible(image, visible_and_masked_ids(masked, num_visible)[0], grid)
        x = image.permute(0, 2, 3, 4, 1)  # (B, H, W, D, C)
        stages = []
        for embedding, blocks, edge in zip(self.embeddings, self.stages, self._stage_edges(), strict=False):
            hidden = None if masked is None else upsample_mask(masked, grid, edge).unsqueeze(-1)
            x = embedding(x)
            for block in cast(nn.ModuleList, blocks):
                x = block(x, hidden)
            stages.append(x)
        tokens = self.projection(self.embeddings[-1](x).flatten(1, 3))  # (B, N, E)
        tokens = tokens + self._positions(grid, tokens)
        if masked is None:
            maps = [stage.permute(0, 4, 1, 2, 3) for stage in stages]
            return [*maps, self._transform(tokens).transpose(1, 2).unflatten(2, grid)]
        ids, _ = visible_and_masked_ids(masked, num_visible)
        tokens = self._transform(gather_tokens(tokens, ids))  # (B, n, E)
        for stage, conv in zip(stages, self.stage_outputs, strict=True):
            tokens = tokens + gather_tokens(_conv(conv, stage).flatten(1, 3), ids)
        return self.norm(tokens)

    def _encode_visible(self, image: Tensor, ids: Tensor, grid: Grid) -> Tensor:
        """Visible tokens `(B, n, E)`, `ids` `(B, n)`, without computing any masked one."""
        x = cut_blocks(image, ids, self.patch_size)  # (B, n, p, p, p, C)
        outputs = []
        for embedding, blocks, conv in zip(self.embeddings, self.stages, self.stage_outputs, strict=False):
            x = embedding(x)  # (B, n, s, s, s, C)
            rows = neighbour_rows(ids, grid, x.shape[2], KERNEL_SIZE // 2)
            for block in cast(nn.ModuleList, blocks):
                x = block(x, rows=rows)
            outputs.append(conv_blocks(cast(nn.Conv3d, conv), x).flatten(1, 4))  # (B, n, E)
        tokens = self.projection(self.embeddings[-1](x).flatten(1, 4))
        positions = self._positions(grid, tokens).expand(len(ids), -1, -1)
        tokens = self._transform(tokens + gather_tokens(positions, ids))
        for output in outputs:
            tokens = tokens + output
        return self.norm(tokens)

    def _positions(self, grid: Grid, like: Tensor) -> Tensor:
        trained = self.trained_grid if self.positions == "rescaled" else None
        return sincos_positions(grid, self.embed_dim, like, trained).to(self.projection.weight.dtype)

    def _transform(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


def _conv(conv: nn.Module, x: Tensor) -> Tensor:
    """Apply a convolution to `(B, H, W, D, C)`, a view in channels-last layout."""
    return conv(x.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)


def cut_blocks(image: Tensor, ids: Tensor, edge: int) -> Tensor:
    """Cut the tokens `ids` `(B, n)` from an image `(B, C, H, W, D)`: blocks `(B, n, s, s, s, C)`, s = `edge`."""
    b, c = image.shape[:2]
    h, w, d = token_grid(image.shape[2:], edge)
    blocks = image.reshape(b, c, h, edge, w, edge, d, edge).permute(0, 2, 4, 6, 3, 5, 7, 1)  # (B, h, w, d, s, s, s, C)
    return gather_tokens(blocks.reshape(b, h * w * d, -1), ids).unflatten(2, (edge, edge, edge, c))


def conv_blocks(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """Apply a convolution with kernel = stride = f to blocks: `(B, n, s, s, s, C)` to `(B, n, s/f, s/f, s/f, C')`."""
    f = conv.kernel_size[0]
    x = x.unflatten(4, (-1, f)).unflatten(3, (-1, f)).unflatten(2, (-1, f))  # (B, n, s/f, f, s/f, f, s/f, f, C)
    x = x.permute(0, 1, 2, 4, 6, 3, 5, 7, 8).flatten(5)  # a view where s = f
    return F.linear(x, conv.weight.permute(0, 2, 3, 4, 1).flatten(1), conv.bias)


def neighbour_rows(ids: Tensor, grid: Grid, edge: int, margin: int) -> Tensor:
    """Row numbers of the voxels in every block's neighbourhood.

    Args:
        ids: visible token numbers `(B, n)`.
        grid: token grid.
        edge: edge s of a block, voxels.
        margin: r, voxels.

    Returns:
        `(B * n, k^3)`: row numbers; B * n * s^3, one past the last row, for voxels masked or outside the image.
    """
    b, n = ids.shape
    reach = math.ceil(margin / edge)  # in tokens
    numbers = torch.arange(b * n, device=ids.device).view(b, n)
    blocks = torch.full((b, math.prod(grid)), -1, device=ids.device).scatter(1, ids, numbers)
    blocks = F.pad(blocks.view(b, *grid), (reach, reach) * 3, value=-1)  # (B, h + 2 reach, ...), -1 = no block

    offset = torch.arange(-margin, edge + margin, device=ids.device)
    token, inside = offset.div(edge, rounding_mode="floor") + reach, offset % edge  # (k): which token, where in it
    axes = ids // (grid[1] * grid[2]), ids // grid[2] % grid[1], ids % grid[2]
    h, w, d = (axis.unsqueeze(-1) + token for axis in axes)  # (B, n, k)
    around = _number(h, w, d, blocks.shape[2:])  # (B, n, k, k, k)
    block = blocks.flatten(1).gather(1, around.flatten(1)).view(b * n, -1)
    row = block * edge**3 + _number(inside, inside, inside, (edge, edge)).flatten()
    return row.masked_fill(block < 0, b * n * edge**3)


def _number(h: Tensor, w: Tensor, d: Tensor, sides: Sequence[int]) -> Tensor:
    """Row-major numbers `(..., k, k, k)` of positions in a grid with the last two `sides`; h, w, d `(..., k)`."""
    plane = h[..., :, None] * sides[-2] + w[..., None, :]
    return plane[..., None] * sides[-1] + d[..., None, None, :]
