"""Figures of input, masked input, reconstruction and error of each level, in three planes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mim_components.transforms.intensity import SOFT_TISSUE, window_text, window_to_grey
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
    native_slice,
    nearest_to_centre,
    panel_inches,
    save_figure,
    size_text,
    wrapped,
)
from mim_components.visualize.volume import ShownVolume, checked_volume

COLUMNS = ("Input", "Masked input (hatched: hidden)", "Reconstruction", "Absolute error ({unit})")
FOOTNOTE = (
    "Visible tokens are copied from the input, so their error is 0. Slices are voxel indices of the prepared scan, "
    "the first is 0, counted from left, posterior and inferior."
)
HIDDEN_FACE, HIDDEN_HATCH = "#5a6f94", "#a9b8d3"  # blue cannot be mistaken for a grey value or black

MARGIN, GAP, ROW_GAP, BAR = 0.2, 0.12, 0.26, 0.85  # inches
COLUMN, MAX_ROW = 3.0, 4.0  # inches
WIDTH = 2 * MARGIN + len(COLUMNS) * (COLUMN + GAP) + BAR


@dataclass(eq=False, kw_only=True)
class LevelPicture(ShownVolume):
    """One volume of one level, as the network saw it, in RAS; attributes beyond those of `ShownVolume`.

    Attributes:
        reconstruction: prediction at masked tokens and the input elsewhere, `(H, W, D)`, as the image.
        masked: as in `ShownVolume`; hides at least one token.
    """

    reconstruction: np.ndarray
    masked: np.ndarray

    def __post_init__(self) -> None:
        """Check the reconstruction and the mask as well."""
        super().__post_init__()
        name = f"level {self.level}"
        self.reconstruction = checked_volume(self.reconstruction, f"reconstruction of {name}")
        if self.reconstruction.shape != self.image.shape:
            raise ValueError(
                f"image and reconstruction of {name} must have one shape, got image {self.image.shape} and "
                f"reconstruction {self.reconstruction.shape}."
            )
        if not self.masked.any():
            raise ValueError(f"masked of {name} must hide at least one token, got none of {self.masked.size}.")

    def masked_voxels(self) -> np.ndarray:
        """The mask on the voxel grid, bool `(H, W, D)`."""
        return np.kron(self.masked, np.ones(self.token_size, dtype=bool))

    @property
    def peak(self) -> float:
        """Width of the window that the network saw as 0 to 1."""
        return self.scale.width

    def masked_rmse(self) -> float:
        """Root mean squared error over masked voxels; NaN or infinite if the reconstruction is."""
        error = (self.reconstruction - self.image)[self.masked_voxels()].astype(np.float64)
        return math.sqrt(np.square(error).mean())

    def masked_psnr(self) -> float:
        """Peak signal-to-noise ratio over masked voxels, dB; the peak is the width of the window."""
        rmse = self.masked_rmse()
        if not math.isfinite(rmse):
            return math.nan
        return math.inf if rmse == 0 else 20 * math.log10(self.peak / rmse)

    def central_masked_token(self) -> tuple[int, int, int]:
        """Masked token nearest to the centre of the volume in mm, among those with tissue if there are any.

        Air and padding look the same whatever the network predicts, so tokens with a mean no higher than air come last.
        """
        tokens = np.argwhere(self.masked)
        edge = self.token_size
        grid = self.masked.shape
        blocks = self.image.reshape(grid[0], edge[0], grid[1], edge[1], grid[2], edge[2])
        tissue = blocks.mean(axis=(1, 3, 5))[self.masked] > self.scale.air
        centres = (tokens + 0.5) * edge * np.array(self.spacing)
        x, y, z = tokens[nearest_to_centre(centres, self.size_mm / 2, tissue)].tolist()
        return x, y, z


def reconstruction_figure(
    levels: Sequence[LevelPicture],
    title: str,
    window: tuple[float, float] = SOFT_TISSUE,
    error_range: float = 200.0,
) -> Figure:
    """Show per level the input, the masked input, the reconstruction and the error, in three planes.

    The planes pass through the middle of a masked token near the centre of the volume.

    Args:
        levels: one block each, in this order.
        title: heading of the figure, such as scan and epoch.
        window: lower and upper end of the grey window, prepared values.
        error_range: absolute error of the last colour, prepared values.

    Returns:
        The figure, designed for 100 dpi.

    Raises:
        ValueError: no level, a reversed window, or an error range that is not positive.
    """
    if not levels:
        raise ValueError("levels must hold at least one LevelPicture, got none.")
    if not error_range > 0:
        raise ValueError(f"error_range must be above 0, got {error_range}.")
    title = wrapped(title, WIDTH - 2 * MARGIN, TITLE_SIZE, bold=True)
    note = wrapped(FOOTNOTE, WIDTH - 2 * MARGIN, TEXT_SIZE)
    blocks = [_block_text(level, window) for level in levels]
    top = MARGIN + lines_height(title, TITLE_SIZE)
    heights = [_block_height(level, text) for level, text in zip(levels, blocks, strict=True)]
    sheet = Sheet(WIDTH, top + sum(heights) + MARGIN + lines_height(note, TEXT_SIZE))
    sheet.text(MARGIN, MARGIN, title, TITLE_SIZE, bold=True)
    for level, text, height in zip(levels, blocks, heights, strict=True):
        _draw_block(sheet, top, level, text, window, error_range)
        top += height
    sheet.text(MARGIN, top + 0.1, note, TEXT_SIZE)
    return sheet.figure


def save_reconstruction_pictures(
    levels: Sequence[LevelPicture],
    path_prefix: str | Path,
    title: str,
    window: tuple[float, float] = SOFT_TISSUE,
    error_range: float = 200.0,
) -> list[Path]:
    """Write one PNG per level: `<path_prefix>_level1.png` and so on.

    Args:
        levels: one picture per level.
        path_prefix: folder and prefix of the file names; the folder is created.
        title: heading of every picture.
        window: lower and upper end of the grey window, prepared values.
        error_range: absolute error of the last colour.

    Returns:
        The files, in the order of `levels`.

    Raises:
        ValueError: as in `reconstruction_figure`, or two pictures of one level, which would overwrite each other.
    """
    numbers = [level.level for level in levels]
    if not levels or len(set(numbers)) < len(numbers):
        raise ValueError(f"levels must hold one LevelPicture per level and at least one, got levels {numbers}.")
    prefix = Path(path_prefix)
    return [
        save_figure(
            reconstruction_figure([level], title, window, error_range),
            prefix.with_name(f"{prefix.name}_level{level.level}.png"),
        )
        for level in levels
    ]


def _block_text(level: LevelPicture, window: tuple[float, float]) -> tuple[str, str]:
    """Heading and numbers of a block, broken into lines."""
    unit = level.scale.unit
    heading = f"Level {level.level}: {size_text(level.native_size, level.size_mm)}"
    numbers = (
        f"Hidden: {level.masked.sum()} of {level.masked.size} tokens. Error on hidden voxels: RMSE "
        f"{level.masked_rmse():.1f} {unit}, PSNR {level.masked_psnr():.1f} dB (peak {level.peak:g} {unit}). "
        f"Grey window: {window_text(window, unit)}. {level.scale.meaning}"
    )
    inches = WIDTH - 2 * MARGIN
    return wrapped(heading, inches, HEADING_SIZE, bold=True), wrapped(numbers, inches, TEXT_SIZE)


def _head_height(text: tuple[str, str]) -> float:
    return 0.15 + lines_height(text[0], HEADING_SIZE) + lines_height(text[1], TEXT_SIZE) + 0.3


def _block_height(level: LevelPicture, text: tuple[str, str]) -> float:
    return _head_height(text) + sum(ROW_GAP + height for _, height in panel_inches(level.size_mm, COLUMN, MAX_ROW))


def _draw_block(
    sheet: Sheet,
    top: float,
    level: LevelPicture,
    text: tuple[str, str],
    window: tuple[float, float],
    error_range: float,
) -> None:
    sheet.text(MARGIN, top + 0.15, text[0], HEADING_SIZE, bold=True)
    sheet.text(MARGIN, top + 0.15 + lines_height(text[0], HEADING_SIZE), text[1], TEXT_SIZE)
    top += _head_height(text)
    names = [name.format(unit=level.scale.unit) for name in COLUMNS]
    lefts = sheet.columns(names, MARGIN, top, COLUMN + GAP)
    voxel = np.array(level.central_masked_token()) * level.token_size + level.token_size // 2
    for plane, (width, height) in zip(PLANES, panel_inches(level.size_mm, COLUMN, MAX_ROW), strict=True):
        top += ROW_GAP
        row = [sheet.axes(left, top, width, height) for left in lefts]
        _draw_row(row, level, plane, int(voxel[plane.axis]), window, error_range)
        _draw_bar(sheet, row[-1], lefts[-1] + width + GAP, top, height, level.scale.unit)
        top += height


def _draw_bar(sheet: Sheet, errors: Axes, left: float, top: float, height: float, unit: str) -> None:
    bar = sheet.axes(left, top, 0.12, height)
    sheet.figure.colorbar(errors.images[0], cax=bar, extend="max")
    bar.tick_params(labelsize=TEXT_SIZE - 1)
    bar.set_ylabel(f"error ({unit})", size=TEXT_SIZE - 1)


def _draw_row(
    row: list[Axes],
    level: LevelPicture,
    plane: Plane,
    index: int,
    window: tuple[float, float],
    error_range: float,
) -> None:
    grey = window_to_grey(level.image, window)
    draw_panel(row[0], grey, level.spacing, plane, index)
    draw_panel(row[1], grey, level.spacing, plane, index)
    level.cover_masked(row[1], plane, index, facecolor=HIDDEN_FACE, edgecolor=HIDDEN_HATCH, hatch="///", linewidth=0.6)
    draw_panel(row[2], window_to_grey(level.reconstruction, window), level.spacing, plane, index)
    error = np.abs(level.reconstruction - level.image)
    draw_panel(row[3], error, level.spacing, plane, index, cmap="inferno", limits=(0.0, error_range))
    axis = plane.axis
    number = native_slice(index, level.image.shape[axis], level.native_size[axis], level.start[axis])
    draw_scale_bar(row[0])
    level.title_panel(row[0], plane, number)
    for axes, name in zip(row, ("input", "masked", "reconstruction", "error"), strict=True):
        axes.set_label(f"level{level.level}-{plane.name}-{name}")
