"""Figure of where the volumes of the deeper levels were cut: boxes drawn in level 1, and one child magnified."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke

from mim_components.transforms.intensity import CT, SOFT_TISSUE, IntensityScale, window_text, window_to_grey
from mim_components.visualize.sheet import (
    HEADING_SIZE,
    PLANES,
    TEXT_SIZE,
    TITLE_SIZE,
    Plane,
    Sheet,
    draw_panel,
    draw_scale_bar,
    lines_height,
    panel_inches,
    resized_slice,
    size_text,
    wrapped,
)
from mim_components.visualize.volume import ShownVolume

FOOTNOTE = (
    "Solid: the slice passes through the box. Dashed: the box lies in front of or behind the slice. "
    "Slices are voxel indices of the prepared scan, the first is 0, counted from left, posterior and inferior."
)
# Okabe and Ito's colours, which colour-blind readers can distinguish, without the set's black and dark blue
CHILD_COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#d55e00", "#f0e442")
MASK_COLOUR = "#5a8fd8"

MARGIN, GAP, ROW_GAP, LEGEND = 0.2, 0.15, 0.26, 2.1  # inches
MAX_COLUMN, MAX_ROW = 3.6, 4.2  # inches
WIDTH = 2 * MARGIN + len(PLANES) * (MAX_COLUMN + GAP) + LEGEND


class _Row(NamedTuple):
    """One row of panels: the region `(2, 3)` that it shows, and the native voxel `(3,)` in its three planes.

    `child` is the level-2 box that the row magnifies, None for all of level 1.
    """

    heading: str
    region: np.ndarray
    voxel: np.ndarray
    child: int | None


def boxes_figure(
    image: np.ndarray,
    spacing: tuple[float, float, float],
    level1_native_size: tuple[int, int, int],
    boxes: Mapping[int, np.ndarray],
    masked: np.ndarray | None = None,
    title: str = "Volumes of all levels",
    window: tuple[float, float] = SOFT_TISSUE,
    start: tuple[int, int, int] = (0, 0, 0),
    scan_size: tuple[int, int, int] | None = None,
    scale: IntensityScale = CT,
) -> Figure:
    """Draw the boxes of the deeper levels in level 1, in three planes.

    The upper planes pass through the centre of the level-2 box with the most tissue. The lower row magnifies that
    box, in planes through the centre of the level-3 box in it with the most tissue; without level 3 there is no lower
    row.

    Args:
        image: level 1 on its resized grid, `(H, W, D)` in RAS, prepared values, such as HU.
        spacing: mm per voxel of `image`.
        level1_native_size: size that `image` covers, native voxels.
        boxes: for each level from 2 on, start and size of its volumes, `(V, 2, 3)`, in native voxels counted from
            level 1's first voxel. Volumes of one parent follow each other, so V is a multiple of the level before.
        masked: bool `(h, w, d)`, mask of level 1, drawn as a tint; None = not drawn.
        title: heading of the figure.
        window: lower and upper end of the grey window, prepared values.
        start: index of level 1's first voxel in the prepared scan, for the slice numbers.
        scan_size: size of the prepared scan, voxels; slices beyond it are labelled as padding. None = unknown.
        scale: meaning of the values, and the window that they were clipped to.

    Returns:
        The figure, designed for 100 dpi.

    Raises:
        ValueError: shapes do not match, a box leaves level 1, or the window is reversed.
    """
    nest = Nest(
        image=image,
        spacing=spacing,
        native_size=level1_native_size,
        start=start,
        scan_size=scan_size,
        masked=masked,
        scale=scale,
        boxes=boxes,
    )
    rows = _rows(nest, window)
    title = wrapped(title, WIDTH - 2 * MARGIN, TITLE_SIZE, bold=True)
    note = wrapped(FOOTNOTE, WIDTH - 2 * MARGIN, TEXT_SIZE)
    top = MARGIN + lines_height(title, TITLE_SIZE)
    sheet = Sheet(
        WIDTH, top + sum(_row_height(nest, row) for row in rows) + 0.2 + lines_height(note, TEXT_SIZE) + MARGIN
    )
    sheet.text(MARGIN, MARGIN, title, TITLE_SIZE, bold=True)
    grey = window_to_grey(nest.image, window)
    for row in rows:
        _draw_row(sheet, top, nest, grey, row)
        top += _row_height(nest, row)
    sheet.text(MARGIN, top + 0.2, note, TEXT_SIZE)
    return sheet.figure


@dataclass(eq=False, kw_only=True)
class Nest(ShownVolume):
    """Level 1 and the boxes of the deeper levels in it, in RAS; attributes beyond those of `ShownVolume`.

    Attributes:
        boxes: for each level from 2 on, start and size of its volumes `(V, 2, 3)`, in native voxels counted from
            level 1's first voxel. Volumes of one parent follow each other, so V is a multiple of the level before.

    Raises:
        ValueError: shapes do not match, or a box leaves level 1.
    """

    boxes: Mapping[int, np.ndarray]

    def __post_init__(self) -> None:
        """Check the boxes as well."""
        super().__post_init__()
        self.boxes = _checked_boxes(self.boxes, self.native_size)

    @property
    def native_mm(self) -> np.ndarray:
        """Size of a native voxel in mm, `(3,)`."""
        return np.array(self.spacing) * self.image.shape / np.array(self.native_size)

    def child_of(self, level: int, number: int) -> int:
        """Index of the level-2 box that a box of a deeper level was cut from."""
        return number * len(self.boxes[2]) // len(self.boxes[level])

    def child_to_show(self) -> int | None:
        """Index of the level-2 box with the largest share of tissue; None without level 2."""
        return int(self._tissue(2).argmax()) if 2 in self.boxes else None

    def grandchild_to_show(self, child: int) -> int | None:
        """Index of the level-3 box in a level-2 box with the largest share of tissue; None without level 3."""
        if 3 not in self.boxes:
            return None
        own = [self.child_of(3, number) == child for number in range(len(self.boxes[3]))]
        return int(np.where(own, self._tissue(3), -1.0).argmax())

    def _tissue(self, level: int) -> np.ndarray:
        """Share of voxels above air in each box of a level, `(V,)`."""
        native = np.array(self.native_size)
        first = self.boxes[level][:, 0] * self.image.shape // native
        last = -(-self.boxes[level].sum(1) * self.image.shape // native)  # rounded up: never empty
        regions = [tuple(map(slice, low, high)) for low, high in zip(first, last, strict=True)]
        return np.array([(self.image[region] > self.scale.air).mean() for region in regions])


def _checked_boxes(boxes: Mapping[int, np.ndarray], native_size: tuple[int, int, int]) -> dict[int, np.ndarray]:
    levels = sorted(boxes)
    if levels != list(range(2, len(levels) + 2)):
        raise ValueError(f"boxes must have the levels 2, 3, ... without a gap, got {levels}.")
    checked, parents = {}, 1
    for level in levels:
        box = np.asarray(boxes[level])
        if box.ndim != 3 or box.shape[1:] != (2, 3) or not len(box) or len(box) % parents:
            raise ValueError(
                f"boxes of level {level} must be (V, 2, 3), start and size, V a multiple of {parents}, got {box.shape}."
            )
        outside = (box[:, 0] < 0).any(-1) | (box[:, 1] <= 0).any(-1) | (box.sum(1) > np.array(native_size)).any(-1)
        if outside.any():
            number = int(outside.argmax())
            found = f"start {box[number, 0].tolist()}, size {box[number, 1].tolist()}"
            raise ValueError(
                f"box {number} of level {level} must lie inside level 1, {native_size} voxels, got {found}."
            )
        checked[level], parents = box, len(box)
    return checked


def _rows(nest: Nest, window: tuple[float, float]) -> list[_Row]:
    """Level 1 through the child's centre and, with level 3, the child through the centre of a level-3 box."""
    inches = WIDTH - 2 * MARGIN
    whole = np.stack([np.zeros(3, dtype=int), np.array(nest.native_size)])
    heading = (
        f"Level 1: {size_text(nest.native_size, nest.size_mm)}. Grey window: {window_text(window, nest.scale.unit)}."
    )
    child = nest.child_to_show()
    box = whole if child is None else nest.boxes[2][child]
    rows = [_Row(wrapped(heading, inches, HEADING_SIZE, bold=True), whole, _centre_voxel(box), None)]
    grandchild = None if child is None else nest.grandchild_to_show(child)
    if child is not None and grandchild is not None:
        heading = f"Level 2, box {child + 1}, magnified: {size_text(tuple(box[1].tolist()), box[1] * nest.native_mm)}"
        rows.append(
            _Row(
                wrapped(heading, inches, HEADING_SIZE, bold=True), box, _centre_voxel(nest.boxes[3][grandchild]), child
            )
        )
    return rows


