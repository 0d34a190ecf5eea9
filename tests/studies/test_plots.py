from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from studies.definition import Study
from studies.evidence import Evidence
from studies.plots import curves_figure, dice_figure, figures
from tests.studies.lines import pretrained, tuned

Write = Callable[[dict[str, Any]], Path]


def test_nothing_is_drawn_of_nothing(small: dict[str, Any], write: Write) -> None:
    assert figures(Evidence(Study(write(small)), {})) == {}


def test_an_arm_looks_the_same_everywhere(small: dict[str, Any], write: Write) -> None:
    study = Study(write(small))
    lines = [
        tuned(study, study.cells["scratch/1/seed0"], [0.5, 0.5], [0.25, 0.25]),
        tuned(study, study.cells["mim/1/seed0"], [0.75, 0.75], [0.5, 0.5]),
        pretrained(study, "mim", 0.5),
    ]
    evidence = Evidence(study, {line["cell"]: line for line in lines})
    dice, curves = dice_figure(evidence), curves_figure(evidence)
    assert dice is not None and curves is not None
    scores, differences = dice.axes
    assert [float(bars.lines[0].get_ydata()[0]) for bars in scores.containers] == [37.5, 62.5]
    assert [float(bars.lines[0].get_ydata()[0]) for bars in differences.containers] == [25.0]
    assert [axes.get_title() for axes in curves.axes] == ["level 1", "level 2"]
    np.testing.assert_allclose(curves.axes[1].lines[0].get_ydata(), [0.5, 0.125])
    colours = {scores.containers[1].lines[0].get_color(), *(axes.lines[0].get_color() for axes in curves.axes)}
    assert colours == {differences.containers[0].lines[0].get_color()} != {scores.containers[0].lines[0].get_color()}
    assert [text.get_text() for text in dice.legends[0].get_texts()] == ["scratch", "mim"]
    assert list(figures(evidence).values())[0][0] == "images/evidence_small_dice.png"


def test_points_without_all_seeds_are_hollow(small: dict[str, Any], write: Write) -> None:
    study = Study(write(small | {"seeds": [0, 1]}))
    lines = [tuned(study, study.cells[f"scratch/1/seed{seed}"], [0.5, 0.5], [0.25, 0.25]) for seed in (0, 1)]
    lines.append(tuned(study, study.cells["mim/1/seed0"], [0.75, 0.75], [0.5, 0.5]))
    figure = dice_figure(Evidence(study, {line["cell"]: line for line in lines}))
    assert figure is not None
    hollow = [
        [float(line.get_ydata()[0]) for line in axes.lines if line.get_markerfacecolor() == "white"]
        for axes in figure.axes
    ]
    assert hollow == [[62.5], [25.0]]
