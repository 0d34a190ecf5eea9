"""Plots of a study: Dice against labelled patients, and learning curves of the pre-trainings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studies.evidence import Evidence
from studies.statistics import Interval

DOTS = 150
STEP = 0.08  # between arms at one number of patients, in units of the axis
Plots = dict[str, tuple[str, Figure]]
Points = dict[str, dict[int, Interval]]


def figures(evidence: Evidence) -> Plots:
    """Plots for which there are results, by title: the file, relative to the folder of the page, and the figure."""
    name = evidence.study.name
    drawn = {
        "Dice against the number of labelled patients": ("dice", dice_figure(evidence)),
        "Reconstruction error in the pre-training": ("pretraining", curves_figure(evidence)),
    }
    return {
        title: (f"images/evidence_{name}_{kind}.png", figure)
        for title, (kind, figure) in drawn.items()
        if figure is not None
    }


def save(plots: Mapping[str, tuple[str, Figure]], folder: Path) -> None:
    """Write the files."""
    for file, figure in plots.values():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / file, dpi=DOTS, metadata={"Software": None})


def dice_figure(evidence: Evidence) -> Figure | None:
    """Dice of every arm, and beside it the paired differences from the first reference, if there are any."""
    base = evidence.study.content["report"]["references"][0]
    scores = _intervals(evidence, evidence.interval, evidence.arms)
    others = [arm for arm in scores if arm != base]
    differences = _intervals(evidence, lambda arm, labels: evidence.difference(arm, base, labels), others)
    panels = {"mean Dice of the test scans (%)": scores, f"difference from {base} (points)": differences}
    drawn = {title: points for title, points in panels.items() if points}
    if not drawn:
        return None
    figure = Figure(figsize=(4.5 * len(drawn), 4), layout="constrained")
    for axes, (title, points) in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn.items(), strict=True):
        _draw_intervals(axes, evidence, points)
        _mark_incomplete(axes, evidence, points, base if points is differences else None)
        axes.set_ylabel(title)
    if differences:
        figure.axes[1].axhline(0, color="0.4", linewidth=0.8)
    figure.suptitle("bars: 95 % intervals over scans and seeds; hollow: seeds are missing", fontsize=9)
    _name_arms(figure)
    return figure


def _intervals(evidence: Evidence, found: Callable[[str, int], Interval | None], arms: list[str]) -> Points:
    """The intervals that exist, by arm and number of labelled patients."""
    points = {arm: {n: value for n in evidence.labels if (value := found(arm, n))} for arm in arms}
    return {arm: of for arm, of in points.items() if of}


def _draw_intervals(axes: Axes, evidence: Evidence, points: Points) -> None:
    """Draw a point with its error bar for every arm and number of patients, one line per arm."""
    labels = sorted({n for of in points.values() for n in of})
    for number, (arm, of) in enumerate(points.items()):
        x = np.array([labels.index(n) for n in of]) + STEP * (number - (len(points) - 1) / 2)
        mean, low, high = (np.array([value[part] for value in of.values()]) * 100 for part in range(3))
        axes.errorbar(x, mean, yerr=[mean - low, high - mean], marker="o", capsize=2, **_style(evidence, arm))
    axes.set_xticks(range(len(labels)), [str(n) for n in labels])
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_xlabel("labelled patients")
    axes.grid(alpha=0.3, axis="y")


def _mark_incomplete(axes: Axes, evidence: Evidence, points: Points, base: str | None) -> None:
    """Make the points hollow that lack seeds, in the arm or in the reference `base`."""
    for bars, (arm, of) in zip(axes.containers, points.items(), strict=True):
        line = bars.lines[0]
        for x, y, labels in zip(line.get_xdata(), line.get_ydata(), of, strict=True):
            if evidence.common_seeds(arm, base or arm, labels) < len(evidence.study.seeds):
                axes.plot(x, y, marker="o", markerfacecolor="white", color=line.get_color(), zorder=3)


def curves_figure(evidence: Evidence) -> Figure | None:
    """Reconstruction error by step, one panel per level; lines are means over seeds."""
    curves = {arm: [line["curve"] for line in evidence.lines(arm, None)] for arm in evidence.arms}
    curves = {arm: found for arm, found in curves.items() if found}
    names = sorted({name for found in curves.values() for name in found[0] if name.startswith("reconstruction_")})
    if not names:
        return None
    figure = Figure(figsize=(4 * len(names), 3.5), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        for arm, found in curves.items():
            if name in found[0]:
                length = min(len(curve["step"]) for curve in found)
                mean = np.mean([curve[name][:length] for curve in found], axis=0)
                axes.plot(found[0]["step"][:length], mean, **_style(evidence, arm))
        axes.set_ylim(bottom=0)
        axes.set_title(name.replace("reconstruction_level", "level "), fontsize=10)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("mean squared error, masked voxels")
    figure.suptitle("each arm on its own volumes: errors at different level sizes are not comparable", fontsize=9)
    _name_arms(figure)
    return figure


def _name_arms(figure: Figure) -> None:
    """One legend below all panels; the first panel has every arm."""
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=6, fontsize=8)


def _style(evidence: Evidence, arm: str) -> dict[str, Any]:
    """Label, colour and dashes of an arm, the same in every plot of a study."""
    number = list(evidence.study.arms).index(arm)
    return {"label": arm, "color": f"C{number % 10}", "linestyle": "-" if number < 10 else "--", "linewidth": 1.2}
