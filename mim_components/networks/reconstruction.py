"""The pre-training network as a network of one image: hide tokens, fill them in.

Axes: image (B, C, H, W, D); token grid (h, w, d), row-major, N = h * w * d.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mim_components.networks.mim import MiM
from mim_components.randomness import keyed_seed
from mim_components.tokens import draw_masks, num_visible_tokens


class MiMReconstructor(MiM):
    """`MiM` that maps an image to its reconstruction from a random part of its tokens; same state-dict keys.

    The mask of a window follows from the seed and from where the window begins, never from what was drawn before.

    Args:
        in_channels: channels C of the image.
        input_size: size in voxels of every window.
        preset: name of the sizes, see `mim_components.networks.PRESETS`.
        encoder: "hybrid" or "vit".
        num_levels: number of levels L of the training; there are L - 1 pairs of alignment heads.
        projection_dim: width of the alignment space.
        mask_ratio: share of the N tokens to hide, in (0, 1); floor(N * (1 - mask_ratio)) stay visible.
        seed: of the masks.
        standardized: the network was trained on standardised tokens (`normalize_target`); its prediction gets the mean
            and the standard deviation of the true token.
        positions: see `MiM`.

    Raises:
        ValueError: as `MiM`; or `mask_ratio` leaves no token visible or none hidden.

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
                f"mask_ratio must leave tokens visible and hide some, got {mask_ratio} of {self.num_tokens} tokens."
            )
        self.seed = seed
        self.standardized = standardized

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
            windows: where each lies: slices over (batch, channel, H, W, D) of the volume.

        Returns:
            The reconstruction, as `forward`, and the mask on the token grid `(B, 1, h, w, d)`, 1 = hidden.
        """
        masked = self.draw_masks([[each.start for each in window[2:]] for window in windows]).to(image.device)
        filled = self.reconstruct(image, masked, self.standardized)
        return filled.to(image.dtype), masked.view(-1, 1, *self.grid).to(image.dtype)
