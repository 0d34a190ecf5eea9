"""Figure of a segmentation beside its label: image, label, prediction and difference, in three informative slices.

The slices are small enough to keep those of every case. Masks are as in `mim_components.labels`. A slice, cut from a
volume by a plane, is `(C, a, b)`, axes in their order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mim_components.labels import Box, target_boxes, target_mask, union_box
from mim_components.visualize.sheet import (
    PLANES,
    TEXT_SIZE,
    TITLE_SIZE,
    Plane,
    Sheet,
    draw_panel,
    draw_scale_bar,
    lines_height,
    panel_inches,
    text_inches,
    title_panel,
    wrapped,
)

COLUMNS = ("Image", "Label", "Prediction", "Difference")
# blue, orange and white are distinct for colour-blind readers
DIFFERENCES = {"missed": "#2f8fff", "added": "#ff9a1f", "another class": "#ffffff"}
FOOTNOTE = (
    "The planes pass where the label is largest. x, y and z are mm to the right, anterior and superior in the scan's "
    "own coordinates."
)
TINT = 0.22  # opacity of the areas
SWATCH = 0.22  # inches, with the gap to its text
LINE = 1.1  # points, about 1.5 pixels

MARGIN, GAP, ROW_GAP = 0.2, 0.12, 0.26  # inches
COLUMN, MAX_ROW = 3.4, 3.4  # inches
WIDTH = 2 * MARGIN + len(COLUMNS) * COLUMN + (len(COLUMNS) - 1) * GAP
LEGEND_ROW = 0.22  # inches


class LegendEntry(NamedTuple):
    """Legend of a target: its name, RGB colour (0 to 255), and its scores."""

    name: str
    colour: tuple[int, int, int]
    scores: str


def overlay_figure(picture: OverlayPicture, title: str, legend: Sequence[LegendEntry]) -> Figure:
    """Draw the slices of a case, one row per plane in radiological orientation, and a legend of the targets.

    Args:
        picture: slices of the case.
        title: heading, such as the case and its scores.
        legend: one entry per target, in order.

    Returns:
        The figure, designed for 100 dpi.
    """
    title = wrapped(title, WIDTH - 2 * MARGIN, TITLE_SIZE, bold=True)
    sizes = panel_inches(picture.size_mm, COLUMN, MAX_ROW)
    head = MARGIN + lines_height(title, TITLE_SIZE) + 0.3
    lines = _legend_lines(legend)
    rows = max(map(len, lines)) + 1
    panels = sum(height + ROW_GAP for _, height in sizes)
    sheet = Sheet(WIDTH, head + panels + 0.2 + rows * LEGEND_ROW + lines_height(FOOTNOTE, TEXT_SIZE) + MARGIN)
    sheet.text(MARGIN, MARGIN, title, TITLE_SIZE, bold=True)
    lefts = sheet.columns(COLUMNS, MARGIN, head, COLUMN + GAP)
    top = head
    for part, (width, height) in zip(picture.slices, sizes, strict=True):
        top += ROW_GAP
        row = [sheet.axes(left, top, width, height) for left in lefts]
        _draw_row(row, part, picture.spacing, [entry.colour for entry in legend])
        top += height
    _draw_legend(sheet, top + 0.2, lines, len(legend))
    sheet.text(MARGIN, top + 0.2 + rows * LEGEND_ROW, FOOTNOTE, TEXT_SIZE)
    return sheet.figure


def difference(label: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """Where masks differ, uint8 `(a, b)`: 1 missed, 2 added, 3 another class or region; 0 = equal.

    Example:
        >>> difference(np.array([[[1, 1, 0, 2]]]), np.array([[[1, 0, 2, 1]]])).tolist()
        [[0, 1, 2, 3]]
    """
    if len(label) == 1:
        missed, added = (label[0] > 0) & (pred[0] != label[0]), (pred[0] > 0) & (pred[0] != label[0])
    else:
        missed, added = (label > pred).any(0), (pred > label).any(0)
    return missed + 2 * added.astype(np.uint8)


def _draw_row(
    row: Sequence[Axes], part: PlaneSlice, spacing: tuple[float, float, float], colours: Sequence[tuple[int, int, int]]
) -> None:
    for axes, name in zip(row, COLUMNS, strict=True):
        volume = np.expand_dims(part.grey[0], part.plane.axis)
        limits = (0.0, 255.0) if name != "Difference" else (0.0, 400.0)  # darker, so that white stands out
        draw_panel(axes, volume, spacing, part.plane, 0, limits=limits)
        axes.set_label(f"{part.plane.name}-{name.lower()}")
    draw_masks(row[1], part.label, part.plane, spacing, colours)
    draw_masks(row[2], part.pred, part.plane, spacing, colours)
    _draw_difference(row[3], part)
    draw_scale_bar(row[0])
    title_panel(row[0], f"{part.plane.name}, {'xyz'[part.plane.axis]} = {part.position:.1f} mm")


def draw_masks(
    axes: Axes,
    masks: np.ndarray,
    plane: Plane,
    spacing: tuple[float, float, float],
    colours: Sequence[tuple[int, int, int]],
) -> None:
    """Tint and outline every target of a slice, including along the edge of the picture.

    Args:
        axes: axes drawn by `draw_panel`.
        masks: masks of the slice, `(C, a, b)`, axes in their order.
        plane: plane of the slice.
        spacing: mm per voxel.
        colours: RGB colour of every target, 0 to 255.
    """
    limits = axes.get_xlim(), axes.get_ylim()
    sides = zip(masks.shape[1:], (plane.across, plane.up), strict=True)
    across, up = ((np.arange(-1, length + 1) + 0.5) * spacing[axis] for length, axis in sides)
    for target in target_boxes(masks):
        mask = np.pad(target_mask(masks, target, (slice(None),) * 2), 1).T.astype(np.float32)
        colour = tuple(value / 255 for value in colours[target])
        axes.contourf(across, up, mask, levels=[0.5, 2], colors=[colour], alpha=TINT)
        axes.contour(across, up, mask, levels=[0.5], colors=[colour], linewidths=LINE)
    axes.set(xlim=limits[0], ylim=limits[1])  # contours widen them


def _draw_difference(axes: Axes, part: PlaneSlice) -> None:
    kinds = difference(part.label, part.pred)
    colours = np.zeros((*kinds.shape, 4), dtype=np.float32)
    for kind, name in enumerate(DIFFERENCES, start=1):
        colours[kinds == kind] = (*to_rgb(DIFFERENCES[name]), 0.9)
    extent = axes.images[0].get_extent()
    axes.imshow(np.flip(colours.swapaxes(0, 1), (0, 1)), extent=extent, origin="upper", interpolation="nearest")


def _legend_lines(legend: Sequence[LegendEntry]) -> list[list[tuple[tuple[int, int, int] | None, str]]]:
    """Lines of the legend by column, as many columns as the texts allow; an entry's first line has its colour."""
    texts = [f"{entry.name}: {entry.scores}" for entry in legend]
    whole = WIDTH - 2 * MARGIN
    longest = max((text_inches(text, TEXT_SIZE) for text in texts), default=0.0) + SWATCH + GAP
    columns = min(max(int(whole / longest), 1), 4)
    per_column = math.ceil(len(legend) / columns)
    lines: list[list[tuple[tuple[int, int, int] | None, str]]] = [[] for _ in range(columns)]
    for number, (entry, text) in enumerate(zip(legend, texts, strict=True)):
        first, *others = wrapped(text, whole - SWATCH, TEXT_SIZE).split("\n")
        lines[number // per_column] += [(entry.colour, first), *((None, other) for other in others)]
    return lines


def _draw_legend(
    sheet: Sheet, top: float, lines: Sequence[Sequence[tuple[tuple[int, int, int] | None, str]]], targets: int
) -> None:
    """Draw the targets column by column, and below them the colours of the difference."""
    rows = max(map(len, lines))
    for column, entries in enumerate(lines):
        left = MARGIN + column * (WIDTH - 2 * MARGIN) / len(lines)
        for row, (colour, text) in enumerate(entries):
            if colour is None:
                sheet.text(left + SWATCH, top + row * LEGEND_ROW, text, TEXT_SIZE)
            else:
                draw_swatch(sheet, left, top + row * LEGEND_ROW, tuple(value / 255 for value in colour), text)
    kinds = list(DIFFERENCES.items())[: 2 if targets == 1 else 3]
    for column, (name, hexadecimal) in enumerate(kinds, start=1):
        draw_swatch(sheet, MARGIN + column * 1.2, top + rows * LEGEND_ROW, to_rgb(hexadecimal), name)
    sheet.text(MARGIN, top + rows * LEGEND_ROW, "Difference:", TEXT_SIZE, bold=True)


def draw_swatch(sheet: Sheet, left: float, top: float, colour: tuple[float, ...], text: str) -> None:
    """Draw a colour, RGB in 0 to 1, and its meaning."""
    corner = (left / sheet.width, 1 - (top + 0.15) / sheet.height)
    size = (0.15 / sheet.width, 0.12 / sheet.height)
    sheet.figure.add_artist(Rectangle(corner, *size, facecolor=colour, edgecolor="black", linewidth=0.5))
    sheet.text(left + SWATCH, top, text, TEXT_SIZE)


MARGIN_MM = 20.0  # around the segmented part
MIN_VIEW_MM = 160.0  # a small lesion is shown with its surroundings


@dataclass(eq=False)
class PlaneSlice:
    """The slice of one plane.

    Attributes:
        plane: its plane.
        grey: image as grey values, uint8 `(1, a, b)`.
        label: masks of the label, uint8 `(C, a, b)`.
        pred: masks of the prediction, uint8 `(C, a, b)`.
        position: coordinate of the slice in the scan's own space, mm to the right, anterior or superior.
    """

    plane: Plane
    grey: np.ndarray
    label: np.ndarray
    pred: np.ndarray
    position: float


@dataclass(eq=False)
class OverlayPicture:
    """The three slices of a case; small enough to keep one per case.

    Attributes:
        slices: slices in the order of `PLANES`.
        spacing: mm per voxel in RAS.
        size_mm: size of the part of the volume that is shown, mm, `(3,)`.
    """

    slices: tuple[PlaneSlice, ...]
    spacing: tuple[float, float, float]
    size_mm: np.ndarray


def overlay_picture(image: np.ndarray, label: np.ndarray, pred: np.ndarray, affine: np.ndarray) -> OverlayPicture:
    """Cut the slices with most of the label, cropped to the part of the volume with label and prediction.

    Args:
        image: `(channels, H, W, D)` of any orientation, as the network saw it; the first channel is shown.
        label: integer masks on the same grid, `(C, H, W, D)`.
        pred: as `label`.
        affine: voxel to RAS in mm, `(4, 4)`.

    Returns:
        The slices, reoriented to RAS.
    """
    limits = display_limits(image[0])
    turn = nib.orientations.io_orientation(affine)
    affine = affine @ nib.orientations.inv_ornt_aff(turn, image.shape[1:])
    image, label, pred = (_turned(volume, turn) for volume in (image[:1], label, pred))
    spacing = nib.affines.voxel_sizes(affine)
    view = shown_part(label, pred, spacing)
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
    """Voxel whose three planes show most of all targets together, `(3,)`.

    Along each axis the areas of a target are divided by its largest, so that a gallbladder counts as much as a
    liver. With one target these are the slices of its largest area; with none, the middle ones.

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
    """Intensities shown as black and white: 0 and 1 if all lie between, else percentiles of nonzero voxels.

    Args:
        image: intensities, `(H, W, D)`.

    Example:
        >>> display_limits(np.linspace(0, 1, 8)), display_limits(np.arange(-100.0, 102.0))
        ((0.0, 1.0), (-98.0, 100.0))
    """
    if image.min() >= -1e-3 and image.max() <= 1 + 1e-3:
        return 0.0, 1.0
    low, high = np.percentile(image[image != 0], (1, 99.5))
    return float(low), float(high) if high > low else float(low) + 1


def _turned(volume: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """A view of `(C, H, W, D)` with its spatial axes reoriented."""
    return np.moveaxis(nib.orientations.apply_orientation(np.moveaxis(volume, 0, -1), turn), -1, 0)


def shown_part(label: np.ndarray, pred: np.ndarray, spacing: np.ndarray) -> Box:
    """Voxels to show: the segmented part with a margin, at least `MIN_VIEW_MM`; everything if nothing is segmented."""
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
    grey[image == 0] = 0  # outside the head, after a z-score over nonzero voxels
    return grey
