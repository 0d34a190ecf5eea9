"""Geometry of nested volumes: masks, children and boxes of all levels, in integers (docs/method.md, 2).

Axes: V volumes of a level; boxes as (start, size) along (H, W, D) in native voxels; N tokens, row-major over (h, w, d).
No voxels are involved, so the same numbers cut any array on any device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mim_components.tokens import draw_masks, token_numbers

CHILD_SOURCES = ("masked", "visible")
CHILD_CONTENT = ("prefer", "any")


@dataclass(frozen=True)
class LevelGeometry:
    """Boxes, masks and parents of the V volumes of one level.

    Attributes:
        start: int64 `(V, 3)`, first voxel of each volume in the image given to the crop; negative in its padding.
        masked: bool `(V, N)`, True = hidden.
        parent_token: int64 `(V,)`, the token of its parent that each volume was drawn for; empty at level 1.
        parent_overlap: bool `(V, N)`, the parent's tokens that the volume's box overlaps; empty at level 1.
        content: bool `(V,)`, whether that token has content; empty at level 1.
    """

    start: np.ndarray
    masked: np.ndarray
    parent_token: np.ndarray
    parent_overlap: np.ndarray
    content: np.ndarray


def choose_tokens(orders: np.ndarray, content: np.ndarray, num_children: int) -> np.ndarray:
    """Choose the first tokens of random orders, those with content before the others.

    The partition is stable: either kind stays in the order drawn, so no further random numbers are needed.

    Args:
        orders: `(V, K)`, candidate token numbers of each volume, in random order.
        content: bool `(V, N)`, tokens with content.
        num_children: number of tokens to choose.

    Example:
        >>> choose_tokens(np.array([[4, 0, 3, 1]]), np.array([[False, True, False, True, False]]), 3)
        array([[3, 1, 4]])
    """
    empty = ~np.take_along_axis(content, orders, axis=1)
    return np.take_along_axis(orders, empty.argsort(axis=1, kind="stable"), axis=1)[:, :num_children]


def place_children(
    parent_start: np.ndarray, tokens: np.ndarray, parent_size: Sequence[int], child_size: Sequence[int],
    grid: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Centre a box on each token, shift it into the parent, and determine which tokens it overlaps.

    Args:
        parent_start: first voxel of each parent, `(V, 3)`.
        tokens: `(V, num_children)`, token numbers in each parent.
        parent_size: native size of a parent, voxels.
        child_size: native size of a child, voxels.
        grid: token grid of the parent.

    Returns:
        Starts of the children `(V * num_children, 3)`, child i belonging to parent i // num_children, and their overlap
        with the parent's tokens, bool `(V * num_children, N)`.
    """
    number = token_numbers(grid)  # (N, 3)
    parent, child, edges = np.asarray(parent_size), np.asarray(child_size), np.asarray(grid)
    # token k spans [k, k + 1) * parent / grid; everything times 2 * grid stays an integer, so overlap is exact
    centre = (2 * number[tokens.ravel()] + 1) * parent  # (V * num_children, 3)
    offset = (centre - child * edges + edges) // (2 * edges)  # nearest voxel
    offset = np.clip(offset, 0, parent - child)
    begins_before = (offset * edges)[:, None] < ((number + 1) * parent)[None]
    ends_after = (number * parent)[None] < ((offset + child) * edges)[:, None]
    inside = begins_before & ends_after
    return np.repeat(parent_start, tokens.shape[1], axis=0) + offset, inside.all(-1)


def draw_geometry(
    random: np.random.RandomState,
    image_size: Sequence[int],
    level_sizes: Sequence[Sequence[int]],
    grid: Sequence[int],
    num_visible: int,
    num_children: int,
    child_source: str = "masked",
    find_content: Callable[[np.ndarray], np.ndarray] | None = None,
    child_content: str = "prefer",
) -> list[LevelGeometry]:
    """Draw masks and nested boxes of all levels for one image.

    Content changes which tokens of an order are taken, not how many numbers are drawn from `random`.

    Args:
        random: source of all randomness.
        image_size: size of the image, voxels. Where it is smaller than level 1, that box begins before it, and
            every split of the padding between both sides is equally likely.
        level_sizes: native size of a volume of each level, outermost first, voxels.
        grid: token grid of every volume.
        num_visible: number of tokens that stay visible in every volume.
        num_children: number of volumes of the next level drawn from every volume.
        child_source: draw them from the "masked" tokens, or from the "visible" ones (the paper's Table 11).
        find_content: which tokens of the parents that begin at `(V, 3)` have content, bool `(V, N)`; called once per
            level but the innermost, outermost first. None = all.
        child_content: "prefer" draws from tokens with content as long as there are any, "any" ignores it.
    """
    room = np.asarray(image_size) - np.asarray(level_sizes[0])
    start = np.array([[random.randint(min(r, 0), max(r, 0) + 1) for r in room]], dtype=np.int64)
    num_tokens = int(np.prod(grid))
    token, overlap = np.zeros(0, dtype=np.int64), np.zeros((0, num_tokens), dtype=bool)
    content = np.zeros(0, dtype=bool)
    levels = []
    for level, size in enumerate(level_sizes):
        orders, masked = draw_masks(random, len(start), num_tokens, num_visible)
        levels.append(LevelGeometry(start, masked, token, overlap, content))
        if level + 1 < len(level_sizes):
            every = np.ones_like(masked)
            filled = every if find_content is None else find_content(start)
            # the order is random, so its first tokens are a draw without replacement
            candidates = orders[:, num_visible:] if child_source == "masked" else orders[:, :num_visible]
            tokens = choose_tokens(candidates, filled if child_content == "prefer" else every, num_children)
            content = np.take_along_axis(filled, tokens, axis=1).ravel()
            start, overlap = place_children(start, tokens, size, level_sizes[level + 1], grid)
            token = tokens.reshape(-1).astype(np.int64)
    return levels
