"""The page, from results written by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from studies import __main__ as command
from studies.definition import Study, StudyError
from studies.evidence import Evidence
from studies.report import page, readme_table, with_table
from studies.results import append_result, read_results
from tests.studies.lines import pretrained, tuned

Write = Callable[[dict[str, Any]], Path]


def test_numbers_of_the_page(small: dict[str, Any], write: Write, tmp_path: Path) -> None:
    study, results = Study(write(small)), tmp_path / "results.jsonl"
    append_result(results, tuned(study, study.cells["scratch/1/seed0"], [0.5, 0.5], [0.25, 0.25]))  # mean 0.375
    text = page([Evidence(study, read_results(results, study))], {})
    assert "The primary comparison, `mim` against `scratch` with 1 labelled patients, has 0 of 1" in text
    assert "37.5 [37.5, 37.5]" in text and "50.0 [50.0, 50.0]" in text and "25.0 [25.0, 25.0]" in text
    # an arm without results appears only in the table of cells
    assert [line for line in text.splitlines() if "`mim` |" in line] == ["| `mim` | not run | not run |"]

    append_result(results, tuned(study, study.cells["mim/1/seed0"], [0.75, 0.75], [0.5, 0.5]))  # mean 0.625
    text = page([Evidence(study, read_results(results, study))], {})
    assert "`mim` against `scratch` with 1 labelled patients is better, +25.0 [+25.0, +25.0] points of Dice" in text
    assert "| 0.50 |" in text and "1.0 CPU hours in all" in text  # twice 1800 s
    assert "| `mim` | not run | 1 of 1 (0123456) |" in text
    assert "\npython -m studies run small.json --data DIR --results mine\n" in text


def test_rounds_on_one_page(small: dict[str, Any], write: Write, tmp_path: Path) -> None:
    first = Study(write(small))
    small |= {"name": "again", "order": [{"arms": ["scratch", "mim"], "labels": []}]}
    second = Study(write(small))
    results = tmp_path / "results.jsonl"
    append_result(results, pretrained(first, "mim", 0.5))
    append_result(results, pretrained(second, "mim", 0.75))
    append_result(results, tuned(first, first.cells["scratch/1/seed0"], [0.5, 0.5], [0.25, 0.25]))
    rounds = [Evidence(study, read_results(results, study)) for study in (second, first)]
    text = page(rounds, {})
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Result", "## How to read this page", "## Rounds", "## The paper", "## again", "## small", "## Commands",
    ]  # fmt: skip
    assert "| [`small`](#small) |" in text and "Of the latest round with scores, [`small`](#small):" in text
    # the later round shows the earlier round's probe of an identical pre-training, but not vice versa
    assert text.count("run of `small`") == 1 and "run of `again`" not in text
    assert "| `mim`, run of `small` | 50.0 [50.0, 50.0] |" in text
    assert "ran the same pre-training (equal digest) of `mim`, with Dice that differs by at most 25.0 points." in text
    append_result(results, pretrained(first, "mim", 0.75))
    rounds = [Evidence(study, read_results(results, study)) for study in (second, first)]
    text = page(rounds, {})
    assert "run of `small`" not in text and "(equal digest) of `mim`, with the same Dice." in text
    # the README shows the newest round that has scores
    assert "Study `small`." in readme_table(rounds)


def test_the_table_of_the_readme(small: dict[str, Any], write: Write, tmp_path: Path) -> None:
    small["seeds"] = [0, 1]
    study, results = Study(write(small)), tmp_path / "results.jsonl"
    append_result(results, tuned(study, study.cells["mim/1/seed0"], [0.75, 0.75], [0.5, 0.5]))
    append_result(results, pretrained(study, "mim", 0.5))
    lines = readme_table([Evidence(study, read_results(results, study))]).splitlines()
    assert lines[2:4] == [
        "| from scratch, hybrid encoder | not run |  | 25.0 |",  # features of random weights
        "| MiM: three levels, hybrid encoder | 62.5 [62.5, 62.5], 1 of 2 seeds | not run | 50.0 |",
    ]
    text = "a\n<!-- measured: evidence -->\nold\n<!-- /measured -->\nb\n"
    assert with_table(text, "new\n", "page") == text.replace("old", "new")
    with pytest.raises(StudyError, match="page: has 0 pairs of marks"):
        with_table("none", "new\n", "page")


def test_a_page_is_checked(
    small: dict[str, Any], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(small)
    readme = tmp_path / "README.md"
    readme.write_text("<!-- measured: evidence -->\n<!-- /measured -->\n")
    words = ["report", str(path), "--output", str(tmp_path / "docs"), "--readme", str(readme)]
    assert command.main([*words, "--check"]) == 2 and not (tmp_path / "docs").exists()
    assert command.main(words) == 0 and command.main([*words, "--check"]) == 0
    readme.write_text(readme.read_text().replace("not run", "50.0", 1))
    assert command.main([*words, "--check"]) == 2
    assert f"{readme}: differs from what the results give" in capsys.readouterr().err


def test_another_page_is_not_written_over_that_of_the_repository(
    small: dict[str, Any], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["report", str(write(small))], ["report", "--results", str(tmp_path)]):
        assert command.main(words) == 2
        assert "--output is needed: docs/evidence.md is the page on all studies" in capsys.readouterr().err


def test_the_pages_of_this_repository_are_what_the_results_give() -> None:
    assert command.main(["report", "--check"]) == 0
