"""Dice and normalised surface dice (NSD), case by case and target by target, and their means.

Masks are as in `mim_components.labels`; `spacing` and tolerances are mm.

A target absent from the label is not counted (NaN). One absent only from the prediction scores 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.metrics import compute_dice, compute_surface_dice
from torch import Tensor

from mim_components.data.grids import grid_fault
from mim_components.data.names import natural_key
from mim_components.labels import LabelSet, target_boxes, target_mask, union_box
from mim_components.visualize.overlay import OverlayPicture, overlay_picture


class TargetScore(NamedTuple):
    """Scores and volumes of one target of one case."""

    dice: float  # 0 to 1; NaN = the label lacks it
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
    """Mean of the values that are not NaN; NaN if there is none.

    Example:
        >>> mean_of([0.5, math.nan, 1.0]), mean_of([math.nan])
        (0.75, nan)
    """
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def score_case(
    pred: np.ndarray, label: np.ndarray, spacing: Sequence[float], tolerance_mm: Sequence[float]
) -> list[TargetScore]:
    """Score every target of a case, each inside the box around it.

    Args:
        pred: integer masks, `(1, H, W, D)` or one channel per target.
        label: as `pred`.
        spacing: mm per voxel along each axis.
        tolerance_mm: largest distance between surfaces that counts as equal, mm, one per target.

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

    MONAI's NSD counts edge voxels of the masks. Everything outside the volume is background to it, so masks
    cropped to their content score the same.

    Args:
        pred: bool `(H, W, D)`.
        label: bool `(H, W, D)`.
        spacing: mm per voxel along each axis.
        tolerance: largest distance between surfaces that counts as equal, mm.

    Returns:
        Dice and NSD, 0 to 1; both NaN if the label is empty, both 0 if only the prediction is.
    """
    if not label.any():
        return math.nan, math.nan  # MONAI's NSD would be 0, and its Dice NaN
    if not pred.any():
        return 0.0, 0.0  # as in MONAI, which would also warn
    pair = pred[None, None], label[None, None]
    # a spacing from a float32 header may be 0.69999999; a surface at exactly the tolerance must count
    steps = [round(float(step), 5) for step in spacing]
    nsd = compute_surface_dice(*pair, class_thresholds=[tolerance], include_background=True, spacing=steps)
    return float(compute_dice(*pair)), float(nsd)


class CaseScores:
    """Handler that scores every case and keeps the slices of its picture.

    The evaluator's output, or the batch it belongs to, holds lists of dictionaries, one per case, with MetaTensors on
    one grid: `pred` and `label`, `(1, H, W, D)` class maps or `(R, H, W, D)` regions of 0 and 1; `picture`
    `(C, H, W, D)`, the image as the network saw it; and `name`.

    Args:
        labels: classes or regions.
        tolerance_mm: tolerance of the surface Dice in mm, by name of class or region.

    Attributes:
        results: results of this process's cases.
        pictures: slices of this process's cases, by name; about 1 MB each.

    Raises:
        ValueError: a tolerance is missing or negative; when called, the tensors of a case do not match.

    Example:
        >>> affine = np.diag([10.0, 10.0, 10.0, 1.0])  # a voxel is 1 ml
        >>> label, pred = torch.zeros(2, 1, 4, 4, 4)
        >>> label[:, :3], pred[:, :1] = 1, 1  # three planes, and one of them
        >>> volumes = {"label": label, "pred": pred, "picture": label}
        >>> scores = CaseScores(LabelSet(("background", "liver"), {}, {}), tolerance_mm={"liver": 2})
        >>> case = {name: MetaTensor(each, affine) for name, each in volumes.items()}
        >>> score = scores.add({"name": "1", **case}).scores["liver"]
        >>> score.dice, round(score.label_ml), round(score.pred_ml)  # 2 * 16 / (48 + 16)
        (0.5, 48, 16)
    """

    def __init__(self, labels: LabelSet, tolerance_mm: Mapping[str, float]) -> None:
        if missing := [target for target in labels.targets if target not in tolerance_mm]:
            raise ValueError(
                f"nsd_tolerance_mm has none for {', '.join(map(repr, missing))} of label set {labels.name!r}, "
                f"only for {', '.join(map(repr, tolerance_mm)) or 'nothing'}."
            )
        self.labels = labels
        self.tolerance_mm = {target: float(tolerance_mm[target]) for target in labels.targets}
        for target, tolerance in self.tolerance_mm.items():
            if not 0 <= tolerance < math.inf:
                raise ValueError(f"nsd_tolerance_mm of {target!r} must be 0 mm or more, got {tolerance}.")
        self.reset()

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def reset(self) -> None:
        """Discard all cases."""
        self.results: list[CaseResult] = []
        self.pictures: dict[str, OverlayPicture] = {}

    def __call__(self, engine: Engine) -> None:
        """Score the cases of a batch."""
        state: Any = engine.state
        for batch, output in zip(state.batch, state.output, strict=True):
            self.add({**batch, **output})

    def add(self, case: Mapping[str, Any]) -> CaseResult:
        """Score one case."""
        name = str(case["name"])
        label, pred = (self._masks(case[key], f"{name}: {key}") for key in ("label", "pred"))
        image, affine = case["picture"], case["label"].affine.cpu().numpy().astype(float)
        for key, volume in (("pred", case["pred"]), ("picture", image)):
            if volume.shape[1:] != label.shape[1:]:
                raise ValueError(f"{name}: {key} is {tuple(volume.shape[1:])}, but label is {label.shape[1:]} voxels.")
            if fault := grid_fault(label.shape[1:], affine, np.asarray(volume.affine.cpu(), dtype=float)):
                raise ValueError(f"{name}: {key} does not lie on the label, {fault}.")
        spacing = np.linalg.norm(affine[:3, :3], axis=0).tolist()
        scores = score_case(pred, label, spacing, list(self.tolerance_mm.values()))
        result = CaseResult(name, dict(zip(self.labels.targets, scores, strict=True)))
        self.results.append(result)
        self.pictures[name] = overlay_picture(image.float().cpu().numpy(), label, pred, affine)
        return result

    def gather(self) -> list[CaseResult]:
        """Results of all processes in the order of the names, each case once; all processes must call it."""
        results = self.results
        if idist.get_world_size() > 1:
            every: Any = idist.all_gather(results)  # a sampler gives some cases to two processes
            results = [result for part in every for result in part]
        by_name = {result.name: result for result in results}
        return [by_name[name] for name in sorted(by_name, key=natural_key)]

    def _masks(self, masks: Tensor, what: str) -> np.ndarray:
        """Check masks and convert them to uint8."""
        if not isinstance(masks, MetaTensor):
            raise ValueError(f"{what} must be a MetaTensor, for its affine, got {type(masks).__name__}.")
        channels = len(self.labels.regions) or 1
        if masks.ndim != 4 or len(masks) != channels:
            raise ValueError(f"{what} must be ({channels}, H, W, D), got {tuple(masks.shape)}.")
        masks = masks.as_tensor().cpu()
        integers = masks.to(torch.uint8)
        if not torch.equal(integers.to(masks.dtype), masks):
            raise ValueError(f"{what} must hold whole numbers from 0 to 255, got {masks.min()} to {masks.max()}.")
        return integers.numpy()
