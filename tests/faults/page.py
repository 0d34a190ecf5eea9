"""The table in docs/reliability.md, generated from the markers of the tests and from their results."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
OPTION = "--reliability"
START, END = "<!-- table: pytest tests/faults --reliability docs/reliability.md -->", "<!-- end of table -->"
HEAD = ["| case | injection | expected | result |", "|---|---|---|---|"]
NOT_RUN = "not run"
# the promised faults; the tests cover more
REQUIRED = """
A1 A2 A3 A4 A6 A8 A9 A11 A12 A13 A14 A15 A16 A17 A18 A21 A23 A24 A25
B1 B2 B4 B5 B6 B7 B8 B10 B12
C1 C2 C3 C5 C6 C7 C8 C9 C10 C11 C12 C14 C15 C17
D1 D2 D3 D5 E1 E3 F1 F2 F3 F4 F5 F6 F8 F9
K1 K2 K3 K4 K5 K6 K7 K8 K9 K10
""".split()


@dataclass(frozen=True)
class Row:
    """A fault with the values of its marker, `fault("A1", fault=..., injection=..., expected=...)`."""

    id: str
    fault: str
    injection: str
    expected: str

    def line(self, result: str) -> str:
        """The row of the page."""
        cells = (f"{self.id}: {self.fault}", self.injection, self.expected, result)
        return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"

    @property
    def order(self) -> tuple[str, int, str]:
        """Sorts by letter, number, and what follows."""
        parts = re.fullmatch(r"([A-Z])(\d+)(\w*)", self.id)
        assert parts, f"{self.id}: an id is a letter, a number, and perhaps letters"
        return parts[1], int(parts[2]), parts[3]


def rows_of(marks: Iterable[Any]) -> list[Row]:
    """The rows among pytest's markers."""
    return [Row(*mark.args, **mark.kwargs) for mark in marks if mark.name == "fault"]


def declared_rows() -> list[Row]:
    """All rows of the tests in this folder, in the order of the page."""
    rows: list[Row] = []
    for path in FOLDER.glob("test_*.py"):
        module = importlib.import_module(f"tests.faults.{path.stem}")
        for name, function in vars(module).items():
            if name.startswith("test_"):
                rows += rows_of(_marks(function))
    return sorted(rows, key=lambda row: row.order)


def _marks(function: Any) -> Iterator[Any]:
    """Markers of a test and of its cases."""
    for mark in getattr(function, "pytestmark", []):
        yield mark
        if mark.name == "parametrize":
            for case in mark.args[1]:
                yield from getattr(case, "marks", ())


def read_results(page: Path) -> dict[str, str]:
    """Results by row; the key is the row's line without the result."""
    table = page.read_text().partition(f"{START}\n")[2].partition(f"\n{END}")[0].splitlines()
    cut = (line.removesuffix(" |").rpartition(" | ") for line in table[len(HEAD) :])
    return {row: result for row, _, result in cut}


def write_page(page: Path, results: Mapping[str, str]) -> str:
    """Write the table to the page; a row that was not run keeps its result if its text is unchanged.

    Args:
        page: page that contains the lines START and END.
        results: results of the rows that were run, by id.

    Returns:
        A summary of what was written.
    """
    before, start, rest = page.read_text().partition(f"{START}\n")
    _, end, after = rest.partition(f"\n{END}")
    assert start and end, f"{page} has no lines {START} and {END}"
    old, lines, missing = read_results(page), list(HEAD), []
    for row in declared_rows():
        text = row.line("").removesuffix(" |  |")
        result = results.get(row.id) or old.get(text, NOT_RUN)
        missing += [row.id] if result == NOT_RUN else []
        lines.append(row.line(result.replace("\\|", "|")))
    page.write_text(before + start + "\n".join(lines) + end + after)
    return f"{page}: {len(lines) - len(HEAD)} rows, {len(results)} of this run; not run: {', '.join(missing) or 'none'}"
