"""Token grids: positions, masks and blocks of voxels; random masks.

Axes: images (B, C, H, W, D); token grid (h, w, d), row-major, N = h * w * d; tokens (B, N, E); n visible, M masked.
`masked` is bool (B, N), True = the network must not see it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Grid = tuple[int, int, int]

POSITIONS = ("rescaled", "index")
VARIANCE_FLOOR = 1e-4  # of a target: (20 HU)^2 where 2000 HU are scaled to [0, 1]; less is scanner noise in air


def token_grid(spatial_size: Sequence[int], patch_size: int) -> Grid:
    """Number of tokens along each axis of an image of `spatial_size` voxels.

    Raises:
        ValueError: `patch_size` is below 1, or does not divide a side; names the nearest sizes that it divides.
    """
    if patch_size < 1:
        raise ValueError(f"patch_size must be at least 1, got {patch_size}.")
    # under torch.jit.trace sides are tensors; the positions of a traced network are constants for its size
    spatial_size = [int(side) for side in spatial_size]
    if any(side <= 0 or side % patch_size for side in spatial_size):
        raise ValueError(
            f"every side must be a multiple of patch_size={patch_size}, got {tuple(spatial_size)}; "
            f"nearest valid sizes: {nearest_multiples(spatial_size, patch_size)}."
        )
    h, w, d = (side // patch_size for side in spatial_size)
    return h, w, d


def nearest_multiples(spatial_size: Sequence[int], multiple: int) -> str:
    """The nearest sizes below and above whose sides are positive multiples of `multiple`, as text.

    Example:
        >>> nearest_multiples((224, 224, 120), 32)
        '(224, 224, 96), (224, 224, 128)'
    """
    below = tuple(max(side // multiple, 1) * multiple for side in spatial_size)
    above = tuple(max(math.ceil(side / multiple), 1) * multiple for side in spatial_size)
    return f"{below}, {above}"


def check_positions(positions: str) -> str:
    """`positions` itself.

    Raises:
        ValueError: it is not one of `POSITIONS`.
    """
    if positions not in POSITIONS:
        raise ValueError(f"positions must be one of {', '.join(POSITIONS)}, got {positions!r}.")
    return positions


def axis_coordinates(num_tokens: int, num_trained: int) -> Tensor:
    """Centres of `num_tokens` tokens in units of `num_trained` tokens over the same length, `(num_tokens,)`.

    Mapped as by `torch.nn.functional.interpolate` (`align_corners=False`), and clamped to [0, num_trained - 1].

    Example:
        >>> axis_coordinates(6, 3).tolist(), axis_coordinates(2, 6).tolist(), axis_coordinates(3, 3).tolist()
        ([0.0, 0.25, 0.75, 1.25, 1.75, 2.0], [1.0, 4.0], [0.0, 1.0, 2.0])
    """
    centres = torch.arange(num_tokens, dtype=torch.float32) + 0.5
    return (centres * (num_trained / num_tokens) - 0.5).clamp(0, num_trained - 1)


@torch.compiler.assume_constant_result  # torch.compile must not trace it
def _sincos(grid: Grid, embed_dim: int, device: torch.device, trained: Grid) -> Tensor:
    return _make_sincos(grid, embed_dim, device, trained)


@functools.lru_cache(maxsize=64)
def _make_sincos(grid: Grid, embed_dim: int, device: torch.device, trained: Grid) -> Tensor:
    """MONAI's `build_sincos_position_embedding` for real coordinates; MONAI's own takes only integers."""
    with torch.device("cpu"):  # the same on all devices, even where another is the default
        axes = [axis_coordinates(have, want) for have, want in zip(grid, trained, strict=True)]
        h, w, d = torch.meshgrid(*axes, indexing="ij")
        omega = 1.0 / 10000.0 ** (torch.arange(embed_dim // 6, dtype=torch.float32) / (embed_dim // 6))
        angles = [axis.flatten().unsqueeze(1) * omega for axis in (w, h, d)]  # each (N, E / 6); in MONAI's order
        parts = [wave(angle) for angle in angles for wave in (torch.sin, torch.cos)]
        return torch.cat(parts, dim=1).unsqueeze(0).to(device)


def sincos_positions(grid: Grid, embed_dim: int, like: Tensor, trained: Grid | None = None) -> Tensor:
    """Fixed 3D sin-cos positions `(1, N, E)` of a token grid, on the device of `like`.

    Args:
        grid: token grid.
        embed_dim: width E, a multiple of 6.
        like: tensor that sets the device.
        trained: token grid to whose range coordinates are rescaled, see `axis_coordinates`; None = not rescaled.
    """
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        # an exported tensor holds no values and must not stay in the cache; a traced graph must be the same every time
        return _make_sincos.__wrapped__(grid, embed_dim, like.device, trained or grid)
    return _sincos(grid, embed_dim, like.device, trained or grid)


def upsample_mask(masked: Tensor, grid: Grid, factor: int) -> Tensor:
    """Spread a token mask `(B, N)` over a grid `factor` times finer: bool `(B, h*f, w*f, d*f)`."""
    h, w, d = grid
    fine = masked.view(-1, h, 1, w, 1, d, 1).expand(-1, h, factor, w, factor, d, factor)
    return fine.reshape(-1, h * factor, w * factor, d * factor)


def check_mask(masked: Tensor, batch_size: int, grid: Grid) -> None:
    """Check that `masked` is bool `(batch_size, N)` for the token grid.

    Raises:
        ValueError: it is not.
    """
    want = (batch_size, math.prod(grid))
    if masked.dtype != torch.bool:
        raise ValueError(f"masked must be bool, True = hidden, got {masked.dtype}.")
    if tuple(masked.shape) != want:
        raise ValueError(
            f"masked must be (B, N) = {want} for {grid[0]}x{grid[1]}x{grid[2]} tokens, got {tuple(masked.shape)}."
        )


def visible_and_masked_ids(masked: Tensor, num_visible: int | None = None) -> tuple[Tensor, Tensor]:
    """Token numbers in ascending order: visible `(B, n)` and masked `(B, M)`.

    Args:
        masked: bool `(B, N)` with the same number of masked tokens in every row.
        num_visible: n, if the caller knows it; otherwise it is counted, which synchronises with the device.

    Raises:
        ValueError: rows differ in their number of visible tokens (checked only when counted), or none is visible.
    """
    if num_visible is None:
        counts = (~masked).sum(1)
        num_visible = int(counts[0])
        if bool((counts != num_visible).any()):
            raise ValueError(f"every volume must have the same number of visible tokens, got {counts.tolist()}.")
    if not 0 < num_visible <= masked.shape[1]:
        raise ValueError(f"between 1 and {masked.shape[1]} tokens must be visible, got {num_visible}.")
    order = masked.to(torch.uint8).argsort(dim=1, stable=True)  # stable: ascending within visible and within masked
    return order[:, :num_visible], order[:, num_visible:]


def gather_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Gather tokens `(B, K, E)` by number, `ids` `(B, K)`, from `(B, N, E)`."""
    return tokens.gather(1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def patchify(image: Tensor, patch_size: int) -> Tensor:
    """Cut an image `(B, C, H, W, D)` into tokens `(B, N, C * p^3)`, voxels of a token in (C, p, p, p) order."""
    b, c = image.shape[:2]
    h, w, d = token_grid(image.shape[2:], patch_size)
    p = patch_size
    blocks = image.reshape(b, c, h, p, w, p, d, p).permute(0, 2, 4, 6, 1, 3, 5, 7)  # (B, h, w, d, C, p, p, p)
    return blocks.reshape(b, h * w * d, c * p**3)


def unpatchify(tokens: Tensor, grid: Grid, patch_size: int) -> Tensor:
    """Inverse of `patchify`: tokens `(B, N, C * p^3)` to an image `(B, C, H, W, D)`."""
    b = tokens.shape[0]
    h, w, d = grid
    p = patch_size
    blocks = tokens.reshape(b, h, w, d, -1, p, p, p).permute(0, 4, 1, 5, 2, 6, 3, 7)  # (B, C, h, p, w, p, d, p)
    return blocks.reshape(b, -1, h * p, w * p, d * p)


def standardize_tokens(tokens: Tensor) -> Tensor:
    """Give each token `(..., P)` mean 0 and (biased) variance v / (v + `VARIANCE_FLOOR`): MAE's target, with a floor.

    So a textured token has a variance of nearly 1, and noise of 10 HU in air one of 0.2 instead of 1.
    """
    var, mean = torch.var_mean(tokens, dim=-1, keepdim=True, correction=0)
    return (tokens - mean) / (var + VARIANCE_FLOOR).sqrt()


def restore_tokens(standardized: Tensor, like: Tensor) -> Tensor:
    """Inverse of `standardize_tokens`, with the mean and deviation of `like`; both `(..., P)`."""
    var, mean = torch.var_mean(like, dim=-1, keepdim=True, correction=0)
    return standardized * (var + VARIANCE_FLOOR).sqrt() + mean


def num_visible_tokens(num_tokens: int, mask_ratio: float) -> int:
    """floor(N * (1 - mask_ratio)), also where floats fall just short of an integer product."""
    return int(num_tokens * (1 - mask_ratio) + 1e-9)


def token_numbers(grid: Sequence[int]) -> np.ndarray:
    """Grid coordinates of every token, int64 `(N, 3)`, row-major."""
    return np.stack(np.unravel_index(np.arange(int(np.prod(grid))), tuple(grid)), axis=1)


def draw_masks(
    random: np.random.RandomState, num_volumes: int, num_tokens: int, num_visible: int
) -> tuple[np.ndarray, np.ndarray]:
    """Random token orders `(V, N)`, whose first `num_visible` stay visible, and the resulting masks, bool `(V, N)`."""
    orders = np.stack([random.permutation(num_tokens) for _ in range(num_volumes)])
    masked = np.ones((num_volumes, num_tokens), dtype=bool)
    np.put_along_axis(masked, orders[:, :num_visible], False, axis=1)
    return orders, masked
