"""Differences between two configurations, and options that nothing reads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import monai.bundle
import pytest

from mim_components.run.configuration import (
    check_overrides,
    current_config,
    differences,
    flatten,
    known_keys,
)
from mim_components.run.options import free_keys
from mim_components.utils.text import root_cause

CONFIGS = Path(__file__).resolve().parents[2] / "bundles" / "mim_pretrain" / "configs"


def test_flatten_by_hand() -> None:
    config = {
        "a": 1,
        "sizes": [1, 2],
        "train": {"step": {"x": None}, "list": [{"y": 2}, "@z", [3]]},
        "empty": {},
        "none": [],
    }
    assert flatten(config) == {
        "a": 1,
        "sizes": [1, 2],
        "train::step::x": None,
        "train::list::0::y": 2,
        "train::list::1": "@z",
        "train::list::2": [3],
        "empty": {},
        "none": [],
    }


def test_differences_lists_every_value_that_matters() -> None:
    old = {"seed": 0, "sizes": [[4, 4], [2, 2]], "loss": {"tau": 0.1}, "gone": 1, "same": None}
    new = {"seed": 1, "sizes": [(4, 4), (3, 2)], "loss": {"tau": 0.1, "kind": "byol"}, "same": None}
    assert differences(old, new) == [
        "gone: 1 -> absent",
        "loss::kind: absent -> byol",
        "seed: 0 -> 1",
        "sizes::1: [2, 2] -> [3, 2]",
    ]
    assert differences(old, old) == []


def test_free_keys_are_ignored_with_what_stands_below_them() -> None:
    old = {"seed": 0, "x": 0, "train": {"handlers": [1], "step": {"max_norm": 1, "amp": True}}}
    new = {"seed": 1, "x": 1, "train": {"handlers": [2, 3], "step": {"max_norm": 2, "amp": False}}}
    free = ["x", "train::handlers", "train::step::amp"]
    assert differences(old, new, free) == ["seed: 0 -> 1", "train::step::max_norm: 1 -> 2"]
    assert differences({"xy": 0}, {"xy": 1}, free) == ["xy: 0 -> 1"]  # the beginning of a name is not a path


@pytest.mark.parametrize("path", sorted((CONFIGS.parents[1]).glob("*/configs/train.json")), ids=lambda p: p.parts[-3])
def test_every_other_key_of_a_bundle_matters(path: Path) -> None:
    config = json.loads(path.read_text())
    free = free_keys()
    assert {"num_workers", "resume", "output_dir", "device", "batch_size", "log_interval"} <= free
    assert not {"seed", "global_batch_size", "mask_ratio", "learning_rate", "max_steps", "train", "prepared"} & free
    matters = {name for name in config if differences(config, config | {name: "changed"}, free)}
    assert matters == config.keys() - free


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose only action is the check."""
    configs = tmp_path / "configs"
    configs.mkdir()
    train = {
        "bundle_root": ".",
        "max_steps": 3,
        "dataset_dir": None,
        "twice": "$2 * @max_steps",
        "reads": "$@from_outside if True else None",
        "from_outside": 0,
        "initialize": [{"_target_": "mim_components.run.check_overrides"}],
        "run": ["$@twice"],
    }
    (configs / "train.json").write_text(json.dumps(train))
    (configs / "evaluate.json").write_text(json.dumps({"split": "test", "also_read": "@extra"}))
    (configs / "metadata.json").write_text(json.dumps({"version": "0.1.0", "secret_key": 1}))
    return configs


def run(bundle: Path, *files: str, **options: Any) -> None:
    paths = [str(bundle / name) for name in ("train.json", *files)]
    monai.bundle.run(config_file=paths, meta_file=str(bundle / "metadata.json"), logging_file=False, **options)


def test_the_earlier_name_of_an_option_is_refused(bundle: Path) -> None:
    with pytest.raises(RuntimeError) as refused:
        run(bundle, network="unetr")
    assert "--network unetr: the option is --architecture" in str(root_cause(refused.value))


def test_known_keys_are_those_of_all_configurations(bundle: Path) -> None:
    assert known_keys(bundle) == {
        *("_meta_", "bundle_root", "max_steps", "dataset_dir", "twice", "reads", "from_outside", "initialize", "run"),
        *("split", "also_read"),
    }


@pytest.mark.parametrize("options", [{}, {"max_steps": 5}, {"split": "train"}, {"twice": "$@number + 1", "number": 4}])
def test_options_that_are_known_or_read_pass(options: dict[str, Any], bundle: Path) -> None:
    run(bundle, **options)


