"""The public names: importable from the documented modules, and from the top of the package."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import mim_components

HOMES = {
    "HybridEncoder": "mim_components.networks",
    "MiM": "mim_components.networks",
    "MiMLoss": "mim_components.losses",
    "MultiLevelCropMask": "mim_components.transforms",
    "MultiLevelCropMaskd": "mim_components.transforms",
    "load_pretrained": "mim_components.weights",
    "read_contract": "mim_components.weights",
}


@pytest.mark.parametrize(("name", "home"), HOMES.items())
def test_one_thing_by_both_paths(name: str, home: str) -> None:
    assert getattr(mim_components, name) is getattr(import_module(home), name)


def test_all_of_them_are_announced() -> None:
    assert set(mim_components.__all__) == {*HOMES, "__version__"}


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="module 'mim_components' has no attribute 'HybridEncoders'"):
        mim_components.HybridEncoders  # type: ignore[attr-defined] # noqa: B018


def test_the_package_alone_imports_no_framework() -> None:
    """`python -m mim_tools.bundle_files` and the like must not wait for MONAI."""
    code = "import sys, mim_components; print(sorted({'torch', 'monai', 'numpy'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
