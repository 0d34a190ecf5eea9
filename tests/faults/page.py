"""The table in docs/reliability.md, made from the markers of the tests and their results."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

PAGE_OPTION = "--reliability"
START, END = "<!-- table: pytest tests/faults --reliability docs/reliability.md -->", "<!-- end of table -->"
HEAD = ["| case | injection | expected | result |", "|---|---|---|---|"]
# every row of the fault table
REQUIRED = """
A1 A2 A3 A4 A6 A8 A9 A11 A12 A13 A14 A15 A16 A17 A18 A21 A23 A24 A25
B1 B2 B4 B5 B6 B7 B8 B10 B12
C1 C2 C3 C5 C6 C7 C8 C9 C10 C11 C12 C14 C15 C17
D1 D2 D3 D5 E1 E3 F1 F2 F3 F4 F5 F6 F8 F9
""".split()


@dataclass(frozen=True)
class Row:
    """A fault: its marker's `fault("A1", fault=..., injection=..., expected=...)`, and what came of it."""

    id: str
    fault: str
    injection: str
    expected: str
    result: str = ""

    def with_result(self, result: str) -> Row:
        """The row with a result."""
        return replace(self, result=result)

    @property
    def line(self) -> str:
        """The row of the page."""
        cells = (f"{self.id}: {self.fault}", self.injection, self.expected, self.result)
        return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def rows_of_item(item: pytest.Item) -> list[Row]:
    """The rows that a test is marked with."""
    return [Row(*mark.args, **mark.kwargs) for mark in item.iter_markers("fault")]


def order(row: Row) -> tuple[str, int, str]:
    """Sorts by letter, number, and what follows."""
    parts = re.fullmatch(r"([A-Z])(\d+)(\w*)", row.id)
    assert parts, f"{row.id}: an id is a letter, a number, and perhaps a letter"
    return parts[1], int(parts[2]), parts[3]


def table_of(rows: Iterable[Row]) -> list[str]:
    """The lines of the table."""
    return [*HEAD, *(row.line for row in sorted(rows, key=order))]


def read_table(page: Path) -> list[str]:
    """The lines of the table in the page."""
    return page.read_text().partition(f"{START}\n")[2].partition(f"\n{END}")[0].splitlines()


def without_result(line: str) -> str:
    """A line of the table without its last column."""
    return line[: line.rindex(" | ", 0, len(line) - 2)]


def write_page(page: Path, rows: Sequence[Row]) -> str:
    """Put the table into the page, if no required row is missing; returns what was done."""
    missing = sorted(set(REQUIRED) - {row.id for row in rows})
    if missing:
        return f"{page} is left as it was: rows that did not run: {', '.join(missing)}"
    before, start, rest = page.read_text().partition(f"{START}\n")
    _, end, after = rest.partition(f"\n{END}")
    if not (start and end):
        return f"{page} is left as it was: it has no lines '{START}' and '{END}'"
    page.write_text(before + start + "\n".join(table_of(rows)) + end + after)
    return f"{page}: {len(rows)} rows written"
