"""CSV lists of CC-CCII scans: `unzip_filenames.csv` of the dataset, and lists of training or validation scans."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from mim_components.data.volumes import DataError

COLUMNS = ("label", "patient_id", "scan_id")


@dataclass(frozen=True)
class ListedScan:
    """One line of a list.

    Attributes:
        label: name of the class.
        patient: id of the patient, as the folder is named.
        scan: id of the scan, as the folder is named.
        num_slices: number of slices, if listed.
        target: class number, if listed.
    """

    label: str
    patient: str
    scan: str
    num_slices: int | None = None
    target: int | None = None


def read_scan_list(path: str | Path) -> list[ListedScan]:
    """Read a list with the columns label, patient_id and scan_id, and optionally n_slice and target.

    Raises:
        DataError: missing, not CSV, or without these columns; names the file, the line and what is wrong.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{path}: no column {', '.join(missing)}; columns: {list(reader.fieldnames or ())}")
            return [_listed(path, reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: the list cannot be read: {error}") from error


def _listed(path: Path, line: int, row: dict[str, str | None]) -> ListedScan:
    texts = {name: (value or "").strip() for name, value in row.items() if name is not None and isinstance(value, str)}
    empty = [name for name in COLUMNS if not texts.get(name)]
    if empty:
        raise DataError(f"{path}, line {line}: {', '.join(empty)} is empty")
    numbers: dict[str, int | None] = {}
    for name in ("n_slice", "target"):
        try:
            numbers[name] = int(texts[name]) if texts.get(name) else None
        except ValueError as error:
            raise DataError(f"{path}, line {line}: {name} is {texts[name]!r}, expected a whole number") from error
    return ListedScan(texts["label"], texts["patient_id"], texts["scan_id"], numbers["n_slice"], numbers["target"])
