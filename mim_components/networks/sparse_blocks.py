"""Visible tokens only: the blocks of voxels that tokens cover, without the masked ones in between.

Axes: image (B, C, H, W, D); token grid (h, w, d), N = h * w * d, n visible; blocks (B, n, s, s, s, C), s = edge of a
token at a stage, token numbers `ids` (B, n) in ascending order. Rows (B * n * s^3, C) are the voxels of all blocks. The
neighbourhood of a block is itself with a margin of r voxels, edge k = s + 2r, where a masked voxel is zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim_components.tokens import Grid, gather_tokens, token_grid


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
    """Where the voxels of every block's neighbourhood are found.

    Args:
        ids: visible token numbers `(B, n)`.
        grid: token grid.
        edge: edge s of a block.
        margin: r.

    Returns:
        `(B * n, k^3)`: row numbers; B * n * s^3, one past the last row, for what is masked or outside the image.
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
