"""The three slices that show a segmentation best; they are small, so that those of every case can be kept.

Masks are as in `mim_components.labels`. A slice is what a plane leaves of a volume: `(C, a, b)`, axes in their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from mim_components.labels import Box, target_boxes, target_mask, union_box
from mim_components.pictures.planes import PLANES, Plane

MARGIN_MM = 20.0  # around what is segmented
MIN_VIEW_MM = 160.0  # a small lesion is shown with its surroundings


@dataclass(eq=False)
class PlaneSlice:
    """What one plane shows.

    Attributes:
        plane: which.
        grey: uint8 `(1, a, b)`.
        label: uint8 masks `(C, a, b)`.
        pred: uint8 masks `(C, a, b)`.
        position: coordinate of the slice in the scan's own space, mm to the right, anterior or superior.
    """

    plane: Plane
    grey: np.ndarray
    label: np.ndarray
    pred: np.ndarray
    position: float


@dataclass(eq=False)
class OverlayPicture:
    """The three slices of a case; small, so that one can be kept of every case.

    Attributes:
        slices: in the order of `PLANES`.
        spacing: mm per voxel in RAS.
        size_mm: edges of the part of the volume that is shown, `(3,)`.
    """

    slices: tuple[PlaneSlice, ...]
    spacing: tuple[float, float, float]
    size_mm: np.ndarray


def overlay_picture(image: np.ndarray, label: np.ndarray, pred: np.ndarray, affine: np.ndarray) -> OverlayPicture:
    """Cut the slices that show most of the label, of the part of the volume that label and prediction lie in.

    Args:
        image: `(channels, H, W, D)` of any orientation, as the network saw it; the first channel is shown.
        label: integer masks on the same grid.
        pred: as `label`.
        affine: from voxel to RAS in mm, `(4, 4)`.

    Returns:
        The slices, turned to RAS.
    """
    limits = display_limits(image[0])
    turn = nib.orientations.io_orientation(affine)
    affine = affine @ nib.orientations.inv_ornt_aff(turn, image.shape[1:])
    image, label, pred = (_turned(volume, turn) for volume in (image[:1], label, pred))
    spacing = nib.affines.voxel_sizes(affine)
    view = _view(label, pred, spacing)
    start = np.array([part.start for part in view])
    image, label, pred = (volume[(slice(None), *view)] for volume in (image, label, pred))
    voxel = fullest_voxel(label if label.any() else pred)
    centre = affine[:3, :3] @ (start + voxel) + affine[:3, 3]
    slices = tuple(
        PlaneSlice(
            plane,
            _grey(_cut(image, plane, voxel), limits),
            _cut(label, plane, voxel).astype(np.uint8),
            _cut(pred, plane, voxel).astype(np.uint8),
            float(centre[plane.axis]),
        )
        for plane in PLANES
    )
    x, y, z = (float(step) for step in spacing)
    return OverlayPicture(slices, (x, y, z), np.array(image.shape[1:]) * spacing)


def fullest_voxel(masks: np.ndarray) -> np.ndarray:
    """Where three planes show most of all targets at once, `(3,)`.

    Along each axis the areas of a target are divided by its largest one, so that a gallbladder counts as much as a
    liver. With one target these are the slices of its largest area; with none, the middle.

    Example:
        >>> masks = np.zeros((1, 5, 4, 3), dtype=np.uint8)
        >>> masks[0, 3, 1:3, :2] = masks[0, 4, 1, 0] = 1
        >>> fullest_voxel(masks).tolist()
        [3, 1, 0]
    """
    totals = [np.zeros(length) for length in masks.shape[1:]]
    for target, box in target_boxes(masks).items():
        mask = target_mask(masks, target, box)
        for axis, total in enumerate(totals):
            areas = mask.sum(tuple({0, 1, 2} - {axis}))
            total[box[axis]] += areas / areas.max()
    return np.array([total.argmax() if total.any() else len(total) // 2 for total in totals])


def display_limits(image: np.ndarray) -> tuple[float, float]:
    """Intensities that are black and white: 0 and 1 where all lie between, else percentiles of what is not 0.

    Args:
        image: `(H, W, D)`.

    Example:
        >>> display_limits(np.linspace(0, 1, 8)), display_limits(np.arange(-100.0, 102.0))
        ((0.0, 1.0), (-98.0, 100.0))
    """
    if image.min() >= -1e-3 and image.max() <= 1 + 1e-3:
        return 0.0, 1.0
    low, high = np.percentile(image[image != 0], (1, 99.5))
    return float(low), float(high) if high > low else float(low) + 1


def _turned(volume: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """A view of `(C, H, W, D)` with its spatial axes turned."""
    return np.moveaxis(nib.orientations.apply_orientation(np.moveaxis(volume, 0, -1), turn), -1, 0)


def _view(label: np.ndarray, pred: np.ndarray, spacing: np.ndarray) -> Box:
    """Voxels to show: what is segmented and a margin, at least `MIN_VIEW_MM`; everything where nothing is."""
    shape = label.shape[1:]
    boxes = [*target_boxes(label).values(), *target_boxes(pred).values()]
    shown = union_box(boxes or [tuple(map(slice, (0, 0, 0), shape))])
    view = []
    for length, step, part in zip(shape, spacing, shown, strict=True):
        edge = max(MARGIN_MM, (MIN_VIEW_MM - (part.stop - part.start) * step) / 2) / step
        view.append(slice(max(part.start - round(edge), 0), min(part.stop + round(edge), length)))
    return tuple(view)


def _cut(volume: np.ndarray, plane: Plane, voxel: np.ndarray) -> np.ndarray:
    return volume.take(voxel[plane.axis], axis=plane.axis + 1)


def _grey(image: np.ndarray, limits: Sequence[float]) -> np.ndarray:
    grey = np.rint(255 * np.clip((image - limits[0]) / (limits[1] - limits[0]), 0, 1)).astype(np.uint8)
    grey[image == 0] = 0  # outside of the head, where the mean of what is inside was subtracted
    return grey