def _centre_voxel(box: np.ndarray) -> np.ndarray:
    """Native voxel `(3,)` at the centre of a box `(2, 3)`."""
    return box[0] + box[1] // 2


def _row_head(row: _Row) -> float:
    return 0.15 + lines_height(row.heading, HEADING_SIZE) + ROW_GAP


def _row_height(nest: Nest, row: _Row) -> float:
    sizes = panel_inches(row.region[1] * nest.native_mm, MAX_COLUMN, MAX_ROW)
    return _row_head(row) + max(height for _, height in sizes)


def _draw_row(sheet: Sheet, top: float, nest: Nest, grey: np.ndarray, row: _Row) -> None:
    sheet.text(MARGIN, top + 0.15, row.heading, HEADING_SIZE, bold=True)
    top += _row_head(row)
    sizes = panel_inches(row.region[1] * nest.native_mm, MAX_COLUMN, MAX_ROW)
    for column, (plane, (width, height)) in enumerate(zip(PLANES, sizes, strict=True)):
        axes = sheet.axes(MARGIN + column * (MAX_COLUMN + GAP), top, width, height)
        _draw_plane(axes, nest, grey, plane, row)
        number = nest.start[plane.axis] + int(row.voxel[plane.axis])
        nest.title_panel(axes, plane, number)
    if row.child is None:
        _draw_legend(sheet, nest, top)


