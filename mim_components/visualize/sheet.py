"""Drawing: figures laid out in inches, panels in mm, edge letters, PNG files, and the three radiological planes.

Panels are drawn in mm from the volume's first voxel, with both axes growing towards the top left. A box is then a
rectangle at `start * spacing`, without a flip.

Volumes are `(H, W, D)` in RAS: the index of axis 0 grows to the patient's right, of axis 1 to anterior, of axis 2 to
superior. A panel is the 2D array that is drawn, row 0 at the top and column 0 on the left: `(up, across)`.
"""

import math
import textwrap
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath
from matplotlib.transforms import ScaledTranslation

from mim_components.utils.files import write_bytes_safely

DPI = 100
LETTER_COLOUR = "#ffe14d"
NOT_FINITE_COLOUR = "#ff00ff"  # a diverged network shows at a glance instead of looking like air
TITLE_SIZE, HEADING_SIZE, TEXT_SIZE = 13, 11, 9.5


class Sheet:
    """A figure of known size in inches, filled from the top; positions are in inches from the top left.

    Args:
        width: width in inches.
        height: height in inches.
    """

    def __init__(self, width: float, height: float) -> None:
        """Create the empty figure."""
        self.figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)
        self.width, self.height = width, height

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Add axes with their upper left corner at `left`, `top`."""
        box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def text(self, left: float, top: float, text: str, size: float, *, bold: bool = False, va: str = "top") -> None:
        """Write text at `left`, `top`; `$` is literal, as in file names."""
        self.figure.text(
            left / self.width,
            1 - top / self.height,
            text,
            size=size,
            weight="bold" if bold else "normal",
            va=va,
            linespacing=1.3,
            parse_math=False,
        )

    def columns(self, names: Sequence[str], left: float, top: float, step: float) -> list[float]:
        """Write column headings above `top`, the first at `left`; returns the left edge of each column."""
        lefts = [left + column * step for column in range(len(names))]
        for place, name in zip(lefts, names, strict=True):
            self.text(place, top - 0.06, name, TEXT_SIZE + 0.5, bold=True, va="baseline")
        return lefts


def wrapped(text: str, inches: float, size: float, *, bold: bool = False) -> str:
    """Break text into lines of at most `inches`.

    A letter of the default font is about 0.48 of its size wide in running text and 0.7 in bold capitals.
    """
    em = 0.72 if bold else 0.55
    return "\n".join(textwrap.wrap(text, int(inches * 72 / (em * size))))


def text_inches(text: str, size: float) -> float:
    """Width in inches of one line that `Sheet.text` writes."""
    return float(TextPath((0, 0), text, size=size).get_extents().width) / 72 if text.strip() else 0.0


def lines_height(text: str, size: float) -> float:
    """Height in inches of the lines that `Sheet.text` writes."""
    return (text.count("\n") + 1) * 1.45 * size / 72


def length(mm: float) -> str:
    """A length in mm, with a decimal only below 100 mm.

    Example:
        >>> length(307.2), length(12.8)
        ('307', '12.8')
    """
    return f"{mm:.0f}" if mm >= 100 else f"{mm:.1f}"


def size_text(native_size: tuple[int, ...], size_mm: np.ndarray) -> str:
    """Size of a volume in native voxels and mm.

    Example:
        >>> size_text((96, 96, 48), np.array([76.8, 76.8, 240.0]))
        '96 × 96 × 48 voxels of the scan = 76.8 × 76.8 × 240 mm (R-L × A-P × S-I)'
    """
    voxels = " × ".join(str(n) for n in native_size)
    return f"{voxels} voxels of the scan = {' × '.join(length(mm) for mm in size_mm)} mm (R-L × A-P × S-I)"


class Plane(NamedTuple):
    """A viewing plane: the axis it cuts, the two it shows, and the letters at its four edges."""

    name: str
    axis: int  # cut by the plane
    across: int  # axis shown horizontally; its index grows to the left of the picture
    up: int  # axis shown vertically; its index grows upwards
    left: str
    right: str
    top: str
    bottom: str


PLANES = (
    Plane("axial", axis=2, across=0, up=1, left="R", right="L", top="A", bottom="P"),  # seen from the feet
    Plane("coronal", axis=1, across=0, up=2, left="R", right="L", top="S", bottom="I"),  # seen from the front
    Plane("sagittal", axis=0, across=1, up=2, left="A", right="P", top="S", bottom="I"),  # anterior on the left
)


def panel_of(volume: np.ndarray, plane: Plane, index: int) -> np.ndarray:
    """Cut one slice and orient it for reading.

    In all three planes the index of both shown axes grows towards the top left of the picture, so one flip serves all.

    Args:
        volume: `(H, W, D)` in RAS, any type.
        plane: which plane.
        index: voxel index along the axis that the plane cuts.

    Returns:
        `(up, across)`, row 0 at the top and column 0 on the left.

    Example:
        >>> volume = np.zeros((2, 3, 4))
        >>> volume[1, 2, 3] = 7.0  # the right, anterior, superior corner
        >>> [panel_of(volume, plane, volume.shape[plane.axis] - 1)[0, 0].item() for plane in PLANES]
        [7.0, 7.0, 7.0]
    """
    return np.flip(volume.take(index, axis=plane.axis).T)


def native_slice(index: int, size: int, native_size: int, start: int = 0) -> int:
    """Voxel of the scan that contains the centre of a voxel of a resized volume, along one axis.

    Args:
        index: voxel of the resized volume, counted from 0.
        size: voxels of the resized volume.
        native_size: voxels of the scan that the resized volume covers.
        start: index in the scan of the first voxel covered.

    Returns:
        Voxel index in the scan, counted from 0.

    Example:
        >>> native_slice(20, size=96, native_size=384, start=10)  # covers voxels 80 to 83 of the volume, centre at 82.0
        92
    """
    return start + (2 * index + 1) * native_size // (2 * size)


def slice_text(number: int, scan_size: int | None = None) -> str:
    """Label of a slice: its number, or that it lies in padding outside the scan.

    Args:
        number: voxel index in the scan, counted from 0.
        scan_size: size of the scan along this axis, voxels; None = unknown.

    Example:
        >>> slice_text(78, 79), slice_text(80, 79), slice_text(-1)
        ('slice 78 of scan', 'padding outside the scan', 'padding outside the scan')
    """
    inside = number >= 0 and (scan_size is None or number < scan_size)
    return f"slice {number} of scan" if inside else "padding outside the scan"


def resized_slice(native_index: int, size: int, native_size: int) -> int:
    """Voxel of a resized volume that contains the centre of a native voxel, along one axis; inverse of `native_slice`.

    Args:
        native_index: native voxel, counted from 0 at the volume's first voxel.
        size: voxels of the resized volume.
        native_size: native voxels that the resized volume covers.

    Returns:
        Voxel index in the resized volume, counted from 0.

    Example:
        >>> resized_slice(82, size=96, native_size=384)
        20
    """
    return (2 * native_index + 1) * size // (2 * native_size)


def nearest_to_centre(centres: np.ndarray, middle: np.ndarray, preferred: np.ndarray) -> int:
    """Row of `centres` nearest to `middle`, among the preferred rows if there are any; ties go to the first.

    Args:
        centres: `(K, 3)` points.
        middle: `(3,)` point in the same unit.
        preferred: bool `(K,)`.

    Returns:
        Index of the row.
    """
    distance = np.square(centres - middle).sum(-1)
    if preferred.any():
        distance = np.where(preferred, distance, np.inf)
    return int(distance.argmin())


def panel_size(plane: Plane, size_mm: np.ndarray) -> tuple[float, float]:
    """Width and height in mm of a plane of a volume that measures `size_mm`."""
    return float(size_mm[plane.across]), float(size_mm[plane.up])


def panel_inches(size_mm: np.ndarray, max_width: float, max_height: float) -> list[tuple[float, float]]:
    """Width and height in inches of the three planes, each as large as `max_width` by `max_height` allows.

    Each plane has its own scale: with thick slices, a common scale would leave the axial plane tiny.
    """
    sizes = [panel_size(plane, size_mm) for plane in PLANES]
    scales = [min(max_width / width, max_height / height) for width, height in sizes]
    return [(width * scale, height * scale) for (width, height), scale in zip(sizes, scales, strict=True)]


def colours(name: str) -> Colormap:
    """A named colour map that marks non-finite voxels."""
    return colormaps[name].with_extremes(bad=NOT_FINITE_COLOUR)


def draw_panel(
    axes: Axes,
    volume: np.ndarray,
    spacing: tuple[float, float, float],
    plane: Plane,
    index: int,
    *,
    cmap: str = "gray",
    limits: tuple[float, float] = (0.0, 1.0),
) -> AxesImage:
    """Draw one slice in mm with the correct orientation and proportions, and the letters at its edges.

    Args:
        axes: axes to draw in; their limits become the volume's edges in mm, first voxel at the lower right.
        volume: `(H, W, D)` in RAS, grey values or other values within `limits`.
        spacing: mm per voxel.
        plane: which plane.
        index: voxel index along the axis that the plane cuts.
        cmap: name of a matplotlib colour map.
        limits: values of the first and the last colour.

    Returns:
        The image, for a colour bar.
    """
    width, height = panel_size(plane, np.array(volume.shape) * np.array(spacing))
    image = axes.imshow(
        panel_of(volume, plane, index),
        cmap=colours(cmap),
        vmin=limits[0],
        vmax=limits[1],
        extent=(width, 0.0, 0.0, height),
        origin="upper",
        aspect="equal",
        interpolation="nearest",
    )
    axes.set(xticks=[], yticks=[])
    for x, y, letter in ((0, 0.5, plane.left), (1, 0.5, plane.right), (0.5, 1, plane.top), (0.5, 0, plane.bottom)):
        _draw_letter(axes, x, y, letter)
    return image


def _draw_letter(axes: Axes, x: float, y: float, letter: str) -> None:
    axes.annotate(
        letter,
        (x, y),
        xycoords="axes fraction",
        xytext=(4 - 8 * x, 3 - 6 * y),
        textcoords="offset points",
        ha={0: "left", 0.5: "center", 1: "right"}[x],
        va={0: "bottom", 0.5: "center", 1: "top"}[y],
        size=10,
        weight="bold",
        color=LETTER_COLOUR,
        path_effects=[withStroke(linewidth=2, foreground="black")],
        zorder=10,
    )


def title_panel(axes: Axes, text: str) -> None:
    """Write a title above a panel, left-aligned."""
    axes.set_title(text, size=TEXT_SIZE, loc="left", pad=3, parse_math=False)


def bar_length(mm: float) -> float:
    """Largest 1, 2 or 5 times a power of ten that is at most a quarter of `mm`.

    Example:
        >>> bar_length(309.0), bar_length(25.0), bar_length(12.8)
        (50.0, 5.0, 2.0)
    """
    power = 10.0 ** math.floor(math.log10(mm / 4))
    return max(step * power for step in (1, 2, 5) if step * power <= mm / 4)


def draw_scale_bar(axes: Axes) -> None:
    """Draw a bar of a round number of mm at the lower left of a panel, above the letter at its lower edge."""
    left, right = axes.get_xlim()
    bar = bar_length(left - right)
    halo = [withStroke(linewidth=2.5, foreground="black")]
    lift = ScaledTranslation(5 / 72, 17 / 72, axes.figure.dpi_scale_trans)
    bottom = axes.get_ylim()[0]
    line = Line2D([left, left - bar], [bottom, bottom], transform=axes.transData + lift, color="white", linewidth=2)
    line.set(path_effects=halo, zorder=9, gid="scale-bar")
    axes.add_artist(line)
    axes.annotate(
        f"{bar:g} mm",
        (0, 0),
        xycoords="axes fraction",
        xytext=(4, 19),
        textcoords="offset points",
        size=8,
        color="white",
        path_effects=halo,
        zorder=9,
    )


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a PNG that depends only on the figure: no date, no software version.

    The file appears complete or not at all, so an interrupted run leaves no partial picture.

    Args:
        figure: a figure of this package.
        path: file to write; its folder is created.

    Returns:
        `path`.
    """
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return write_bytes_safely(path, buffer.getvalue())
