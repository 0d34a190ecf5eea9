"""Names that stand as text in our code, where a rename would silently empty a rule."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from pydoc import locate

import pytest

from mim_components.run.configuration import FREE_KEYS, FREE_PARTS
from mim_tools.verify.targets import ALLOWED, DENIED, NAMES

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "bundles").glob("*/configs/*.json"))


@pytest.mark.parametrize("name", [*ALLOWED, *DENIED])
def test_accepted_and_denied_modules_exist(name: str) -> None:
    assert find_spec(name) is not None


@pytest.mark.parametrize("name", sorted(NAMES))
def test_accepted_names_exist(name: str) -> None:
    assert locate(name) is not None


def test_free_keys_are_keys_of_a_configuration() -> None:
    keys = {key for path in CONFIGS if path.name != "metadata.json" for key in json.loads(path.read_text())}
    assert CONFIGS and FREE_KEYS - keys == set()


def test_free_parts_are_parts_of_a_training() -> None:
    parts = {key for path in CONFIGS if path.name == "train.json" for key in json.loads(path.read_text())["train"]}
    assert FREE_PARTS - parts == set()
