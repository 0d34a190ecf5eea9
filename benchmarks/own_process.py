"""Cases of a benchmark in their own processes, because a process's peak memory never decreases."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter, process_time

from benchmarks.report import ROOT

GIB = 2**30


def timed(case: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock seconds of a case, and CPU seconds of all threads."""
    start, cpu_start = perf_counter(), process_time()
    case()
    return perf_counter() - start, process_time() - cpu_start


def peak() -> float:
    """Peak memory of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def numbers_of(
    module: str, words: Sequence[object], case: object, environment: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Run a benchmark for one case, which it prints as JSON in its last line.

    Args:
        module: module of the benchmark.
        words: its arguments.
        case: name of the case in messages.
        environment: variables in addition to those of this process.

    Raises:
        RuntimeError: the process failed.
    """
    command = [sys.executable, "-m", module, *map(str, words)]
    variables = {**os.environ, **(environment or {})}
    done = subprocess.run(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"the process of {case} ended with {done.returncode}; -9: the machine has too little memory."
        )
    numbers: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return numbers
