"""Draws of labelled voxels, which follow from seed, scan, class and number of the draw, whatever else is drawn.

Axes: label map (H, W, D); voxels (n, 3), their classes and draws (n,), n of all draws together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mim_components.randomness import keyed_seed

BACKGROUND_SHARE = 8  # background voxels per voxel of a class: the background is the most varied
BIAS_SHARE = 8  # voxels for the biases per voxel of the fit: false positives of a small class are rare


class DrawnVoxels(NamedTuple):
    """Voxels: indices int64 `(n, 3)`, classes and numbers of the draws int64 `(n,)`."""

    indices: Tensor
    classes: Tensor
    draws: Tensor


def draw_voxels(
    label: Tensor, values: Sequence[int], per_class: int, draws: int, others: int, key: Sequence[int | str]
) -> tuple[DrawnVoxels, DrawnVoxels]:
    """Draw voxels of every class of a label map, and other ones apart from them.

    A draw orders the voxels of a class at random, and takes the first ones, then the others. If others are wanted,
    at most half of a class's voxels, rounded up, are first ones.

    Args:
        label: classes, integer `(H, W, D)`.
        values: values of all classes in the file, part of the generator's key; class 0 is the background.
        per_class: largest number of first ones of a class; `BACKGROUND_SHARE` times as many of the background.
        draws: number of independent draws.
        others: largest number of others per first one; 0 = none are wanted.
        key: seed and name of the scan.

    Returns:
        The first ones and the others, without voxels of a class that is absent.

    Example:
        >>> label = torch.tensor([0] * 90 + [1] * 5 + [2] * 5).view(10, 10, 1)
        >>> first, others = draw_voxels(label, [0, 1, 2], 4, 1, 8, (0, "scan"))
        >>> first.classes.bincount().tolist(), others.classes.bincount().tolist()
        ([32, 3, 3], [58, 2, 2])
    """
    flat = label.cpu().numpy().reshape(-1)
    parts: list[list[tuple[np.ndarray, int, int]]] = [[], []]
    for number, value in enumerate(values):
        there = np.flatnonzero(flat == number)
        most = per_class * (1 if number else BACKGROUND_SHARE)
        own = min(most, (len(there) + 1) // 2 if others else len(there))
        for draw in range(draws):
            random = np.random.default_rng(keyed_seed(*key, value, draw))
            drawn = random.choice(there, min(own + others * most, len(there)), replace=False)
            parts[0].append((drawn[:own], number, draw))
            parts[1].append((drawn[own:], number, draw))
    first, second = (_joined(part, label.shape) for part in parts)
    return first, second


def _joined(parts: Sequence[tuple[np.ndarray, int, int]], shape: Sequence[int]) -> DrawnVoxels:
    voxels, classes, draws = zip(*parts, strict=True)
    lengths = torch.tensor([len(each) for each in voxels])
    indices = np.stack(np.unravel_index(np.concatenate(voxels), tuple(shape)), axis=1)
    return DrawnVoxels(
        torch.from_numpy(indices), *(torch.tensor(each).repeat_interleave(lengths) for each in (classes, draws))
    )
