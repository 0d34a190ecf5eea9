"""Volumes of all levels of a batch, as the network and the losses take them.

Axes: a level's volumes (B_l, C, H, W, D) with B_l = samples * V_l; N tokens. Child i was cut from parent
i // num_children, in one sample and in a whole batch alike, because every sample has the same number of volumes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class LevelBatch(NamedTuple):
    """One entry per level, outermost first; the parents start at level 2.

    Attributes:
        images: `(B_l, C, *input_size)`.
        masked: bool `(B_l, N)`, True = hidden.
        parent_token: int64 `(B_l,)`, for levels 2 and inwards.
        parent_overlap: bool `(B_l, N)`, for levels 2 and inwards.
    """

    images: tuple[Tensor, ...]
    masked: tuple[Tensor, ...]
    parent_token: tuple[Tensor, ...]
    parent_overlap: tuple[Tensor, ...]


def level_batch(
    batch: Mapping[str, Tensor], num_levels: int, device: torch.device | str | None = None, key: str = "image"
) -> LevelBatch:
    """Collect the levels from a collated batch of `MultiLevelCropMaskd` and move them to the device.

    Args:
        batch: items `(samples, V_l, ...)` under the keys that `MultiLevelCropMaskd` writes.
        num_levels: number of levels L.
        device: where to; copies are asynchronous from pinned memory. None = stay.
        key: the image's key.

    Raises:
        KeyError: a key is missing; names it and those there are.
    """

    def take(name: str, levels: range) -> tuple[Tensor, ...]:
        names = [f"{name}_level{level}" for level in levels]
        missing = [each for each in names if each not in batch]
        if missing:
            raise KeyError(f"the batch has no {missing[0]!r}; keys: {sorted(batch)}.")
        return tuple(batch[each].flatten(0, 1).to(device, non_blocking=True) for each in names)

    everything, children = range(1, num_levels + 1), range(2, num_levels + 1)
    return LevelBatch(
        take(key, everything), take("masked", everything), take("parent_token", children),
        take("parent_overlap", children),
    )  # fmt: skip
