"""The paper's ablations beside results written by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from studies.ablations import ablations
from studies.definition import ROOT, Study
from studies.evidence import Evidence
from tests.studies.lines import pretrained, tuned

Write = Callable[[dict[str, Any]], Path]


def with_ablations(study: dict[str, Any]) -> dict[str, Any]:
    """Three more arms, with rows of a paper that all say worse."""
    names = ["lower", "higher", "same"]
    study["arms"] |= {name: {"pretraining": {"seed": number}, "like": "mim"} for number, name in enumerate(names, 1)}
    study["order"].append({"arms": [*names, "mim"], "labels": [1]})
    rows = [{"arm": name, "change": "c", "where": "Table 1", "direction": "worse"} for name in names]
    rows[0]["figures"] = {"D": [80.5, 82.0]}
    study["report"]["ablations"] = {"against": "mim", "labels": 1, "rows": rows, "without": "Table 2"}
    return study


def test_a_direction_needs_an_interval_without_0(small: dict[str, Any], write: Write) -> None:
    study = Study(write(with_ablations(small)))
    lines = [
        pretrained(study, "mim", 0.5, 0.25),
        pretrained(study, "lower", 0.25, 0.125),  # -0.25, -0.125: every draw is below 0
        pretrained(study, "higher", 0.625, 0.375),
        pretrained(study, "same", 0.625, 0.125),  # +0.125, -0.125
        tuned(study, study.cells["mim/1/seed0"], [0.5, 0.5], [0.5, 0.5]),
        tuned(study, study.cells["lower/1/seed0"], [0.75, 0.75], [0.5, 0.5]),
    ]
    text = ablations([Evidence(study, {line["cell"]: line for line in lines})])
    assert text[2] == "On frozen features agrees 1, disagrees 1, cannot tell 1 of 3."
    assert text[3].splitlines()[2:] == [
        "| `lower` | c | Table 1 | D 80.50 / 82.00 | worse | `small` | -18.8 [-25.0, -12.5] | agrees "
        "| +12.5 [+12.5, +12.5] | disagrees |",
        "| `higher` | c | Table 1 |  | worse | `small` | +12.5 [+12.5, +12.5] | disagrees | not run |  |",
        "| `same` | c | Table 1 |  | worse | `small` | +0.0 [-12.5, +12.5] | cannot tell | not run |  |",
    ]
    assert text[4:] == ["No study has an arm for Table 2."]


def test_a_probe_without_scores_of_scans_has_no_direction(small: dict[str, Any], write: Write) -> None:
    study = Study(write(with_ablations(small)))
    lines = [pretrained(study, "mim", 0.5), pretrained(study, "lower", 0.25)]
    del lines[1]["probe"]["encoder"]["scans"]
    text = ablations([Evidence(study, {line["cell"]: line for line in lines})])
    assert "| worse | `small` | -25.0, no interval | cannot tell | not run |  |" in text[3]
    assert text[4] == "Not run: `higher`, `same`."
    assert ablations([Evidence(study, {})]) == []


def test_fine_tunings_need_all_seeds(small: dict[str, Any], write: Write) -> None:
    study = Study(write(with_ablations(small | {"seeds": [0, 1]})))
    lines = [
        tuned(study, study.cells["mim/1/seed0"], [0.5, 0.5], [0.5, 0.5]),
        tuned(study, study.cells["lower/1/seed0"], [0.25, 0.25], [0.5, 0.5]),
    ]
    text = ablations([Evidence(study, {line["cell"]: line for line in lines})])
    assert "| not run |  | -12.5 [-12.5, -12.5], 1 of 2 seeds | cannot tell |" in text[3]


def test_a_row_per_round(small: dict[str, Any], write: Write) -> None:
    first = Study(write(with_ablations(small)))
    second = Study(write(small | {"name": "again"}))
    lines = [[pretrained(study, "mim", 0.5), pretrained(study, "lower", 0.25)] for study in (second, first)]
    rounds = [
        Evidence(study, {line["cell"]: line for line in of})
        for study, of in zip((second, first), lines, strict=True)
    ]  # fmt: skip
    assert [row.split(" | ")[5] for row in ablations(rounds)[3].splitlines()[2:]] == ["`again`", "`small`"]


def test_directions_of_the_paper_are_those_of_its_figures() -> None:
    study = Study(ROOT / "studies" / "openkbp_2.json")
    settings = study.content["report"]["ablations"]
    assert settings["against"] in study.arms
    for row in settings["rows"]:
        assert f"{row['arm']}/pretraining/seed0" in study.cells
        for arm, reference in row.get("figures", {}).values():
            assert row["direction"] == ("worse" if arm < reference else "better")
