"""Picture of a test scan as segmented by the networks of several arms, beside its label map."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from matplotlib.figure import Figure

from mim_components.labels import COLOURS
from mim_components.visualize.overlay import draw_masks, draw_swatch, fullest_voxel, shown_part
from mim_components.visualize.sheet import (
    PLANES,
    TITLE_SIZE,
    Sheet,
    draw_panel,
    draw_scale_bar,
    panel_inches,
    save_figure,
    title_panel,
)
from studies.data import label_path
from studies.definition import ROOT, Cell, Command, Study, StudyError
from studies.results import DONE

MODEL = "models/model.pt"  # of a fine-tuning, in the folder of its cell
COLUMN, MARGIN, GAP, HEAD = 2.6, 0.2, 0.1, 0.9  # inches


def write_picture(
    study: Study,
    results: Mapping[str, Mapping[str, object]],
    cells: Sequence[Cell],
    scan: str,
    data: Path,
    work: Path,
    file: Path,
) -> Path:
    """Segment a test scan with the network of every cell and draw the results side by side.

    Args:
        study: study that the cells belong to.
        results: newest line of every cell, by name; see `read_results`.
        cells: finished fine-tunings whose networks are still in `work`.
        scan: name of a test scan.
        data: folder of the source data.
        work: working folder of the study.
        file: PNG to write.

    Raises:
        StudyError: a cell is not done, its network is missing, or there is no such test scan.
    """
    image = data / study.data["test"] / study.data["image"].format(name=scan)
    label = label_path(work, scan)
    if not image.is_file() or not label.is_file():
        raise StudyError(f"--scan {scan!r} is not a test scan with a label map: looked for {image} and {label}.")
    predictions, heads = [], []
    for cell in cells:
        line = results.get(cell.name, {})
        if line.get("state") != DONE:
            raise StudyError(f"{cell.name}: is not done, so there is no network to draw with.")
        predictions.append(_segment(cell, image, work))
        dice = [of[scan] for of in line["scores"]["dice"].values()]  # type: ignore[index]
        heads.append(f"{cell.arm}: Dice {100 * float(np.mean(dice)):.1f} %")
    cell = cells[0]
    title = f"{scan}, {cell.labels} labelled patients, seed {cell.seed}"
    dataset = json.loads(study.metadata)["dataset"]
    window = float(dataset["intensity"]["a_min"]), float(dataset["intensity"]["a_max"])
    names = dataset["label_sets"]["default"]["names"][1:]
    return save_figure(comparison_figure(image, label, predictions, heads, title, window, names), file)


def _segment(cell: Cell, image: Path, work: Path) -> Path:
    """Run the bundle's inference with the network of a cell; returns the label map."""
    config = work / "bundle" / "configs" / "inference.json"
    weights = cell.folder_in(work) / MODEL
    if not weights.is_file():
        raise StudyError(f"{weights}: the network of {cell.name} is missing; run the study in this folder again.")
    output = work / "pictures" / cell.folder
    known = json.loads(config.read_text())
    options = {name: value for name, value in cell.options.items() if name in known}
    options |= {"dataset_dir": str(image), "output_dir": str(output), "checkpoint": str(weights)}
    words = Command("inference", (str(config),), options).filled({})
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    found = sorted((output / "inference").glob("*.nii*"))
    if done.returncode or len(found) != 1:
        raise StudyError(f"{cell.name}: the inference failed.\n{done.stderr[-2000:]}")
    return found[0]


def comparison_figure(
    image: Path,
    label: Path,
    predictions: Sequence[Path],
    heads: Sequence[str],
    title: str,
    window: tuple[float, float],
    names: Sequence[str],
) -> Figure:
    """Axial and coronal slice in which the label is largest (rows), with the label map and each prediction (columns).

    Only the part of the scan around the label is shown.

    Args:
        image: the scan, HU.
        label: label map on its grid.
        predictions: label maps on its grid.
        heads: headings of the predictions.
        title: heading of the figure.
        window: HU shown as black and as white.
        names: names of the classes, from 1 on.
    """
    scan = nib.as_closest_canonical(nib.load(image))
    grey = np.clip((_read(image) - window[0]) / (window[1] - window[0]), 0, 1)
    masks = [_read(path).astype(np.uint8)[None] for path in (label, *predictions)]
    x, y, z = (float(step) for step in nib.affines.voxel_sizes(scan.affine))
    spacing = (x, y, z)
    part = shown_part(masks[0], masks[0], np.array(spacing))
    grey, masks = grey[part], [mask[(slice(None), *part)] for mask in masks]
    voxel = fullest_voxel(masks[0])
    planes = PLANES[:2]
    sizes = panel_inches(np.array(grey.shape) * spacing, COLUMN, COLUMN)[: len(planes)]
    heights = [height for _, height in sizes]
    columns = ["label", *heads]
    sheet = Sheet(2 * MARGIN + len(columns) * (COLUMN + GAP), HEAD + sum(heights) + len(heights) * 0.3 + 0.3 + MARGIN)
    sheet.text(MARGIN, MARGIN, title, TITLE_SIZE, bold=True)
    lefts = sheet.columns(columns, MARGIN, HEAD - 0.2, COLUMN + GAP)
    top = HEAD
    for plane, (width, height) in zip(planes, sizes, strict=True):
        index = int(voxel[plane.axis])
        for left, mask in zip(lefts, masks, strict=True):
            axes = sheet.axes(left, top, width, height)
            draw_panel(axes, grey, spacing, plane, index)
            draw_masks(axes, np.take(mask, index, plane.axis + 1), plane, spacing, COLOURS)
            if left == lefts[0]:
                draw_scale_bar(axes)
                title_panel(axes, plane.name)
        top += height + 0.3
    for number, name in enumerate(names):
        colour = tuple(value / 255 for value in COLOURS[number % len(COLOURS)])
        draw_swatch(sheet, MARGIN + number * 1.8, top, colour, name)
    return sheet.figure


def _read(path: Path) -> np.ndarray:
    """Voxels in RAS."""
    return np.asarray(nib.as_closest_canonical(nib.load(path)).get_fdata())
