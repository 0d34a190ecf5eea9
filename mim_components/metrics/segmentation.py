"""Dice and normalised surface dice (NSD) of one case, target by target, and their means.

Masks are as in `mim_components.labels`; `spacing` and tolerances are mm.

A target that the label does not have is not counted (NaN). One that only the prediction lacks scores 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from monai.metrics import compute_dice, compute_surface_dice
from torch import Tensor

from mim_components.labels import target_boxes, target_mask, union_box


class TargetScore(NamedTuple):
    """What is measured of one target of one case."""

    dice: float  # 0 to 1; NaN = the label does not have it
    nsd: float  # as `dice`
    label_ml: float
    pred_ml: float


@dataclass(frozen=True)
class CaseResult:
    """Scores of one case by target."""

    name: str
    scores: Mapping[str, TargetScore]

    @property
    def dice(self) -> float:
        """Mean over the targets that the label has; NaN where it has none."""
        return mean_of(score.dice for score in self.scores.values())

    @property
    def nsd(self) -> float:
        """Mean over the targets that the label has; NaN where it has none."""
        return mean_of(score.nsd for score in self.scores.values())


def mean_of(values: Iterable[float]) -> float:
    """Mean of the values that are not NaN; NaN where there is none.

    Example:
        >>> mean_of([0.5, math.nan, 1.0]), mean_of([math.nan])
        (0.75, nan)
    """
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def score_case(
    pred: np.ndarray, label: np.ndarray, spacing: Sequence[float], tolerance_mm: Sequence[float]
) -> list[TargetScore]:
    """Score every target of a case, one after the other, each inside the box that holds it.

    Args:
        pred: integer masks, `(1, H, W, D)` or one channel per target.
        label: as `pred`.
        spacing: mm per voxel along each axis.
        tolerance_mm: largest distance between surfaces that counts as equal, one per target.

    Returns:
        One score per target, in the order of the tolerances.
    """
    voxel_ml = math.prod(spacing) / 1000
    pred_boxes, label_boxes = target_boxes(pred), target_boxes(label)
    scores = []
    for target, tolerance in enumerate(tolerance_mm):
        boxes = [found[target] for found in (pred_boxes, label_boxes) if target in found]
        if not boxes:
            scores.append(TargetScore(math.nan, math.nan, 0.0, 0.0))
            continue
        box = union_box(boxes)
        inside, wanted = (torch.from_numpy(target_mask(masks, target, box)) for masks in (pred, label))
        dice, nsd = overlap_scores(inside, wanted, spacing, tolerance)
        scores.append(TargetScore(dice, nsd, int(wanted.sum()) * voxel_ml, int(inside.sum()) * voxel_ml))
    return scores


def overlap_scores(pred: Tensor, label: Tensor, spacing: Sequence[float], tolerance: float) -> tuple[float, float]:
    """MONAI's Dice and NSD of two masks.

    MONAI's NSD counts voxels at the edges of the masks. What lies outside of the volume is background to it, so masks
    that are cropped to what they hold score the same.

    Args:
        pred: bool `(H, W, D)`.
        label: bool `(H, W, D)`.
        spacing: mm per voxel along each axis.
        tolerance: mm.

    Returns:
        Dice and NSD in 0 to 1; both NaN where the label is empty, both 0 where only the prediction is.
    """
    if not label.any():
        return math.nan, math.nan  # MONAI's NSD would be 0, and its Dice NaN
    if not pred.any():
        return 0.0, 0.0  # as MONAI, which warns
    pair = pred[None, None], label[None, None]
    # a spacing from a float32 header is 0.69999999; a surface at exactly the tolerance shall count
    steps = [round(float(step), 5) for step in spacing]
    nsd = compute_surface_dice(*pair, class_thresholds=[tolerance], include_background=True, spacing=steps)
    return float(compute_dice(*pair)), float(nsd)
