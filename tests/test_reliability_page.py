"""docs/reliability.md lists exactly the rows of the fault tests, with their results."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.faults.page import REQUIRED, declared_rows, read_results

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"


def test_rows_are_those_of_the_tests() -> None:
    lines = [row.line("").removesuffix(" |  |") for row in declared_rows()]
    assert list(read_results(PAGE)) == lines  # otherwise run: pytest tests/faults --reliability docs/reliability.md


def test_every_promised_fault_is_tested_once() -> None:
    ids = [row.id for row in declared_rows()]
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    assert sorted(set(REQUIRED) - set(ids)) == []
    controls = [name for name in ids if name.startswith("K")]
    assert len(controls) >= 10 and len(ids) - len(controls) >= 65


def test_no_result_is_bad() -> None:
    results = read_results(PAGE).values()
    assert [
        result for result in results if result != "passed" and not result.startswith(("skipped: ", "not run"))
    ] == []
