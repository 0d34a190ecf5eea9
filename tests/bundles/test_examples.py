"""Every class and function of ours that a configuration names has an executed example in its docstring."""

from __future__ import annotations

import json
from collections.abc import Iterator
from doctest import DocTestFinder
from pathlib import Path
from pydoc import locate
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ("mim_components.", "mim_tools.")


def targets(value: Any) -> Iterator[str]:
    """Targets of the parts of a configuration."""
    if isinstance(value, dict) and str(value.get("_target_", "")).startswith(OURS):
        yield value["_target_"]
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from targets(part)


NAMED = sorted(
    {
        target
        for path in (ROOT / "bundles").glob("*/configs/*.json")
        for target in targets(json.loads(path.read_text(encoding="utf-8")))
    }
)


def has_example(part: object) -> bool:
    """Whether the part's own docstring, not that of a method, has an example that `--doctest-modules` executes."""
    return any(test.examples for test in DocTestFinder(recurse=False).find(part, name="part"))


def test_parts_are_found() -> None:
    assert {"mim_components.networks.MiM", "mim_components.handlers.ValidationLog"} <= set(NAMED)
    assert len(NAMED) > 90


@pytest.mark.parametrize("name", NAMED)
def test_part_has_an_executed_example(name: str) -> None:
    part: Any = locate(name)
    assert part is not None, f"{name}: there is no such part"
    assert has_example(part), f"{name}: its docstring has no Example: with >>> lines"


def test_example_of_a_method_is_none_of_its_class() -> None:
    class Part:
        """Does something."""

        def method(self) -> None:
            """Do it.

            >>> 1 + 1
            2
            """

    assert not has_example(Part)
    assert has_example(Part.method)
