"""Shared files of bundles are generated from fragments, each with a single source."""

from __future__ import annotations

import configparser
import json
from pathlib import Path

import pytest

from mim_tools.bundle_files import BundleFilesError, __main__, find_bundles, update_bundle
from mim_tools.bundle_files.compose import WIDTH, as_overlay, as_text, merge, read_fragment
from mim_tools.bundle_files.copies import FRAGMENTS, SOURCES, fragments_of, shared_files, workflows

ROOT = Path(__file__).resolve().parents[2]
COMMON = ["LICENSE", "configs/logging.conf", "models/README.md", "configs/multi_gpu_train.json"]
SEGMENTATION = '{\n    "bundle_root": ".",\n    "seed": 0,\n    "run": ["@seed"]\n}\n'


def make_bundle(folder: Path, workflow: object = "segmentation") -> Path:
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "metadata.json").write_text(json.dumps({"workflow": workflow}))
    return folder


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sources of three workflows: one common file, one for "segmentation"; `__pycache__` is not a source."""
    folder = tmp_path / "sources"
    for name, content in (
        ("common/LICENSE", b"free\n"),
        ("segmentation/configs/train.json", b'{"seed": 0, "bundle_root": "."}'),
        ("fine_tuning/configs/train.json", b'{"run": ["@seed"]}'),
        ("classification/__pycache__/x.pyc", b""),
        ("__pycache__/y.pyc", b""),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    monkeypatch.setattr("mim_tools.bundle_files.copies.SOURCES", folder)
    return folder


def test_copies_are_made_of_the_sources(sources: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "mine")
    assert update_bundle(bundle) == {"LICENSE": "missing", "configs/train.json": "missing"}
    assert (bundle / "LICENSE").read_bytes() == b"free\n"
    assert (bundle / "configs" / "train.json").read_text() == SEGMENTATION
    assert update_bundle(bundle) == {}


def test_a_workflow_gets_its_own_files_only(sources: Path, tmp_path: Path) -> None:
    assert list(update_bundle(make_bundle(tmp_path / "mine", "pretraining"))) == ["LICENSE"]


def test_a_change_in_a_copy_is_found_and_replaced(sources: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "mine")
    update_bundle(bundle)
    (bundle / "configs" / "train.json").write_text('{"seed": 1}')
    assert update_bundle(bundle, check=True) == {"configs/train.json": "differs"}
    assert (bundle / "configs" / "train.json").read_text() == '{"seed": 1}'  # a check writes nothing
    assert update_bundle(bundle) == {"configs/train.json": "differs"}
    assert (bundle / "configs" / "train.json").read_text() == SEGMENTATION


def test_a_change_in_the_source_is_found(sources: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "mine")
    update_bundle(bundle)
    (sources / "common" / "LICENSE").write_bytes(b"free of charge\n")
    assert update_bundle(bundle, check=True) == {"LICENSE": "differs"}


def test_only_what_is_particular_to_a_bundle_stays(sources: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "mine")
    (bundle / "docs").mkdir()
    (bundle / "docs" / "README.md").write_text("mine")
    update_bundle(bundle)
    assert (bundle / "docs" / "README.md").read_text() == "mine"
    assert json.loads((bundle / "configs" / "metadata.json").read_text()) == {"workflow": "segmentation"}


def test_bundles_are_found_by_their_workflow(tmp_path: Path) -> None:
    made = [make_bundle(tmp_path / name) for name in ("b", "a")]
    make_bundle(tmp_path / "pretrain")
    (tmp_path / "pretrain" / "configs" / "metadata.json").write_text("{}")
    (tmp_path / "docs").mkdir()
    assert find_bundles(tmp_path) == sorted(made)


@pytest.mark.parametrize("workflow", ["detection", None, ["segmentation"], "common", ""])
def test_an_unknown_workflow_is_refused(tmp_path: Path, workflow: object) -> None:
    bundle = make_bundle(tmp_path / "mine", workflow)
    with pytest.raises(
        BundleFilesError, match=r"'workflow' must be one of classification, pretraining, segmentation, got "
    ) as caught:
        update_bundle(bundle)
    assert "metadata.json" in str(caught.value) and str(caught.value).endswith(f"got {workflow!r}.")
    assert sorted(path.name for path in bundle.iterdir()) == ["configs"]  # nothing was written


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (None, r"cannot be read \(No such file or directory\); a bundle's folder has this file"),
        ("{", r"cannot be read \(invalid JSON, .*line 1"),
        ("[]", "must hold a JSON object, got list"),
    ],
)
def test_metadata_that_cannot_be_read_is_named(tmp_path: Path, content: str | None, cause: str) -> None:
    if content is not None:
        make_bundle(tmp_path / "mine")
        (tmp_path / "mine" / "configs" / "metadata.json").write_text(content)
    with pytest.raises(BundleFilesError, match=f"mine/configs/metadata.json: {cause}"):
        update_bundle(tmp_path / "mine")


# fragments


def test_later_fragments_win_and_extend() -> None:
    first = {"train": {"step": {"amp": True}, "handlers": ["a"]}, "seed": 0, "run": ["x"]}
    second = {"seed": 1, "+train::handlers": ["b"], "train::step::norm": 1.0, "+train::step": {"_target_": "Step"}}
    assert merge([first, second]) == {
        "seed": 1,
        "train": {"step": {"_target_": "Step", "amp": True, "norm": 1.0}, "handlers": ["a", "b"]},
        "run": ["x"],
    }
    assert first["train"] == {"step": {"amp": True}, "handlers": ["a"]}  # a fragment stays as it is


def test_keys_have_one_order_whatever_the_fragments() -> None:
    one, two = {"run": [], "seed": 0, "folder": {}}, {"prepared::output_dir": "x", "dataset_dir": None}
    expected = ["dataset_dir", "seed", "folder", "prepared::output_dir", "run"]
    assert list(merge([one, two])) == list(merge([two, one])) == expected
    assert list(merge([{"train": {"trainer": 1, "crop": 2}}])["train"]) == ["crop", "trainer"]
    assert list(as_overlay({"seed": 1, "run": [], "initialize": []})) == ["seed", "+initialize", "run"]


def test_part_without_a_place_is_named() -> None:
    with pytest.raises(ValueError, match="no place for other, part: add it to the table of options, or to PARTS"):
        merge([{"part": 1, "seed": 0, "+other::key": 2}])


def test_what_cannot_be_extended_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\+run must extend a list with a list or a dictionary with one, got 'x'"):
        merge([{"run": []}, {"+run": "x"}])


@pytest.mark.parametrize(("content", "cause"), [("{", "invalid JSON"), ("[]", "must hold a JSON object, got list")])
def test_damaged_fragment_is_named(content: str, cause: str, tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(content)
    with pytest.raises(ValueError, match=f"{tmp_path}/train.json: {cause}"):
        read_fragment(tmp_path / "train.json")


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("bundles/*/configs/*.json")), ids=lambda path: "-".join(path.parts[-3::2])
)
def test_text_says_the_same_in_lines_of_one_width(path: Path) -> None:
    config = json.loads(path.read_text())
    text = as_text(config)
    assert json.loads(text) == config
    if path.name != "metadata.json":
        assert text == path.read_text() and max(map(len, text.splitlines())) <= WIDTH


def test_no_fragment_repeats_what_another_one_says() -> None:
    """A key with the same value occurs once on the way from the common fragment to that of the task."""
    for workflow in workflows():
        for name, paths in fragments_of(workflow).items():
            items = [read_fragment(path) for path in paths if path.suffix == ".json"]
            for number, later in enumerate(items):
                for earlier in items[:number]:
                    assert [key for key in later if key in earlier and later[key] == earlier[key]] == [], name


def test_what_training_and_inference_share_stands_once() -> None:
    for folder in {folder for names in FRAGMENTS.values() for folder in names}:
        train, inference = (
            read_fragment(SOURCES / folder / "configs" / f"{name}.json") for name in ("train", "inference")
        )
        equal = {key for key in train.keys() & inference.keys() if train[key] == inference[key]}
        assert equal == set(), folder


# the command


def test_command_on_a_folder_elsewhere(sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = make_bundle(tmp_path / "elsewhere")
    assert __main__.main([str(bundle), "--check"]) == 1
    assert f"{bundle}/LICENSE: missing\n" in capsys.readouterr().out
    assert __main__.main([str(bundle)]) == 0
    assert f"{bundle}/LICENSE: written\n" in capsys.readouterr().out
    (bundle / "LICENSE").write_text("mine")
    assert __main__.main([str(bundle)]) == 0
    assert capsys.readouterr().out == f"{bundle}/LICENSE: replaced\nbundles: 1, files written: 1\n"
    assert __main__.main([str(bundle), "--check"]) == 0
    assert capsys.readouterr().out == "bundles: 1, stale files: 0\n"


def test_command_finds_the_bundles_below_the_working_directory(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert __main__.main([]) == 2
    assert capsys.readouterr().err == "ERROR bundles: no bundle with a workflow here; name the folders.\n"
    make_bundle(tmp_path / "bundles" / "mine")
    assert __main__.main(["--check"]) == 1
    assert capsys.readouterr().out.startswith("bundles/mine/LICENSE: missing\n")


def test_command_names_a_folder_that_is_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"ERROR {tmp_path}/configs/metadata.json: cannot be read")


def test_help_says_where_changes_belong(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        __main__.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "changes to them are overwritten without asking" in text and "configs/metadata.json" in text


# the sources of this project


def test_every_workflow_has_the_common_files() -> None:
    assert workflows() == ["classification", "pretraining", "segmentation"]
    for workflow in workflows():
        assert {name.as_posix() for name in shared_files(workflow)} >= set(COMMON)
    assert (SOURCES / "common" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_an_installed_package_has_the_sources() -> None:
    """The patterns of setup.cfg match every source file."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    patterns = setup["options.package_data"]["mim_tools.bundle_files"].split()
    packed = {path for pattern in patterns for path in SOURCES.glob(pattern) if path.is_file()}
    folders = {SOURCES / name for names in FRAGMENTS.values() for name in names}
    there = {path for folder in folders for path in folder.rglob("*") if path.is_file()}
    assert packed == there and len(there) >= 20
