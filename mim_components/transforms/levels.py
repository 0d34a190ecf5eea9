"""The volumes of all levels of a batch, in the form that the network and the losses take.

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
        level: index, 0 = outermost.
        volumes: range of volumes within the level.
        parents: range of their parents within the level above; each has equally many of `volumes`.
    """

    level: int
    volumes: slice
    parents: slice


class LevelBatch(NamedTuple):
    """Volumes, masks and parents: one entry per level, outermost first; those about parents start at level 2.

    Attributes:
        images: `(B_l, C, *input_size)`.
        masked: bool `(B_l, N)`, True = hidden.
        parent_token: int64 `(B_l,)`, from level 2 inwards.
        parent_overlap: bool `(B_l, N)`, from level 2 inwards.
        content_weight: float32 `(B_l,)`, from level 2 inwards: weight of each child in the mean over samples of
            the mean over a sample's children with content; 0 = no content.
    """

    images: tuple[Tensor, ...]
    masked: tuple[Tensor, ...]
    parent_token: tuple[Tensor, ...]
    parent_overlap: tuple[Tensor, ...]
    content_weight: tuple[Tensor, ...]

    @property
    def sizes(self) -> list[int]:
        """Number of volumes of each level."""
        return [len(images) for images in self.images]

    @property
    def content(self) -> tuple[Tensor, ...]:
        """Whether the token that each child was drawn for has content, bool `(B_l,)`, from level 2 inwards."""
        return tuple(weight > 0 for weight in self.content_weight)

    def empty_children(self, sizes: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Share of the children without content, `empty_children_level2` ...

        Args:
            sizes: number of volumes of each level to divide by, if this batch is only a part of them. None = its own.
        """
        return {
            f"empty_children_level{level}": (~content).sum() / size
            for level, (content, size) in enumerate(zip(self.content, (sizes or self.sizes)[1:], strict=True), start=2)
        }

    def take(self, part: LevelPart) -> LevelBatch:
        """Select the volumes of a part; the other levels become empty."""

        def cut(values: tuple[Tensor, ...], first: int) -> tuple[Tensor, ...]:
            nothing = slice(0)
            return tuple(v[part.volumes if level == part.level else nothing] for level, v in enumerate(values, first))

        return LevelBatch(
            cut(self.images, 0), cut(self.masked, 0), cut(self.parent_token, 1), cut(self.parent_overlap, 1),
            cut(self.content_weight, 1),
        )  # fmt: skip


def content_weights(content: Tensor) -> Tensor:
    """Weights of children in the mean over samples of the mean over children with content: `(samples, V)` to float32.

    A sample without any counts as 0, so that the weights of a sample do not depend on the others:
    devices and micro-batches add up to one large batch.

    Example:
        >>> content_weights(torch.tensor([[True, False, True, False], [False, False, False, False]]))
        tensor([[0.2500, 0.0000, 0.2500, 0.0000],
                [0.0000, 0.0000, 0.0000, 0.0000]])
    """
    return content / (content.sum(1, keepdim=True).clamp_min(1) * len(content))


def split_levels(sizes: Sequence[int], max_volumes: int) -> list[LevelPart]:
    """Divide the volumes of all levels into parts of at most `max_volumes`, outermost level first.

    A part has volumes of one level: all children of some parents or, where these are too many, some children of one.

    Args:
        sizes: number of volumes of each level, outermost first.
        max_volumes: largest number of volumes in a part.

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
        device: target device; copies from pinned memory are asynchronous. None = leave them where they are.
        key: key of the image.

    Raises:
        KeyError: a key is missing; names it and those present.
    """

    def read(name: str, levels: range) -> list[Tensor]:
        names = [f"{name}_level{level}" for level in levels]
        missing = [each for each in names if each not in batch]
        if missing:
            raise KeyError(f"the batch has no {missing[0]!r}; keys: {sorted(batch)}.")
        return [batch[each] for each in names]

    def move(values: Sequence[Tensor]) -> list[Tensor]:
        return [each.to(device, non_blocking=True) for each in values]

    def take(values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(each.flatten(0, 1) for each in values)

    everything, children = range(1, num_levels + 1), range(2, num_levels + 1)
    return LevelBatch(
        take(move(read(key, everything))), take(move(read("masked", everything))),
        take(move(read("parent_token", children))), take(move(read("parent_overlap", children))),
        take([content_weights(content) for content in move(read("content", children))]),
    )  # fmt: skip
