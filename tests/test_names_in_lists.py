"""Names that stand as text in our code, where a rename would silently empty a rule."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from pydoc import locate

import pytest

from mim_components.run.options import holder_of
from mim_tools.verify.targets import ALLOWED, DENIED, NAMES

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "bundles").glob("*/configs/*.json"))


@pytest.mark.parametrize("name", [*ALLOWED, *DENIED])
def test_accepted_and_denied_modules_exist(name: str) -> None:
    assert find_spec(name) is not None


@pytest.mark.parametrize("name", sorted(NAMES))
def test_accepted_names_exist(name: str) -> None:
    assert locate(name) is not None


@pytest.mark.parametrize(
    "path", [path for path in CONFIGS if path.name == "train.json"], ids=lambda path: path.parts[-3]
)
def test_free_keys_are_keys_of_a_configuration(path: Path) -> None:
    """Those at the top of any file of the bundle; those of a part in the training."""
    train = json.loads(path.read_text())
    keys = {
        key
        for each in path.parent.glob("*.json")
        if each.name != "metadata.json"
        for key in json.loads(each.read_text())
    }
    free = train["folder"]["free_keys"]
    assert len(free) > 30 and len(set(free)) == len(free)
    monais = {"is_not_rank0", "run_name", "save_execute_config"}  # that its `--tracking mlflow` adds
    missing = {key for key in free if "::" not in key} - keys - monais
    for key in (key for key in free if "::" in key):
        place, name = holder_of(train, key)
        missing |= set() if name in place else {key}
    assert missing == set()