def _draw_plane(axes: Axes, nest: Nest, grey: np.ndarray, plane: Plane, row: _Row) -> None:
    axis, native = plane.axis, int(row.voxel[plane.axis])
    index = resized_slice(native, grey.shape[axis], nest.native_size[axis])
    draw_panel(axes, grey, nest.spacing, plane, index)
    if row.child is None:
        nest.cover_masked(axes, plane, index, color=MASK_COLOUR, alpha=0.3, linewidth=0, zorder=2)
        _number_children(axes, nest, plane, native)
    for level, boxes in nest.boxes.items():
        for number in range(len(boxes)):
            if row.child is None or (level > 2 and nest.child_of(level, number) == row.child):
                _draw_box(axes, nest, plane, native, level, number)
    low, high = row.region[0] * nest.native_mm, row.region.sum(0) * nest.native_mm
    axes.set_xlim(high[plane.across], low[plane.across])
    axes.set_ylim(low[plane.up], high[plane.up])
    draw_scale_bar(axes)
    axes.set_label(f"level{1 if row.child is None else 2}-{plane.name}")
    if row.child is not None:
        for spine in axes.spines.values():
            spine.set(color=_colour(row.child), linewidth=3)


def _draw_box(axes: Axes, nest: Nest, plane: Plane, native: int, level: int, number: int) -> None:
    box = nest.boxes[level][number]
    start, size = box * nest.native_mm
    crosses = _crosses(box, plane, native)
    width = 2.4 if level == 2 else 1.4
    axes.add_patch(
        Rectangle(
            (start[plane.across], start[plane.up]),
            size[plane.across],
            size[plane.up],
            fill=False,
            edgecolor=_colour(nest.child_of(level, number)),
            linewidth=width if crosses else 0.6 * width,
            linestyle="solid" if crosses else (0, (4, 3)),
            path_effects=[withStroke(linewidth=width + 1.5, foreground="black")] if crosses else None,
            zorder=5 if crosses else 4,
            gid=f"level{level}-box{number}",
        )
    )


def _crosses(box: np.ndarray, plane: Plane, native: int) -> bool:
    """Whether a slice, given by its native voxel, passes through a box `(2, 3)`."""
    return bool(box[0, plane.axis] <= native < box[:, plane.axis].sum())


def _number_children(axes: Axes, nest: Nest, plane: Plane, native: int) -> None:
    """Label the level-2 boxes that the slice passes through; boxes with the same corner share a label."""
    corners: dict[tuple[float, float], list[int]] = {}
    for number, box in enumerate(nest.boxes.get(2, ())):
        if _crosses(box, plane, native):
            end = box.sum(0) * nest.native_mm
            corners.setdefault((end[plane.across], end[plane.up]), []).append(number)  # upper left in the picture
    for corner, numbers in corners.items():
        axes.annotate(
            ", ".join(str(number + 1) for number in numbers),
            corner,
            xytext=(4, -14),  # below the line of the edge letters
            textcoords="offset points",
            va="top",
            size=TEXT_SIZE,
            weight="bold",
            color=_colour(numbers[-1]),
            path_effects=[withStroke(linewidth=2, foreground="black")],
            zorder=6,
        )


def _colour(child: int) -> str:
    return CHILD_COLOURS[child % len(CHILD_COLOURS)]


def _draw_legend(sheet: Sheet, nest: Nest, top: float) -> None:
    """List the boxes to the right of the panels."""
    entries: list[Line2D | Patch] = []
    for number in range(len(nest.boxes.get(2, ()))):
        entries.append(Line2D([], [], color=_colour(number), linewidth=2.4, label=f"level 2, box {number + 1}"))
        for level in list(nest.boxes)[1:]:
            count = len(nest.boxes[level]) // len(nest.boxes[2])
            label = f"its {count} {'box' if count == 1 else 'boxes'} of level {level}"
            entries.append(Line2D([], [], color=_colour(number), linewidth=1.4, label=label))
    if nest.masked is not None:
        entries.append(Patch(color=MASK_COLOUR, alpha=0.4, label="masked token of level 1"))
    if not entries:
        return
    left = MARGIN + len(PLANES) * (MAX_COLUMN + GAP)
    sheet.figure.legend(
        handles=entries,
        loc="upper left",
        bbox_to_anchor=(left / sheet.width, 1 - top / sheet.height),
        borderaxespad=0,
        fontsize=TEXT_SIZE,
        frameon=False,
    )
