"""A file with one JSON object per line, each for a step of a run; continuing a run takes back what is done again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import ignite.distributed as idist

from mim_components.run.folder import RunFolder
from mim_components.utils.files import append_line, write_text_safely


class StepLines:
    """Numbers of a run by step, as a file of JSON lines; the first process writes.

    Args:
        folder: of the run; decides what becomes of a full disk.
        name: of the file in it.
    """

    def __init__(self, folder: RunFolder, name: str) -> None:
        self.folder = folder
        self.path = folder.path / name

    def rewind(self, step: int) -> None:
        """Forget the lines of steps after `step`, and those that are cut off."""
        if idist.get_rank() != 0 or not self.path.exists():
            return
        lines = self.path.read_text(errors="replace").splitlines()
        kept = [line for line in lines if _step_of(line) <= step]
        if kept != lines:
            with self.folder.unless_full(f"removal of repeated steps in {self.path.name}"):
                write_text_safely(self.path, "".join(f"{line}\n" for line in kept))

    def append(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Add a line; numbers that are not finite, which JSON does not have, become null.

        Raises:
            OSError: the file cannot be written; names it.
        """
        if idist.get_rank() != 0:
            return
        plain = {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in numbers.items()}
        with self.folder.unless_full(f"steps in {self.path.name}"):
            append_line(self.path, json.dumps({"step": step, **plain}))


def _step_of(line: str) -> float:
    """Step of a line; infinite where it is damaged."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
