"""A segmentation beside its label: image, label, prediction and difference, in three planes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mim_components.labels import target_boxes, target_mask
from mim_components.pictures.slices import OverlayPicture, PlaneSlice
from mim_components.visualize.sheet import (
    TEXT_SIZE,
    TITLE_SIZE,
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
# blue, orange and white stay apart for colour-blind readers
DIFFERENCES = {"missed": "#2f8fff", "added": "#ff9a1f", "another class": "#ffffff"}
FOOTNOTE = (
    "The planes pass where the label is largest. x, y and z are mm to the right, anterior and superior in the scan's "
    "own coordinates."
)
TINT = 0.22  # of the areas of the classes
SWATCH = 0.22  # inches, with the gap to its text
LINE = 1.1  # points, about 1.5 pixels

MARGIN, GAP, ROW_GAP = 0.2, 0.12, 0.26  # inches
COLUMN, MAX_ROW = 3.4, 3.4  # inches
WIDTH = 2 * MARGIN + len(COLUMNS) * COLUMN + (len(COLUMNS) - 1) * GAP
LEGEND_ROW = 0.22  # inches


class LegendEntry(NamedTuple):
    """What is written of a target: its name, RGB in 0 to 255, and its scores."""

    name: str
    colour: tuple[int, int, int]
    scores: str


def overlay_figure(picture: OverlayPicture, title: str, legend: Sequence[LegendEntry]) -> Figure:
    """Draw the slices of a case, one row per plane, as a radiologist sees them, and the targets' names and colours.

    Args:
        picture: slices of the case.
        title: heading, for example the case and its scores.
        legend: one entry per target, in order.

    Returns:
        The figure, to be read at 100 dpi.
    """
    title = wrapped(title, WIDTH - 2 * MARGIN, TITLE_SIZE, bold=True)
    sizes = panel_inches(picture.size_mm, COLUMN, MAX_ROW)
    head = MARGIN + lines_height(title, TITLE_SIZE) + 0.3
    lines = _legend_lines(legend)
    rows = max(map(len, lines)) + 1
    panels = sum(height + ROW_GAP for _, height in sizes)
    sheet = Sheet(WIDTH, head + panels + 0.2 + rows * LEGEND_ROW + lines_height(FOOTNOTE, TEXT_SIZE) + MARGIN)
    sheet.text(MARGIN, MARGIN, title, TITLE_SIZE, bold=True)
    lefts = [MARGIN + column * (COLUMN + GAP) for column in range(len(COLUMNS))]
    for left, name in zip(lefts, COLUMNS, strict=True):
        sheet.text(left, head - 0.06, name, TEXT_SIZE + 0.5, bold=True, va="baseline")
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
        limits = (0.0, 255.0) if name != "Difference" else (0.0, 400.0)  # darker, so that white is seen
        draw_panel(axes, volume, spacing, part.plane, 0, limits=limits)
        axes.set_label(f"{part.plane.name}-{name.lower()}")
    _draw_masks(row[1], part.label, part, spacing, colours)
    _draw_masks(row[2], part.pred, part, spacing, colours)
    _draw_difference(row[3], part)
    draw_scale_bar(row[0])
    title_panel(row[0], f"{part.plane.name}, {'xyz'[part.plane.axis]} = {part.position:.1f} mm")


def _draw_masks(
    axes: Axes,
    masks: np.ndarray,
    part: PlaneSlice,
    spacing: tuple[float, float, float],
    colours: Sequence[tuple[int, int, int]],
) -> None:
    """Tint and outline every target of a slice, also along the edge of the picture."""
    limits = axes.get_xlim(), axes.get_ylim()
    sides = zip(masks.shape[1:], (part.plane.across, part.plane.up), strict=True)
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
    """Lines of the legend, by column: as many columns as the longest text allows; only the first line has a colour."""
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
    """The targets column by column, and below them what the colours of the difference mean."""
    rows = max(map(len, lines))
    for column, entries in enumerate(lines):
        left = MARGIN + column * (WIDTH - 2 * MARGIN) / len(lines)
        for row, (colour, text) in enumerate(entries):
            if colour is None:
                sheet.text(left + SWATCH, top + row * LEGEND_ROW, text, TEXT_SIZE)
            else:
                _draw_swatch(sheet, left, top + row * LEGEND_ROW, tuple(value / 255 for value in colour), text)
    kinds = list(DIFFERENCES.items())[: 2 if targets == 1 else 3]
    for column, (name, hexadecimal) in enumerate(kinds, start=1):
        _draw_swatch(sheet, MARGIN + column * 1.2, top + rows * LEGEND_ROW, to_rgb(hexadecimal), name)
    sheet.text(MARGIN, top + rows * LEGEND_ROW, "Difference:", TEXT_SIZE, bold=True)


def _draw_swatch(sheet: Sheet, left: float, top: float, colour: tuple[float, ...], text: str) -> None:
    corner = (left / sheet.width, 1 - (top + 0.15) / sheet.height)
    size = (0.15 / sheet.width, 0.12 / sheet.height)
    sheet.figure.add_artist(Rectangle(corner, *size, facecolor=colour, edgecolor="black", linewidth=0.5))
    sheet.text(left + SWATCH, top, text, TEXT_SIZE)
