"""What a cell has cost: its attempts at running commands, kept in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mim_components.utils.files import append_line, read_rows
from studies.definition import Study
from studies.results import DONE, append_result, outcome_of, read_results

ATTEMPTS = "attempts.jsonl"  # a line when a command starts, one when it ends
LAST_LINES = 15


def note(folder: Path, **facts: Any) -> None:
    """Add a line to the attempts of a cell."""
    append_line(folder / ATTEMPTS, json.dumps(facts))


def cost_of(folder: Path) -> dict[str, Any]:
    """Wall-clock and CPU seconds, summed over all attempts.

    `attempts_lost` counts attempts whose end was not recorded because the runner was killed; the sums exclude them.
    """
    lines = read_rows(folder / ATTEMPTS)
    ended = [line for line in lines if "status" in line]
    return {
        "seconds": round(sum(line["seconds"] for line in ended), 1),
        "cpu_seconds": round(sum(line["cpu_seconds"] for line in ended), 1),
        "attempts_lost": len(lines) - 2 * len(ended),
    }


def read_again(study: Study, results: Path, work: Path) -> list[str]:
    """Add a line for every finished cell whose folder contains more than its line; returns the names of these cells.

    A folder whose attempts differ from those of the line belongs to another run and is skipped.
    """
    changed = []
    for name, line in read_results(results, study).items():
        folder = study.cells[name].folder_in(work)
        if (
            line["state"] != DONE
            or line["study"] != study.name
            or not folder.is_dir()
            or any(line[key] != cost for key, cost in cost_of(folder).items())
        ):
            continue
        if (again := {**line, **outcome_of(folder, line["phase"])}) != line:
            append_result(results, again)
            changed.append(name)
    return changed


def last_lines(log: Path) -> str:
    """The last lines of a log, with only the last state of a progress bar, which overwrites itself."""
    lines = [line.split("\r")[-1] for line in log.read_bytes().decode(errors="replace").split("\n")]
    return "\n".join([line for line in lines if line.strip()][-LAST_LINES:])
