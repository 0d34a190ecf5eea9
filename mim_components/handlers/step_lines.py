"""A file with one JSON object per line, each for a step of a run; continuing a run takes back what is done again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist

from mim_components.safe_write import write_text_safely


class StepLines:
    """Numbers of a run by step, as a file of JSON lines; the first process writes.

    Args:
        path: of the file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def rewind(self, step: int) -> None:
        """Forget the lines of steps after `step`, and half a line of a run that was killed."""
        if idist.get_rank() == 0 and self.path.exists():
            lines = [line for line in self.path.read_text().splitlines() if line.endswith("}")]
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            write_text_safely(self.path, "".join(f"{line}\n" for line in kept))

    def append(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Add a line; numbers that are not finite, which JSON does not have, become null.

        Raises:
            OSError: the file cannot be written; names it.
        """
        if idist.get_rank() != 0:
            return
        plain = {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in numbers.items()}
        try:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **plain}) + "\n")
        except OSError as error:
            raise OSError(error.errno, f"cannot write {self.path}: {error.strerror}") from error
