"""Names that our code lists as text, where a rename would silently disable a rule."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from pydoc import locate

import pytest

from mim_components.run.options import free_keys, holder_of, with_defaults
from mim_tools.verify.targets import ALLOWED, DENIED, NAMES

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "bundles").glob("*/configs/*.json"))


@pytest.mark.parametrize("name", [*ALLOWED, *DENIED])
def test_accepted_and_denied_modules_exist(name: str) -> None:
    assert find_spec(name) is not None


@pytest.mark.parametrize("name", sorted(NAMES))
def test_accepted_names_exist(name: str) -> None:
    assert locate(name) is not None


def test_free_keys_are_keys_of_a_configuration() -> None:
    missing = set(free_keys()) - {"is_not_rank0", "run_name", "save_execute_config"}  # from MONAI's `--tracking mlflow`
    assert len(missing) > 50
    for config in (json.loads(path.read_text()) for path in CONFIGS):
        places = {key: holder_of(config, key) for key in missing}
        missing -= {key for key, (place, name) in places.items() if name in with_defaults(place)}
    assert missing == set()