def test_option_that_only_an_overlay_reads_passes(bundle: Path) -> None:
    run(bundle, "evaluate.json", extra=3)


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("datset_dir", "did you mean --dataset_dir"),
        ("max_step", "did you mean --max_steps"),
        ("max", "nothing in the configuration reads it"),  # the beginning of a key that is read
        ("secret_key", "nothing in the configuration reads it"),
        ("zzz", "see the README"),
    ],
)
def test_option_that_nothing_reads_is_refused(option: str, hint: str, bundle: Path) -> None:
    with pytest.raises(RuntimeError) as refused:
        run(bundle, **{option: 3})
    cause = root_cause(refused.value)
    assert isinstance(cause, ValueError) and f"unknown option --{option}:" in str(cause) and hint in str(cause)


@pytest.fixture
def parts(bundle: Path) -> Path:
    """The same bundle with a part with options."""
    train = json.loads((bundle / "train.json").read_text())
    crop = {"_target_": "mim_components.transforms.MultiLevelCropMaskd", "keys": "image", "resize": "area"}
    train |= {"train": {"crop": {**crop, "content_range": 50.0}}, "run": ["$@train::crop"]}
    (bundle / "train.json").write_text(json.dumps(train))
    return bundle


@pytest.mark.parametrize(
    "options",
    [{"train::crop::resize": "trilinear"}, {"train#crop#resize": "area"}, {"train::crop::num_children": 2},
     {"train::crop::_disabled_": True}],
    ids=str,
)  # fmt: skip
def test_option_of_a_part_passes(options: dict[str, Any], parts: Path) -> None:
    run(parts, **options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"train::crop::resise": "area"},
            "unknown option --train::crop::resise: .* mean --train::crop::resize",
        ),
        ({"train::crop::num_childs": 2}, "unknown option --train::crop::num_childs: .*--train::crop::num_children"),
        ({"train::crop::zzz": 2}, "unknown option --train::crop::zzz: train::crop has no zzz; see the README"),
        ({"train::crop::resize": "are"}, "--train::crop::resize are: expected one of area, trilinear, got 'are'"),
        ({"content_range": 2}, "unknown option --content_range: .*did you mean --train::crop::content_range"),
    ],
    ids=str,
)
def test_wrong_option_of_a_part_is_refused(options: dict[str, Any], text: str, parts: Path) -> None:
    with pytest.raises(RuntimeError) as refused:
        run(parts, **options)
    assert re.search(text, str(root_cause(refused.value)))


@pytest.fixture
def lengths(bundle: Path) -> Path:
    """The same bundle, with a length in steps or in epochs."""
    train = json.loads((bundle / "train.json").read_text())
    train |= {
        "max_steps": {"_target_": "types.SimpleNamespace", "derived_from": "@max_epochs"},
        "twice": "@max_steps",
        "max_epochs": None,
        "initialize": [{"_target_": "mim_components.run.check_overrides", "one_of": [["max_steps", "max_epochs"]]}],
    }
    (bundle / "train.json").write_text(json.dumps(train))
    return bundle


@pytest.mark.parametrize("options", [{}, {"max_steps": 5}, {"max_epochs": 0.5}, {"max_steps": 5, "max_epochs": None}])
def test_one_of_two_options_may_be_given(options: dict[str, Any], lengths: Path) -> None:
    run(lengths, **options)


def test_two_options_that_set_the_same_are_refused(lengths: Path) -> None:
    with pytest.raises(RuntimeError) as refused:
        run(lengths, max_steps=5, max_epochs=2)
    assert "--max_steps 5 and --max_epochs 2 are both given, but set the same" in str(root_cause(refused.value))


def test_outside_of_a_workflow_there_is_nothing_to_check() -> None:
    check_overrides()
    assert current_config() == {}


def test_section_without_content_differs_too() -> None:
    assert differences({"train": {}}, {"train": {"step": 1}}) == ["train: {} -> absent", "train::step: absent -> 1"]


def test_passwords_are_not_kept(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = json.loads((bundle / "train.json").read_text())
    train |= {
        "address": None,
        "read": "@address",
        "kept": "$dict(__import__('mim_components.run', fromlist=['x']).configuration.current_config())",
    }
    train["initialize"] = ["@kept"]
    (bundle / "train.json").write_text(json.dumps(train))
    workflow = monai.bundle.create_workflow(
        config_file=str(bundle / "train.json"), logging_file=False, address=["http://me:secret@host", 3]
    )
    assert workflow.parser.get_parsed_content("kept")["address"] == ["http://***@host", 3]
