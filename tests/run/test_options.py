"""Options: kinds, ranges, and values as they were typed."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
import torch
from monai.bundle import ConfigWorkflow

from mim_components.run.options import (
    KINDS,
    OptionsError,
    convert,
    expectation,
    holder_of,
    option_table,
    read_words,
    wrong_options,
)
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
    "device": ["gpu", 0, ["cpu"], "cuda:99"],
    "store": [True, "localhost:5000", "htp://host", "/a/folder"],
}
RIGHT: dict[str, list[tuple[Any, Any]]] = {
    "path": [("2024_07", "2024_07"), (20240101, "20240101"), ("a,b", "a,b"), ("set#1", "set#1")],
    "text": [("none", "none"), (5, "5")],
    "bool": [(True, True), ("false", False), ("TRUE", True), ("False", False)],
    "triple": [(32, [32, 32, 32]), ((32, 64, 96), [32, 64, 96])],
    "sizes": [([[96, 96, 48], (16, 16, 16)], [[96, 96, 48], [16, 16, 16]])],
    "window": [((-1000, 400), [-1000, 400])],
    "mapping": [({"liver": 6}, {"liver": 6})],
    "device": [("cpu", torch.device("cpu")), ("meta", torch.device("meta"))],
    "store": [("http://host:5000", "http://host:5000"), ("databricks", "databricks")],
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
        with pytest.raises(ValueError, match="expected |CUDA devices here|not an address of an MLflow store") as error:
            convert(value, option)
        assert expectation(option) in str(error.value) or "expected" not in str(error.value)
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


@pytest.mark.parametrize("name", ["team/ct", "a:b", " "])
def test_the_name_of_a_model_is_one_that_mlflow_takes(name: str) -> None:
    option = TABLE["register_model"]
    with pytest.raises(ValueError, match="expected a text without / and :, or null, got"):
        convert(name, option)
    assert convert("ct.base v1", option) == "ct.base v1"


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


def right_value(option: dict[str, Any]) -> Any:
    """A valid value of an option."""
    number = option.get("least", option.get("above", 0) + (option.get("most", option.get("below", 2)) / 2))
    return {
        "path": "x", "text": "x", "bool": False, "int": option.get("least", 1), "number": number,
        "choice": option.get("choices", [None])[0], "triple": [32, 32, 32], "sizes": [[32, 32, 32], [16, 16, 16]],
        "numbers": [1.5] * option.get("length", 2 - option.get("fewer", 0)), "window": [0, 1], "mapping": {"liver": 6},
        "device": "cpu", "store": "http://host:5000",
    }[option["kind"]]  # fmt: skip


def commands_of(bundle: Path) -> list[tuple[str, ...]]:
    overlays = {"evaluate.json", "multi_gpu_train.json", "probe.json", "demo.json"}
    there = sorted(overlays & {path.name for path in (bundle / "configs").iterdir()})
    return [("train.json",), ("inference.json",), *(("train.json", overlay) for overlay in there)]


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_every_option_of_every_command_is_checked(bundle: Path) -> None:
    for names in commands_of(bundle):
        files = [str(bundle / "configs" / name) for name in names]
        workflow = ConfigWorkflow(files, logging_file=False, workflow_type=None)
        places = {name: holder_of(workflow.parser.config, name) for name in checked()}
        places = {name: (place, key) for name, (place, key) in places.items() if key in place}
        assert len(places) > 15
        inner = {name for name in places if name.rpartition("::")[0] in places}  # for an option that is a part
        for names_now in (inner, places.keys() - inner):
            for name in names_now:
                place, key = places[name]
                place[key] = WRONG[TABLE[name]["kind"]][-1]
            found = [line.split()[0] for line in wrong_options(workflow)]
            assert sorted(found) == sorted(f"--{name}" for name in names_now)
            for name in names_now:
                place, key = places[name]
                place[key] = right_value(TABLE[name])
            assert wrong_options(workflow) == []
            values = {name: places[name][0][places[name][1]] for name in names_now}
            assert values == {name: right_value(TABLE[name]) for name in names_now}


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
    check = '"+initialize": [{"_target_": "mim_components.run.check_overrides"}]'
    (configs / "evaluate.json").write_text('{"max_steps": 5, "+result": [1], ' + check + "}")
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
        run(bundle, max_steps="ten", preset="Tiny", normalize_target="maybe", presett="x")
    cause = root_cause(error.value)
    assert isinstance(cause, OptionsError)
    first, *lines = str(cause).splitlines()
    assert first == "wrong options:" and sorted(lines) == [
        "  --max_steps ten: expected a whole number, at least 1, got 'ten'.",
        "  --normalize_target maybe: expected true or false, got 'maybe'.",
        "  --preset Tiny: expected one of nano, tiny, small, base, got 'Tiny'.",
        "  unknown option --presett: nothing in the configuration reads it; did you mean --preset or --result?",
    ]


def test_a_list_for_the_probe_is_refused_where_nothing_probes() -> None:
    configs = Path(__file__).resolve().parents[2] / "bundles" / "mim_pretrain" / "configs"

    def start(*names: str, **options: Any) -> None:
        files = [str(configs / name) for name in names]
        monai.bundle.create_workflow(config_file=files, **{"probe::datalist": "list.json"}, **options)

    with pytest.raises(RuntimeError) as error:
        start("train.json")
    assert "--probe::datalist: nothing probes; give --probe_interval as well" in str(root_cause(error.value))
    start("train.json", probe_interval=5)
    start("train.json", probe_interval=0)  # switched off on purpose
    start("train.json", "probe.json")


@pytest.mark.filterwarnings("ignore:Can't merge entry")
@pytest.mark.parametrize(
    "names", [("evaluate.json",), ("evaluate.json", "train.json"), ("inference.json", "evaluate.json")]
)
def test_files_that_do_not_go_together_show_the_right_ones(bundle: Path, names: tuple[str, ...]) -> None:
    configs = bundle / "configs"
    (configs / "inference.json").write_text((configs / "train.json").read_text())
    right = f"['{configs / 'train.json'}','{configs / 'evaluate.json'}']"
    with pytest.raises(RuntimeError) as error:
        run(bundle, *names)
    assert str(root_cause(error.value)) == (
        f'evaluate.json changes the train.json of its bundle: --config_file "{right}"'
    )
    assert run(bundle, "train.json", "evaluate.json")[-2:] == [5, 1]


def test_files_of_two_bundles_do_not_go_together(bundle: Path, tmp_path: Path) -> None:
    train, other = bundle / "configs" / "train.json", tmp_path / "other" / "configs"
    other.mkdir(parents=True)
    overlay = other / "evaluate.json"
    overlay.write_text((bundle / "configs" / "evaluate.json").read_text())
    files = [str(train), str(overlay)]
    monai.bundle.create_workflow(config_file=files)  # a file of the user's own
    (other / "metadata.json").write_text("{}")
    with pytest.raises(RuntimeError) as error:
        monai.bundle.create_workflow(config_file=files)
    assert f"['{train}','{train.with_name('evaluate.json')}']" in str(root_cause(error.value))


@pytest.mark.filterwarnings("ignore:Can't merge entry")
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_every_overlay_alone_shows_the_right_command(bundle: Path) -> None:
    for _, *overlays in (names for names in commands_of(bundle) if len(names) == 2):
        path = bundle / "configs" / overlays[0]
        with pytest.raises(RuntimeError) as error:
            monai.bundle.create_workflow(config_file=str(path), logging_file=False)
        right = f"['{path.with_name('train.json')}','{path}']"
        assert str(root_cause(error.value)).endswith(f'of its bundle: --config_file "{right}"')


def test_two_files_without_brackets_are_explained(bundle: Path) -> None:
    with pytest.raises(RuntimeError) as error:
        run(bundle, run_id="evaluate.json")
    assert str(root_cause(error.value)) == (
        "several files need brackets and quotes: --config_file \"['...','evaluate.json']\""
    )


def test_a_password_is_in_no_line_of_monais_log(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    monais = logging.getLogger("monai.bundle.scripts")
    monais.addHandler(caplog.handler)
    try:
        run(bundle, output_dir="https://me:p@ss@host/?access_token=abc&x=1", max_steps=7)
    finally:
        monais.removeHandler(caplog.handler)
    assert "> max_steps: 7" in caplog.messages
    assert "> output_dir: 'https://***@host/?access_token=***&x=1'" in caplog.messages


def cause_of_run(bundle: Path, **options: Any) -> str:
    with pytest.raises(RuntimeError) as error:
        run(bundle, **options)
    return str(root_cause(error.value))


def test_a_name_that_begins_with_no_and_has_no_value_is_understood(bundle: Path) -> None:
    assert cause_of_run(bundle, rmalize_target=False) == "--normalize_target needs a value."  # as fire has it


def test_lists_are_as_long_as_they_must_be(bundle: Path) -> None:
    path = bundle / "configs" / "train.json"
    levels = {
        "level_sizes": [[8, 8, 8], [4, 4, 4]],
        "alignment_weights": "$[0.1]",
        "reconstruction_weights": [1.0, 1.0],
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | levels))
    run(bundle)
    assert cause_of_run(bundle, reconstruction_weights=[1, 1, 1], alignment_weights=[0.1, 0.1]).splitlines()[1:] == [
        "  --reconstruction_weights [1, 1, 1]: expected 2 numbers for 2 level_sizes.",
        "  --alignment_weights [0.1, 0.1]: expected 1 numbers for 2 level_sizes.",
    ]


def test_a_device_that_is_not_here_is_refused_at_once(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert run(bundle, device="cuda:1")[4] == torch.device("cuda:1")
    assert cause_of_run(bundle, device="cuda:2") == "--device cuda:2: PyTorch sees 2 CUDA devices here."


@pytest.mark.parametrize(
    ("uri", "cause"),
    [
        ("sqlite:///", "names no file"),
        ("sqlite:////", "names no file; expected one such as sqlite:////absolute/path/mlruns.db"),
        ("sqlite:////dev/null/a/mlruns.db", "there is no folder /dev/null/a, and it cannot be created in /dev/null"),
        ("http://me:secret@", "'http://***@' is not an address"),
    ],
)
def test_a_store_that_can_never_work_is_refused_at_once(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, uri: str, cause: str
) -> None:
    path = bundle / "configs" / "train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tracking_uri": None}))
    shown = cause_of_run(bundle, tracking_uri=uri)
    assert shown.startswith("--tracking_uri ") and cause in shown and "secret" not in shown
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert cause in cause_of_run(bundle)
    run(bundle, tracking_uri="http://host")
