"""Masks of a segmentation: class maps and regions give the same masks of a target."""

from __future__ import annotations

import numpy as np

from mim_components.labels import target_boxes, target_mask


def test_regions_and_classes_have_the_same_boxes_and_masks() -> None:
    classes = np.zeros((1, 4, 5, 6), dtype=np.uint8)
    classes[0, 1:3, 2, 3:5] = 1
    classes[0, 3, 4, 5] = 3
    regions = np.stack([classes[0] == value for value in (1, 2, 3)]).astype(np.uint8)
    boxes = target_boxes(classes)
    assert boxes == target_boxes(regions)
    assert sorted(boxes) == [0, 2]  # target 1 is absent
    assert boxes[0] == (slice(1, 3), slice(2, 3), slice(3, 5))
    for target, box in boxes.items():
        assert target_mask(classes, target, box).all() and target_mask(regions, target, box).all()
    whole = (slice(None),) * 3
    assert not target_mask(classes, 1, whole).any() and not target_mask(regions, 1, whole).any()
