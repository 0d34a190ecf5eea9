from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mim_tools.verify import judge_bundle
from tests.tools.verify.good import only, write

BUNDLES = sorted(path.parent.parent for path in Path(__file__).parents[3].glob("bundles/*/configs/metadata.json"))


def test_good_bundle_is_clean(bundle: Path) -> None:
    assert judge_bundle(bundle) == []


@pytest.mark.parametrize("source", BUNDLES, ids=lambda path: path.name)
def test_our_bundles_are_clean(source: Path, tmp_path: Path) -> None:
    for part in ("configs", "docs", "LICENSE"):
        copy: Callable[..., Any] = shutil.copytree if (source / part).is_dir() else shutil.copy
        copy(source / part, tmp_path / part)
    assert judge_bundle(tmp_path) == []


def test_all_bundles_are_tested() -> None:
    assert len(BUNDLES) == 14


@pytest.mark.parametrize("name", ["scripts/evil.py", "run.sh", "a.so", "configs/x.ipynb", "startup.pth"])
def test_programs_are_named(bundle: Path, name: str) -> None:
    write(bundle, name, "print(1)")
    assert any(found.file == name and found.what == "a program" for found in judge_bundle(bundle))


def test_archives_inside_are_named(bundle: Path) -> None:
    write(bundle, "more.tar", "x")
    assert only(judge_bundle(bundle)).what == "an archive"


def test_links(bundle: Path, tmp_path: Path) -> None:
    (bundle / "configs" / "same.json").symlink_to("train.json")
    assert judge_bundle(bundle) == []
    (bundle / "models").symlink_to(tmp_path)
    assert only(judge_bundle(bundle)).why == "leads out of the bundle"
    (bundle / "models").unlink()
    (bundle / "loop").symlink_to("loop")
    os.mkfifo(bundle / "pipe")
    assert [found.file for found in judge_bundle(bundle)] == ["loop", "pipe"]


@pytest.mark.parametrize(
    "name", ["train.json", "docs/extra.json", "a/b/x.YML", ".json", "models/x.yaml", "configs/.yml"]
)
@pytest.mark.parametrize("content", [{"x": "$__import__('os').system('id')"}, {"x": {"_target_": "os.system"}}])
def test_configurations_anywhere_are_judged(bundle: Path, name: str, content: dict[str, Any]) -> None:
    write(bundle, name, json.dumps(content))
    assert only(judge_bundle(bundle)).file == name


def test_lists_of_downloads_are_judged_too(bundle: Path) -> None:
    write(bundle, "large_files.yml", json.dumps({"large_files": [], "x": {"_target_": "os.system"}}))
    assert only(judge_bundle(bundle)).key == "x::_target_"


@pytest.mark.parametrize("name", ["mim_components/run/options.json", "mim_tools/more.txt", "mim_components/tokens.py"])
def test_changed_copies_of_the_packages_are_named(bundle: Path, name: str) -> None:
    own = Path(__file__).parents[3] / "mim_components" / "run" / "options.json"
    write(bundle, "mim_components/run/options.json", own.read_bytes())
    assert judge_bundle(bundle) == []
    write(bundle, name, "{}")
    assert (only(judge_bundle(bundle)).file, only(judge_bundle(bundle)).what) == (name, "a changed file")
