"""Masks of a segmentation, target by target.

Masks are integers `(C, H, W, D)`, or `(C, a, b)` of a plane. C = 1 is a class map whose value i + 1 is target i;
otherwise channel i is target i as 0 and 1. Box: one slice per spatial axis.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import find_objects

Box = tuple[slice, ...]


def target_boxes(masks: np.ndarray) -> dict[int, Box]:
    """The smallest box around every target that is there.

    Example:
        >>> target_boxes(np.array([0, 2, 2, 0]).reshape(1, 4, 1, 1))
        {1: (slice(1, 3, None), slice(0, 1, None), slice(0, 1, None))}
    """
    if len(masks) == 1:
        boxes = find_objects(masks[0])
    else:
        boxes = [next(iter(find_objects(mask)), None) for mask in masks]
    return {target: box for target, box in enumerate(boxes) if box is not None}


def target_mask(masks: np.ndarray, target: int, box: Box) -> np.ndarray:
    """Bool mask of a target inside a box."""
    return masks[0][box] == target + 1 if len(masks) == 1 else masks[target][box] == 1


def union_box(boxes: list[Box]) -> Box:
    """The smallest box around all of them, at least one.

    Example:
        >>> union_box([(slice(2, 5), slice(0, 4)), (slice(1, 3), slice(2, 9))])
        (slice(1, 5, None), slice(0, 9, None))
    """
    axes = zip(*boxes, strict=True)
    return tuple(slice(min(part.start for part in axis), max(part.stop for part in axis)) for axis in axes)
