"""Plots of a study: Dice against labelled patients, and learning curves of the pre-trainings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from studies.report import Evidence

DOTS = 150


def draw(evidence: Evidence, folder: Path) -> dict[str, str]:
    """Write the plots for which there are results to `folder/images`; files by title, relative to `folder`."""
    figures = {
        "Dice against the number of labelled patients": ("evidence_dice.png", dice_figure(evidence)),
        "Reconstruction error in the pre-training": ("evidence_pretraining.png", curves_figure(evidence)),
    }
    files = {}
    for title, (name, figure) in figures.items():
        if figure is not None:
            (folder / "images").mkdir(exist_ok=True)
            figure.savefig(folder / "images" / name, dpi=DOTS, metadata={"Software": None})
            files[title] = f"images/{name}"
    return files


def dice_figure(evidence: Evidence) -> Figure | None:
    """One line per arm with more than one number of patients, a point for the others, intervals as bars."""
    points = {
        arm: [(labels, found) for labels in evidence.labels if (found := evidence.interval(arm, labels)) is not None]
        for arm in evidence.arms
    }
    points = {arm: found for arm, found in points.items() if found}
    if not points:
        return None
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, (arm, line) in enumerate(points.items()):
        x = np.array([labels for labels, _ in line]) * (1 + 0.02 * (number - (len(points) - 1) / 2))
        mean, low, high = (np.array([value[part] for _, value in line]) * 100 for part in range(3))
        axes.errorbar(x, mean, yerr=[mean - low, high - mean], marker="o", capsize=2, linewidth=1.2, label=arm)
    axes.set_xscale("log", base=2)
    axes.set_xticks(evidence.labels, [str(labels) for labels in evidence.labels])
    axes.set_xlabel("labelled patients")
    axes.set_ylabel("mean Dice of the test scans (%), 95 % interval")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return figure


def curves_figure(evidence: Evidence) -> Figure | None:
    """A panel per level; lines are means over seeds."""
    curves = {arm: [line["curve"] for line in evidence.lines(arm, None)] for arm in evidence.arms}
    curves = {arm: found for arm, found in curves.items() if found}
    names = sorted({name for found in curves.values() for name in found[0] if name.startswith("reconstruction_")})
    if not names:
        return None
    figure = Figure(figsize=(4 * len(names), 3.5), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for arm, found in curves.items():
            if name in found[0]:
                length = min(len(curve["step"]) for curve in found)
                mean = np.mean([curve[name][:length] for curve in found], axis=0)
                axes.plot(found[0]["step"][:length], mean, linewidth=1.2, label=arm)
        axes.set_yscale("log")
        axes.set_title(name.replace("_level", ", level "), fontsize=10)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure
