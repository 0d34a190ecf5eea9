"""Volumes of all levels of a batch, as the network and the losses take them.

Axes: a level's volumes (B_l, C, H, W, D) with B_l = samples * V_l; N tokens. Child i was cut from parent
i // num_children, in one sample and in a whole batch alike, because every sample has the same number of volumes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class LevelPart(NamedTuple):
    """Some volumes of one level.

    Attributes:
        level: counted from 0, the outermost.
        volumes: which of the level.
        parents: which of the level above they were cut from; every one has equally many of `volumes`.
    """

    level: int
    volumes: slice
    parents: slice


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

    @property
    def sizes(self) -> list[int]:
        """Number of volumes of each level."""
        return [len(images) for images in self.images]

    def take(self, part: LevelPart) -> LevelBatch:
        """The volumes of a part; the other levels have none."""

        def cut(values: tuple[Tensor, ...], first: int) -> tuple[Tensor, ...]:
            nothing = slice(0)
            return tuple(v[part.volumes if level == part.level else nothing] for level, v in enumerate(values, first))

        return LevelBatch(
            cut(self.images, 0), cut(self.masked, 0), cut(self.parent_token, 1), cut(self.parent_overlap, 1)
        )


def split_levels(sizes: Sequence[int], max_volumes: int) -> list[LevelPart]:
    """Cut the volumes of all levels into parts of at most `max_volumes`, outermost level first.

    A part has volumes of one level: all children of some parents, or where these are too many, some of one parent.

    Args:
        sizes: number of volumes of each level, outermost first.
        max_volumes: of a part.

    Example:
        >>> [(part.level, part.volumes.start, part.volumes.stop) for part in split_levels([1, 4, 16], 8)]
        [(0, 0, 1), (1, 0, 4), (2, 0, 8), (2, 8, 16)]
    """
    parts = []
    for level, size in enumerate(sizes):
        family = size // sizes[level - 1] if level else 1  # children of one parent
        block = max(max_volumes // family, 1) * family
        for first in range(0, size, block):
            last = min(first + block, size)
            for start in range(first, last, max_volumes):
                stop = min(start + max_volumes, last)
                parents = slice(start // family, math.ceil(stop / family)) if level else slice(0)
                parts.append(LevelPart(level, slice(start, stop), parents))
    return parts


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
