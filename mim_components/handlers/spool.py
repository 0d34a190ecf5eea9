"""Numbers and files waiting for a tracking store, in a JSON Lines file in the run folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from time import time
from typing import Any

import mlflow

from mim_components.utils.files import append_line, read_rows, write_text_safely

# files of a run's folder with all its numbers, and how their names begin in MLflow
HISTORY = {"metrics.jsonl": "", "validation.jsonl": "val_", "probe.jsonl": ""}
MOST_METRICS = 1000  # in one request to MLflow
Record = dict[str, Any]  # `step`, and `numbers` with `time` (ms), or `file` with `folder`


class Spool:
    """Unsent records in their original order. There is no file if nothing waits.

    Args:
        path: path of the file.
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
        """All records."""
        return [record for record in read_rows(self.path) if "step" in record]

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
        """Drop the records of steps after `step`, which are repeated."""
        if self.path.exists():
            self.replace([record for record in self.records() if record["step"] <= step])


def deliver(client: mlflow.MlflowClient, run_id: str, records: Sequence[Record]) -> None:
    """Send records to a run; one that was sent before is not duplicated, since it keeps its time."""
    metrics = [
        mlflow.entities.Metric(name, value, record["time"], record["step"])
        for record in records
        for name, value in record.get("numbers", {}).items()
    ]
    for first in range(0, len(metrics), MOST_METRICS):
        client.log_batch(run_id, metrics=metrics[first : first + MOST_METRICS])
    for record in records:
        if Path(record.get("file", "")).is_file():
            client.log_artifact(run_id, record["file"], record["folder"])


def with_history(waiting: Sequence[Record], folder: Path) -> list[Record]:
    """Waiting records, preceded by all other numbers of a run, for a store that has lost them.

    Args:
        waiting: waiting records.
        folder: folder of the run.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as place:
        ...     _ = Path(place, "validation.jsonl").write_text('{"step": 5, "mean_dice": 0.5}')
        ...     [record["numbers"] for record in with_history([], Path(place))]
        [{'val_mean_dice': 0.5}]
    """
    there = {(record["step"], name) for record in waiting for name in record.get("numbers", ())}
    missing: list[Record] = []
    now = int(time() * 1000)
    for file, prefix in HISTORY.items():
        for row in read_rows(folder / file):
            step = row.pop("step")
            numbers = {
                tracked_name(key, prefix): value for key, value in row.items() if isinstance(value, (int, float))
            }
            numbers = {name: value for name, value in numbers.items() if (step, name) not in there}
            if numbers:
                missing.append({"step": step, "time": now, "numbers": numbers})
    return [*missing, *waiting]


def tracked_name(name: str, prefix: str = "") -> str:
    """A name that MLflow accepts and that begins with `prefix`."""
    plain = "".join(each if each.isalnum() or each in "_-. /" else "_" for each in name)
    return plain if plain.startswith(prefix) else prefix + plain
