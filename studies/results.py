"""Results of a study: an append-only file with a JSON line per finished or failed cell.

A line contains name and digest of its cell. Lines of a cell that was defined differently stay in the file and are
ignored. A cell that is defined identically in an earlier round has the line of that round until it has its own.
"""

from __future__ import annotations

import csv
import json
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from benchmarks.report import cpu_model
from mim_components.utils.files import append_line
from studies.definition import ROOT, Cell, Study, StudyError, network_volumes

DONE, FAILED = "done", "failed"
CURVE_POINTS = 40


def results_file(study: Study, folder: Path | None = None) -> Path:
    """File of a study's results: `NAME.jsonl`, in `results` beside the study file unless another folder is given."""
    return (folder or study.path.parent / "results") / f"{study.name}.jsonl"


def read_results(path: Path, study: Study) -> dict[str, dict[str, Any]]:
    """The newest line of every cell as currently defined, by name; a cell that was done stays done.

    Finished cells of earlier rounds that are defined identically are read from the files of these rounds beside `path`.

    Raises:
        StudyError: a line is not a result; names it.
    """
    found = _lines(path, study, study.name)
    for name in study.earlier:
        earlier = _lines(path.with_name(f"{name}.jsonl"), study, name)
        found |= {
            cell: line
            for cell, line in earlier.items()
            if line["state"] == DONE and found.get(cell, {}).get("state") != DONE
        }
    return found


def _lines(path: Path, study: Study, owner: str) -> dict[str, dict[str, Any]]:
    """Lines that the study named `owner` wrote to a file, for cells that are also part of `study`."""
    found: dict[str, dict[str, Any]] = {}
    for number, text in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
        try:
            line = json.loads(text)
            name, digest, state, writer = line["cell"], line["digest"], line["state"], line["study"]
        except (ValueError, KeyError, TypeError) as error:
            raise StudyError(f"{path}: line {number} is not a result of a study ({error!r}).") from error
        cell = study.cells.get(name)
        if cell is None or writer != owner or digest != cell.digest:
            continue
        if found.get(name, {}).get("state") != DONE or state == DONE:
            found[name] = line
    return found


def append_result(path: Path, line: Mapping[str, Any]) -> None:
    """Append a line atomically, even if other processes append too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        append_line(path, json.dumps(line, allow_nan=False))


def facts_of(study: Study, cell: Cell, commit: str) -> dict[str, Any]:
    """Facts about a cell that do not depend on its outcome: names, options, commit, versions, machine."""
    facts = {
        "study": study.name, "cell": cell.name, "digest": cell.digest, "phase": cell.phase, "arm": cell.arm,
        "seed": cell.seed, "labels": cell.labels, "commit": commit, "threads": study.threads,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("torch", "monai")}},
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_model(),
        "options": {command.name: dict(command.options) for command in cell.commands},
    }  # fmt: skip
    if cell.phase == "pretraining":
        facts["volumes_per_step"], facts["network_volumes"] = network_volumes(cell.options)
    return facts


def outcome_of(folder: Path, phase: str) -> dict[str, Any]:
    """Results that the commands of a cell left in its folder: steps, and the scores of every scan.

    For a pre-training: the learning curve instead of scores, and the results of its probe if it has one (`probe_of`).

    Raises:
        StudyError: a file that the commands write is missing or damaged.
    """
    try:
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        outcome: dict[str, Any] = {"steps": rows[-1]["step"]}
        if phase == "pretraining":
            outcome["curve"] = thin_curve(rows)
            if (folder / "probe" / "metrics.json").exists():
                outcome["probe"] = probe_of(folder / "probe")
            return outcome
        report = json.loads((folder / "evaluation" / "metrics.json").read_text())
        return outcome | {"scores": scores_of(report)}
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise StudyError(f"{folder}: the commands succeeded but left no results ({error!r}).") from error


def probe_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Scores of a probe by kind of features; `scans` has the mean Dice over the classes for every test scan."""
    features: dict[str, dict[str, Any]] = json.loads((folder / "metrics.json").read_text())["features"]
    with (folder / "cases.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            features[row["features"]].setdefault("scans", {})[row["case"]] = float(row["mean_dice"])
    return features


def scores_of(report: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Dice and NSD by class and scan, from an evaluation's `metrics.json`; None if the label lacks the class."""
    names = [target["name"] for target in report["targets"]]
    return {
        score: {name: {row["case"]: row[f"{score}_{name}"] for row in report["per_case"]} for name in names}
        for score in ("dice", "nsd")
    }


def thin_curve(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Logged losses of a pre-training, averaged over at most 40 intervals of equal length.

    Example:
        >>> thin_curve([{"step": 1, "reconstruction_level1": 2.0}, {"step": 2, "reconstruction_level1": 1.0}])
        {'step': [1, 2], 'reconstruction_level1': [2.0, 1.0]}
    """
    length = -(-len(rows) // CURVE_POINTS)
    parts = [rows[start : start + length] for start in range(0, len(rows), length)]
    names = [name for name in rows[-1] if name.startswith(("reconstruction_", "alignment_"))]
    curve: dict[str, list[float]] = {"step": [part[-1]["step"] for part in parts]}
    for name in names:
        curve[name] = [_mean(row[name] for row in part if row.get(name) is not None) for part in parts]
    return curve


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return round(sum(numbers) / max(len(numbers), 1), 6)


def commit_of_tree(study: Study, results: Path) -> tuple[str, bool]:
    """Commit of this code, and whether files differ from it; ("unknown", True) outside git.

    Results, the report and the README's table are written by the study itself and do not count.
    """
    written = (results, ROOT / "docs", ROOT / "README.md")
    excluded = [f":(exclude){_inside(path)}" for path in written if _inside(path)]

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", *excluded)
        return git("rev-parse", "HEAD").strip(), bool(changed.strip())
    except (OSError, subprocess.CalledProcessError):
        return "unknown", True


def _inside(path: Path) -> str | None:
    absolute = path.absolute()
    return absolute.relative_to(ROOT).as_posix() if absolute.is_relative_to(ROOT) else None
