"""Figure of a confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from mim_components.visualize.sheet import HEADING_SIZE, TEXT_SIZE, TITLE_SIZE, Sheet, wrapped

CELL = 1.25  # inches
LABEL = 1.1  # inches, width of a class name
LEFT, TOP, RIGHT, BOTTOM = 1.6, 1.2, 0.9, 0.45
DARK = 0.55  # share of a row above which a cell is so dark that its text is white


def confusion_figure(counts: np.ndarray, class_names: Sequence[str], title: str) -> Figure:
    """Draw a confusion matrix: counts, and their share of the scans of the row's class.

    Args:
        counts: int `(K, K)`, row = class, column = prediction.
        class_names: names of the K classes.
        title: heading of the figure.

    Returns:
        The figure; a dash stands for the share in a row without scans.

    Raises:
        ValueError: `counts` is not K x K.
    """
    size = len(class_names)
    if counts.shape != (size, size):
        raise ValueError(f"counts must be {size} x {size}, one row per class, got shape {counts.shape}.")
    totals = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    width = LEFT + size * CELL + RIGHT
    heading = wrapped(title, width - 0.3, TITLE_SIZE, bold=True)
    top = TOP + 0.25 * heading.count("\n")
    sheet = Sheet(width, top + size * CELL + BOTTOM)
    sheet.text(0.15, 0.12, heading, TITLE_SIZE, bold=True)
    axes = sheet.axes(LEFT, top, size * CELL, size * CELL)
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    for row in range(size):
        for column in range(size):
            share = f"{100 * shares[row, column]:.1f} %" if totals[row, 0] else "–"
            axes.text(
                column,
                row,
                f"{counts[row, column]}\n{share}",
                ha="center",
                va="center",
                size=HEADING_SIZE,
                color="white" if shares[row, column] > DARK else "black",
            )
    names = [wrapped(name, LABEL, TEXT_SIZE) for name in class_names]
    labels = [f"{name}\nn = {total}" for name, total in zip(names, totals[:, 0], strict=True)]
    axes.set_xticks(range(size), names, size=TEXT_SIZE, parse_math=False)
    axes.set_yticks(range(size), labels, size=TEXT_SIZE, parse_math=False)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("predicted", size=HEADING_SIZE)
    axes.set_ylabel("class of the scan", size=HEADING_SIZE)
    axes.tick_params(length=0)
    sheet.text(LEFT, top + size * CELL + 0.12, "number of scans, and their share of the row", TEXT_SIZE)
    return sheet.figure
