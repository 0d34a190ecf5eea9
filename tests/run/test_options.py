"""Options: kinds, ranges, and values as they were typed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
import torch

from mim_components.run.options import KINDS, OptionsError, convert, expectation, option_table, read_words
from mim_components.utils.text import root_cause
from mim_tools.bundle_files.options import FILES, options_of, with_options

BUNDLES = sorted((Path(__file__).resolve().parents[2] / "bundles").iterdir())
TABLE = option_table()

WRONG: dict[str, list[Any]] = {
    "path": [True, ["a"], ""],
    "text": [True, {"a": 1}, ""],
    "bool": ["yes", 1, 0.0, []],
    "int": ["ten", 2.5, 100.0, True, "1e2", [1]],
    "number": ["0,001", True, float("nan"), float("inf"), [0.5], (0, 1)],
    "choice": ["Tiny", 7, ["base"]],
    "triple": [[96, 96], [96, 96, 96.5], "96,96,96", 0, [96, 0, 96], (1, 1, 1, 1)],
    "numbers": [5, "1,1,1", [], ["a", 1, 1]],
    "sizes": [(96, 96, 96), 96, [], [[96, 96]], [[96, 96, 0]], "96,96,96"],
    "window": [-1000, [1000, -1000], [0, 0], [1, 2, 3], "a"],
    "mapping": [5, {}, "liver"],
    "device": ["gpu", 0, ["cpu"]],
}
RIGHT: dict[str, list[tuple[Any, Any]]] = {
    "path": [("2024_07", "2024_07"), (20240101, "20240101"), ("a,b", "a,b"), ("set#1", "set#1")],
    "text": [("none", "none"), (5, "5")],
    "bool": [(True, True), ("false", False), ("TRUE", True), ("False", False)],
    "triple": [(32, [32, 32, 32]), ((32, 64, 96), [32, 64, 96])],
    "sizes": [([[96, 96, 48], (16, 16, 16)], [[96, 96, 48], [16, 16, 16]])],
    "window": [((-1000, 400), [-1000, 400])],
    "mapping": [({"liver": 6}, {"liver": 6})],
    "device": [("cpu", torch.device("cpu")), ("cuda:1", torch.device("cuda:1"))],
}


def checked() -> list[str]:
    return [name for name, option in TABLE.items() if option["kind"] != "part"]


def test_every_kind_is_known_and_described() -> None:
    assert {option["kind"] for option in TABLE.values()} <= set(KINDS)
    assert all(option["text"] and len(option["text"]) < 140 for option in TABLE.values())


@pytest.mark.parametrize("name", checked())
def test_wrong_types_are_refused_with_what_is_expected(name: str) -> None:
    option = TABLE[name]
    for value in WRONG[option["kind"]]:
        with pytest.raises(ValueError, match="expected ") as error:
            convert(value, option)
        assert expectation(option) in str(error.value)
    if not option.get("null"):
        with pytest.raises(ValueError, match="needs a value"):
            convert(None, option)
    else:
        assert convert("null", option) is None


@pytest.mark.parametrize("name", [name for name in checked() if TABLE[name]["kind"] in ("int", "number")])
def test_values_outside_of_the_range_are_refused(name: str) -> None:
    option = TABLE[name]
    inside = {limit: option[limit] for limit in ("least", "most") if limit in option}
    outside = [option["least"] - 1] if "least" in option else []
    outside += [option["most"] + 1] if "most" in option else []
    outside += [option[limit] for limit in ("above", "below") if limit in option]
    for value in inside.values():
        assert convert(value, option) == value
    for value in outside:
        with pytest.raises(ValueError, match=r"at least|more than|at most|less than"):
            convert(value, option)


@pytest.mark.parametrize("kind", RIGHT)
def test_right_values_get_the_form_of_their_kind(kind: str) -> None:
    for value, wanted in RIGHT[kind]:
        new = convert(value, {"kind": kind})
        assert new == wanted and type(new) is type(wanted)


def test_a_home_folder_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert convert("~/cts", {"kind": "path"}) == "/somewhere/cts"


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_defaults_of_every_bundle_are_what_they_may_be(bundle: Path) -> None:
    for name, defaults in options_of(bundle).items():
        for value in defaults.values():
            if TABLE[name]["kind"] != "part" and not isinstance(value, dict) and str(value)[:1] not in "@$%":
                convert(value, TABLE[name])


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_tables_of_options_are_up_to_date(bundle: Path) -> None:
    readme = (bundle / "docs" / "README.md").read_text()
    assert with_options(readme, bundle) == readme, "python -m mim_tools.bundle_files"


def test_every_line_belongs_to_an_option() -> None:
    assert len(BUNDLES) == 14
    used = {name for bundle in BUNDLES for name in options_of(bundle)}
    assert used == TABLE.keys()


def test_an_option_without_a_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text("{}")
    (tmp_path / "configs" / FILES["train"]).write_text('{"seed": 0, "novelty": 1}')
    with pytest.raises(ValueError, match=r"train.json: option 'novelty' has no line"):
        options_of(tmp_path)
    with pytest.raises(ValueError, match="needs the lines <!-- options -->"):
        with_options("# a README", tmp_path)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle that does nothing but check its options."""
    configs = tmp_path / "configs"
    configs.mkdir()
    content = {
        "bundle_root": ".",
        "output_dir": "@bundle_root",
        "dataset_dir": None,
        "normalize_target": False,
        "max_steps": 10,
        "preset": "base",
        "roi_size": [96, 96, 96],
        "device": "$torch.device('cpu')",
        "imports": ["$import torch"],
        "initialize": [{"_target_": "mim_components.run.check_overrides"}],
        "run": ["@result"],
        "result": ["@output_dir", "@dataset_dir", "@normalize_target", "@roi_size", "@device", "@max_steps"],
    }
    (configs / "train.json").write_text(json.dumps(content))
    (configs / "evaluate.json").write_text('{"max_steps": 5}')
    return tmp_path


