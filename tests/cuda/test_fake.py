"""A whole step of every network on fake CUDA tensors: nothing mixes devices or reads values from the device."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
SOURCE = ast.parse((Path(__file__).parent / "fake.py").read_text())
CASES = next(ast.literal_eval(ast.Tuple([*node.value.keys], ast.Load())) for node in SOURCE.body
             if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict))  # fmt: skip


@pytest.fixture(scope="module")
def results(
    program: Callable[..., Any], extension: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """The error of every case."""
    return program("fake", tmp_path_factory.mktemp("fake"), extension("guard"))


def test_the_harness_finds_a_mix_and_a_value_that_is_read(results: dict[str, str]) -> None:
    assert "found at least two devices, cuda:0 and cpu" in results["devices mixed"]
    assert "DynamicOutputShapeException" in results["a value read"]


@pytest.mark.parametrize("case", CASES[2:])
def test_a_step_stays_on_the_device(case: str, results: dict[str, str]) -> None:
    assert results[case] == ""
