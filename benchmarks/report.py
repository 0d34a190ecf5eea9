"""Shared by the benchmarks: interleaved repetitions, Markdown tables, and JSON with the conditions of the run.

Compared cases run in turn, round after round, so that a slow minute of the machine affects all of them alike;
ratios are taken between medians of one run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "monai", "numpy", "nibabel")


class Timing(NamedTuple):
    """Seconds of every repetition of one case: wall-clock time, and CPU time of all threads of the process.

    On a shared machine, CPU time (with OMP_WAIT_POLICY=passive, GOMP_SPINCOUNT=0) compares better.
    """

    seconds: tuple[float, ...]
    cpu: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def low(self) -> float:
        return min(self.seconds)

    @property
    def high(self) -> float:
        return max(self.seconds)

    @property
    def cpu_median(self) -> float:
        return statistics.median(self.cpu)

    def milliseconds(self) -> dict[str, float]:
        """Columns of a table."""
        return {"median ms": self.median * 1e3, "min ms": self.low * 1e3, "max ms": self.high * 1e3}


def measure(
    cases: Mapping[str, Callable[[], object]], repetitions: int = 5, warmup: int = 1,
    before: Callable[[], object] | None = None,
) -> dict[str, Timing]:  # fmt: skip
    """Time cases in turn, each once per round.

    Args:
        cases: functions by name; their results are freed before the next one is timed.
        repetitions: timed rounds.
        warmup: untimed rounds before them.
        before: called before every case, untimed.
    """
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for round_ in range(-warmup, repetitions):
        for name, case in cases.items():
            if before is not None:
                before()
            synchronize()
            start, cpu_start = perf_counter(), process_time()
            case()
            synchronize()
            if round_ >= 0:
                seconds[name].append((perf_counter() - start, process_time() - cpu_start))
    return {name: Timing(*zip(*values, strict=True)) for name, values in seconds.items()}


def synchronize() -> None:
    """Wait for queued CUDA work, if CUDA is used."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table with the columns of the first row; numbers have three digits and are right-aligned."""
    columns = list(rows[0])
    number = [all(isinstance(row[column], (int, float, type(None))) for row in rows) for column in columns]
    lines = [columns, ["---:" if each else "---" for each in number]]
    lines += [[_cell(row[column]) for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")
    return f"{value:,}" if isinstance(value, int) else str(value)


def environment(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Machine, versions and commit, without host name or paths.

    Args:
        packages: more packages whose version matters; None if not installed.
    """
    cuda = torch.cuda.is_available()
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in (*PACKAGES, *packages)},
        "commit": commit(),
    }


def cpu_model() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str:
    """Short hash of the commit, with "+changes" if tracked code differs from it; "unknown" outside git."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        changed = git(
            "status",
            "--porcelain",
            "--untracked-files=no",
            "--",
            "mim_components",
            "mim_tools",
            "benchmarks",
            "bundles",
        )
        return git("rev-parse", "--short", "HEAD").strip() + ("+changes" if changed.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def command() -> str:
    """The running command, with paths shortened to their last part."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    module = spec.name.removesuffix(".__main__") if spec else Path(sys.argv[0]).stem
    return " ".join(["python -m", module, *(Path(each).name if os.sep in each else each for each in sys.argv[1:])])


def size_option(text: str) -> tuple[int, ...]:
    """Parse a size such as `96,96,96` on the command line."""
    return tuple(int(side) for side in text.split(","))


def add_report_options(parser: argparse.ArgumentParser, repetitions: int = 5) -> None:
    """Add the options of all benchmarks: `--repetitions` and `--json`."""
    parser.add_argument("--repetitions", type=int, default=repetitions, help="timed rounds")
    parser.add_argument("--json", type=Path, default=None, help="also write the numbers to this file")


def describe(where: Mapping[str, Any]) -> str:
    """An environment as one sentence."""
    versions = ", ".join(f"{name} {number}" for name, number in where["versions"].items() if number)
    return (
        f"{where['gpu'] + ', ' if where['gpu'] else ''}{where['cpu']}, {where['cores']} cores, {where['threads']} "
        f"threads, {where['memory_gib']} GiB; Python {where['python']}, {versions}; commit {where['commit']}."
    )


def markdown(content: Mapping[str, Any]) -> str:
    """Content of a benchmark's file as readable text."""
    parts = [f"`{content['command']}`", describe(content["environment"])]
    for title, rows in content["tables"].items():
        parts += [title, markdown_table(rows)]
    return "\n\n".join(parts)


def report(
    tables: Mapping[str, Sequence[Mapping[str, Any]]], path: Path | None = None, packages: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Print tables and the environment; also write them to a JSON file if a path is given.

    Args:
        tables: rows by title.
        path: JSON file.
        packages: see `environment`.
        settings: settings of the measurement, for the file.
    """
    content = content_of(tables, packages, settings)
    print(markdown(content))
    if path is not None:
        write_json(path, content)


def content_of(
    tables: Mapping[str, Sequence[Mapping[str, Any]]], packages: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Content of a benchmark's file, see `report`."""
    return {
        "command": command(), "environment": environment(packages), "settings": dict(settings or {}),
        "tables": dict(tables),
    }  # fmt: skip


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