def run(bundle: Path, *names: str, **options: Any) -> list[Any]:
    files = [str(bundle / "configs" / name) for name in names or ("train.json",)]
    workflow = monai.bundle.create_workflow(config_file=files, **options)
    return list(workflow.parser.get_parsed_content("result"))


def test_values_arrive_as_they_were_given(bundle: Path) -> None:
    options = {"output_dir": "out#2", "dataset_dir": "set#1", "normalize_target": "false", "roi_size": 32}
    assert run(bundle, **options, device="cpu") == [
        "out#2", "set#1", False, [32, 32, 32], torch.device("cpu"), 10,
    ]  # fmt: skip


def test_words_of_the_command_line_are_texts(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["/x/monai/bundle/__main__.py", "run", "--output_dir", "2024_07", "--dataset-dir=1e5"]
    monkeypatch.setattr(sys, "argv", words)
    assert run(bundle, output_dir=202407, dataset_dir=100000.0)[:2] == ["2024_07", "1e5"]
    assert read_words(["run", "-v", "--flag", "--x", "-1", "--last"]) == {"x": "-1"}


def test_all_wrong_options_are_named_at_once(bundle: Path) -> None:
    with pytest.raises(RuntimeError) as error:
        run(bundle, max_steps="ten", preset="Tiny", normalize_target="maybe")
    cause = root_cause(error.value)
    assert isinstance(cause, OptionsError)
    first, *lines = str(cause).splitlines()
    assert first == "wrong options:" and sorted(lines) == [
        "  --max_steps ten: expected a whole number, at least 1, got 'ten'.",
        "  --normalize_target maybe: expected true or false, got 'maybe'.",
        "  --preset Tiny: expected one of nano, tiny, small, base, got 'Tiny'.",
    ]


def test_files_in_a_wrong_order_show_the_right_one(bundle: Path) -> None:
    configs = bundle / "configs"
    right = f"['{configs / 'train.json'}','{configs / 'evaluate.json'}']"
    with pytest.raises(RuntimeError) as error:
        run(bundle, "evaluate.json", "train.json")
    assert str(root_cause(error.value)) == (
        f'evaluate.json changes train.json and comes after it: --config_file "{right}"'
    )
    assert run(bundle, "train.json", "evaluate.json")[-1] == 5


def test_two_files_without_brackets_are_explained(bundle: Path) -> None:
    with pytest.raises(RuntimeError) as error:
        run(bundle, run_id="evaluate.json")
    assert str(root_cause(error.value)) == (
        "several files need brackets and quotes: --config_file \"['...','evaluate.json']\""
    )
