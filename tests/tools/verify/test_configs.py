from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mim_tools.verify import judge_bundle
from tests.tools.verify.good import only, with_config, write


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("train#x#_target_", "os.system", "train::x::_target_"),
        ("+handlers", [{"_target_": "os.system"}], "+handlers::0::_target_"),
        ("x", {"_target_": "LoadImage", "reader": "subprocess.Popen"}, "imports and calls"),
        ("load#reader", ["NibabelReader", "os.abort"], "imports and calls"),
        ("x", {"_target_": "SaveImage", "writer": "@name"}, "imports and calls"),
        ("x", {"_target_": "SlidingWindowInferer", "merger_cls": "os.system"}, "imports and calls"),
        ("x", {"_target_": "NumpyReader", "allow_pickle": True}, "pickles"),
        ("x", {"_target_": "PersistentDataset", "weights_only": False}, "pickles"),
        ("x", {"_target_": "resnet18", "pretrained": True}, "may download"),
        ("x", {"_target_": "UNet", "_mode_": "debug"}, "debugger"),
        ("x", "%other.json::y", "from a file"),
        ("x", "%../../home/x.yaml#y", "from a file"),
        ("tracking_uri", "http://evil.example/", "address"),
        ("tracking_uri", "@_meta_::schema", "for people"),
        ("output_dir", "/home/you/.config", "absolute path"),
        ("output_dir", "~/.ssh", "absolute path"),
        ("output_dir", "C:\\Windows", "absolute path"),
        ("output_dir", "a/../../b", "leads out"),
        ("output_dir", "$'/etc/' + 'x'", "absolute path"),
        ("output_dir", "$@bundle_root + '/../../x'", "leads out"),
        ("a') or eval('1') or ('", {"x": "$@#y"}, "part of an expression"),
        ("a b", {"x": "$@#y"}, "relative reference"),
    ],
)
def test_places_in_a_config(bundle: Path, key: str, value: Any, what: str) -> None:
    findings = with_config(bundle, **{key: value})
    assert any(what in f"{found.key} {found.why}" for found in findings), findings


def test_values_of_duplicate_keys_are_all_judged(bundle: Path) -> None:
    write(bundle, "configs/train.json", '{"x": "$exec(1)", "y": 1, "x": "$1"}')
    assert [(found.key, found.what) for found in judge_bundle(bundle)] == [("x", "duplicate key"), ("x", "$exec(1)")]


def test_metadata_is_a_config_too(bundle: Path) -> None:
    write(bundle, "configs/metadata.json", json.dumps({"dataset": {"intensity": {"_target_": "os.system"}}}))
    assert only(judge_bundle(bundle)).key == "dataset::intensity::_target_"


@pytest.mark.parametrize(
    "override",
    [
        "x=$exec('1')",
        "--train::x::_target_=os.system",
        'x={"_target_": "eval"}',
        "x='$exec(1)'",
        "x=%a.json",
        "config_file=/tmp/x.json",
        "logging_file=x.conf",
    ],
)
def test_overrides_are_judged(bundle: Path, override: str) -> None:  # F3
    assert only(judge_bundle(bundle, [override])).file == "command line"


def test_paths_and_numbers_of_the_user_are_fine(bundle: Path) -> None:
    wanted = [
        "output_dir=/scratch/me",
        "tracking_uri=http://localhost:5000",
        "lr=1e-4",
        "size=[96,96,96]",
        "x=$len(@y)",
    ]
    assert judge_bundle(bundle, wanted) == []


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("x: !!python/object/apply:os.system ['id']", "python"),  # F4
        ("x: !!python/name:os.system", "python"),
        ("x: !local 1", "tag"),
        ("a: &a [1]\nb: [*a, *a]", "alias"),
        ("a: 1\na: 2", "duplicate key"),
        ("a: [", "cannot be read"),
        ("x:\n  _target_: os.system", "accepted components"),
        ("x: $exec('1')", "calls exec"),
    ],
)
def test_yaml(bundle: Path, text: str, what: str) -> None:
    write(bundle, "configs/x.yml", text)
    found = only(judge_bundle(bundle))
    assert found.file == "configs/x.yml"
    assert what in found.why


def test_plain_yaml_is_clean(bundle: Path) -> None:
    write(bundle, "configs/x.yaml", "size: [1, 2]\nnetwork: {_target_: UNet}\n1: 2")
    assert judge_bundle(bundle) == []


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100000, b'{"a": "\xff"}'])
def test_damaged_config_is_named(bundle: Path, content: bytes) -> None:
    write(bundle, "configs/x.json", content)
    assert only(judge_bundle(bundle)).why.startswith("cannot be read")


@pytest.mark.parametrize("value", [True, 1, "$True", "@t", "%t", "yes", {"a": 1}, [1]])
@pytest.mark.parametrize("key", ["pretrained", "download"])
def test_switches_for_downloads(bundle: Path, key: str, value: Any) -> None:
    component = {"_target_": "resnet18", key: value}
    for entries in ({"x": component}, {"x": {"_target_": "resnet18"}, f"x#{key}": value}):
        assert "may download" in only(with_config(bundle, t=True, **entries)).why


@pytest.mark.parametrize("value", [False, None])
def test_switches_that_are_off(bundle: Path, value: Any) -> None:
    own = {"_target_": "mim_components.weights.start_from", "pretrained": "@pretrained"}
    assert with_config(bundle, pretrained=value, own=own, x={"_target_": "resnet18", "pretrained": value}) == []


def test_components_that_download_by_default(bundle: Path) -> None:
    name = "monai.networks.nets.MILModel"
    for target in (name, "MILModel"):
        assert "give pretrained: false" in only(with_config(bundle, x={"_target_": target, "num_classes": 2})).why
    assert with_config(bundle, x={"_target_": name, "num_classes": 2, "pretrained": False}) == []
    found = with_config(bundle, x={"_target_": "PersistentDataset", "pickle_module": "dill"})
    assert only(found).key == "x::pickle_module"
