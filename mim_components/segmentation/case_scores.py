"""Score the cases of an evaluation one by one, and keep of each what a picture needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from torch import Tensor

from mim_components.data.grids import grid_fault
from mim_components.data.names import natural_key
from mim_components.labels import LabelSet
from mim_components.metrics.segmentation import CaseResult, score_case
from mim_components.pictures.slices import OverlayPicture, overlay_picture


class CaseScores:
    """After every case, score it and cut the slices of its picture.

    The evaluator's output, or the batch it belongs to, holds lists of dictionaries, one per case, with MetaTensors on
    one grid: `pred` and `label`, `(1, H, W, D)` class maps or `(R, H, W, D)` regions of 0 and 1; `picture`
    `(C, H, W, D)`, the image as the network saw it; and `name`.

    Args:
        labels: what the classes or regions are.
        tolerance_mm: of the surface dice, by name of class or region.

    Attributes:
        results: of the cases of this process.
        pictures: slices of the cases of this process, by name; about 1 MB each.

    Raises:
        ValueError: a tolerance is missing or not positive; when called, a case whose tensors do not fit together.
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
        """Forget all cases."""
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
        """Results of all processes, in the order of the names, each case once; all processes call it."""
        results = self.results
        if idist.get_world_size() > 1:
            every: Any = idist.all_gather(results)  # a sampler gives some cases to two processes
            results = [result for part in every for result in part]
        by_name = {result.name: result for result in results}
        return [by_name[name] for name in sorted(by_name, key=natural_key)]

    def _masks(self, masks: Tensor, what: str) -> np.ndarray:
        """The masks as uint8, once they are known to be such."""
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
