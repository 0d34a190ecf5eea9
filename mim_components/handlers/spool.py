"""Numbers and files that wait for a tracking store, in a file of JSON lines in the folder of the run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mim_components.utils.files import append_line, write_text_safely

Record = dict[str, Any]  # `step`, and `numbers` with `time` (ms), or `file` with `folder`


class Spool:
    """What could not be sent yet, in the order it came. There is no file when nothing waits.

    Args:
        path: of the file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def append(self, record: Record) -> None:
        """Add a record.

        Raises:
            OSError: the file cannot be written.
        """
        append_line(self.path, json.dumps(record))

    def records(self) -> list[Record]:
        """All records; half a line of a run that was killed is none."""
        if not self.path.exists():
            return []
        records = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and "step" in record:
                records.append(record)
        return records

    def replace(self, records: Sequence[Record]) -> None:
        """Keep these records only.

        Raises:
            OSError: the file cannot be written.
        """
        if records:
            write_text_safely(self.path, "".join(json.dumps(record) + "\n" for record in records))
        else:
            self.path.unlink(missing_ok=True)

    def rewind(self, step: int) -> None:
        """Forget what belongs to steps after `step`, which are done again."""
        if self.path.exists():
            self.replace([record for record in self.records() if record["step"] <= step])
