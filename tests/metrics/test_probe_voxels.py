"""Draws of labelled voxels."""

from __future__ import annotations

import torch

from mim_components.metrics.probe.voxels import DrawnVoxels, draw_voxels

LABEL = torch.tensor([0] * 400 + [1] * 60 + [2] * 40).view(20, 5, 5)


def places(drawn: DrawnVoxels, number: int, draw: int = 0) -> set[tuple[int, ...]]:
    rows = (drawn.classes == number) & (drawn.draws == draw)
    return {tuple(each) for each in drawn.indices[rows].tolist()}


def test_numbers_and_classes() -> None:
    first, others = draw_voxels(LABEL, [0, 1, 2], 30, 2, 8, (0, "scan"))
    # 8 x 30 of 400 would be more than half; 30 of 60; half of 40; the others are all that is left, up to 8 x 30
    assert torch.bincount(first.classes).tolist() == [2 * 200, 2 * 30, 2 * 20]
    assert torch.bincount(others.classes).tolist() == [2 * 200, 2 * 30, 2 * 20]
    assert torch.equal(LABEL[tuple(first.indices.T)], first.classes)
    for number in range(3):
        assert not places(first, number) & places(others, number)
        assert places(first, number) != places(first, number, draw=1)
    alone, none = draw_voxels(LABEL, [0, 1, 2], 50, 1, 0, (0, "scan"))
    assert torch.bincount(alone.classes).tolist() == [400, 50, 40] and len(none.classes) == 0


def test_a_class_is_drawn_alike_whatever_else_there_is() -> None:
    first, others = draw_voxels(LABEL, [0, 1, 2], 10, 1, 2, (0, "scan"))
    swapped = draw_voxels(torch.tensor([0, 2, 1])[LABEL], [0, 2, 1], 10, 3, 2, (0, "scan"))
    assert places(swapped[0], 2) == places(first, 1) and places(swapped[1], 2) == places(others, 1)
    for key in ((1, "scan"), (0, "other")):
        assert places(draw_voxels(LABEL, [0, 1, 2], 10, 1, 2, key)[0], 1) != places(first, 1)


def test_single_voxel_is_for_the_fit() -> None:
    first, others = draw_voxels(torch.tensor([0, 0, 1]).view(3, 1, 1), [0, 1], 5, 1, 8, (0, "scan"))
    assert places(first, 1) == {(2, 0, 0)} and places(others, 1) == set()
