"""Our code neither runs code from a file nor opens files outside the data folder."""

import ast
import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, LoadImaged
from safetensors.torch import save_file

from mim_components.data import (
    BadVolumesError,
    CTScans,
    DataError,
    SegmentationChecker,
    TransformCache,
    find_cases,
    find_scans,
    find_sources,
    find_validation,
    prepare_volumes,
    scan_items,
)
from mim_components.data.cases import Case
from mim_components.data.prepare.report import datalist_of
from mim_components.data.prepare.splits import Division
from mim_components.labels import LabelSet
from mim_components.networks import HybridEncoder
from mim_components.run.checkpoints import CheckpointStore
from mim_components.utils.tensor_files import DamagedCheckpointError, read_checkpoint
from mim_components.weights import ModelSettings, load_trained
from mim_components.weights.contract import InputContract, find_contract, read_contract
from mim_components.weights.pretrained import load_pretrained, save_encoder
from mim_components.weights.transfer import start_from
from mim_tools.prepare import main as prepare_command

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for package in ("mim_components", "mim_tools") for path in sorted((ROOT / package).rglob("*.py"))]
CONTRACT = InputContract("hybrid", "nano", 1, 8, (32, 32, 32), ((32, 32, 32),), step=1)


class RunsCode:
    """An attacker's pickle: loading it creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


def calls() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every call in the package: place, name, and the keywords that are literals."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                literal = (each for each in node.keywords if isinstance(each.value, ast.Constant))
                place = f"{path.relative_to(ROOT)}:{node.lineno}"
                yield place, ast.unparse(node.func), {str(each.arg): each.value.value for each in literal}


def test_nothing_in_the_package_unpickles() -> None:
    found: dict[str, int] = {}
    for place, name, keywords in calls():
        last = name.rpartition(".")[-1]
        found[name] = found.get(name, 0) + 1
        assert name not in ("eval", "exec", "compile", "__import__"), place
        assert not name.startswith(("pickle.", "marshal.", "shelve.", "joblib.")), place
        starts = ("mim_components/handlers/tracked_facts.py", "mim_tools/release.py")  # git, and pip for the wheel
        assert not name.startswith("subprocess.") or place.startswith(starts), place
        assert last not in ("system", "popen", "hub", "import_module", "unpack_archive", "extractall"), place
        if name == "torch.load":
            assert keywords.get("weights_only") is True, place
        if name in ("np.load", "numpy.load"):
            assert keywords.get("allow_pickle") is False, place
        if name == "yaml.load":
            assert place.startswith("mim_tools/verify/configs.py"), place  # with a subclass of SafeLoader
        if name == "torch.jit.load":
            assert place.startswith("mim_tools/export.py"), place  # its own object, from memory
        assert name not in ("torch.hub.load", "yaml.unsafe_load", "yaml.full_load"), place
        assert keywords.get("allow_pickle", False) is False and keywords.get("weights_only", True) is True, place
        assert keywords.get("shell", False) is False, place
    assert found["torch.load"] == 1 and found["np.load"] >= 1


def test_nothing_in_the_package_imports_what_runs_code() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            roots = {name.partition(".")[0] for name in names}
            assert not roots & {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "ctypes"}, path


def make(kind: str, path: Path) -> None:
    if kind == "payload":
        torch.save({"network": {"weight": RunsCode(path.parent / "ran")}}, path)
    elif kind == "payload of the old form":
        torch.save({"weight": RunsCode(path.parent / "ran")}, path, _use_new_zipfile_serialization=False)
    elif kind == "bare pickle":
        path.write_bytes(pickle.dumps(RunsCode(path.parent / "ran")))
    elif kind == "HTML":
        path.write_text("<!DOCTYPE html><html>404</html>")
    elif kind == "LFS pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 4\n")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut short":
        network = HybridEncoder(preset="nano")
        if path.suffix == ".safetensors":
            save_encoder(network, path, CONTRACT)
        else:
            torch.save(network.state_dict(), path)
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "image":
        nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), path.with_suffix(".nii"))
        path.with_suffix(".nii").replace(path)


KINDS = {
    "payload": "",
    "payload of the old form": "",
    "bare pickle": "",
    "HTML": "an HTML page",
    "LFS pointer": "git lfs pull",
    "empty": "the file is empty",
    "cut short": "",
    "image": "",
}


def by_checkpoint(path: Path) -> None:
    read_checkpoint(path)


def by_pretrained(path: Path) -> None:
    load_pretrained(HybridEncoder(preset="nano"), path)


def by_start(path: Path) -> None:
    start_from(HybridEncoder(preset="nano"), path, "RAS", {"_target_": "ScaleIntensityRanged"}, ["intensity"])


def by_model(path: Path) -> None:
    load_trained(torch.nn.Linear(1, 1), path, [], ModelSettings("b", {}, []))


def by_trained(path: Path) -> None:
    load_trained(torch.nn.Linear(1, 1), path, [], CONTRACT)  # type: ignore[arg-type]


def by_store(path: Path) -> None:
    path.rename(path.with_name("step_00000004.pt"))
    CheckpointStore(path.parent).newest()


LOADERS = [by_checkpoint, by_pretrained, by_start, by_model, by_trained, by_store]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("load", LOADERS)
def test_wrong_files_run_nothing_and_are_named(load: Callable[[Path], None], kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    make(kind, path)
    with pytest.raises(ValueError, match="not a readable checkpoint|all 1 checkpoints") as raised:
        load(path)
    assert isinstance(raised.value, DamagedCheckpointError)
    assert ("model.pt" if load is not by_store else "step_00000004.pt") in str(raised.value)
    assert KINDS[kind] in str(raised.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("load", [by_pretrained, by_start, read_contract, find_contract])
def test_wrong_safetensors_run_nothing_and_are_named(load: Callable[[Path], object], kind: str, tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    make(kind, path)
    with pytest.raises(ValueError, match=r"encoder\.safetensors: not a readable safetensors file") as raised:
        load(path)
    assert KINDS[kind] in str(raised.value)
    assert not (tmp_path / "ran").exists()


def test_other_safetensors_have_no_contract(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x\.safetensors: no input contract in its metadata, missing: encoder"):
        read_contract(tmp_path / "x.safetensors")


def test_cache_file_with_a_payload_is_made_anew(tmp_path: Path) -> None:
    items = [{"image": torch.ones(2), "digest": "d", "name": "a"}]
    first = TransformCache(items, Compose([]), tmp_path / "cache")
    assert torch.equal(first[0]["image"], torch.ones(2))
    (path,) = (tmp_path / "cache").glob("*.pt")
    for kind in ("payload", "bare pickle"):
        make(kind, path)
        again = TransformCache(items, Compose([]), tmp_path / "cache")
        assert torch.equal(again[0]["image"], torch.ones(2))
        assert not (tmp_path / "cache" / "ran").exists()
        assert torch.equal(read_checkpoint(path)["image"], torch.ones(2))


def object_array(folder: Path) -> Path:
    path = folder / "x.npy"
    np.save(path, np.array([RunsCode(folder / "ran")], dtype=object), allow_pickle=True)
    return path


def test_object_array_in_a_list_runs_nothing(tmp_path: Path) -> None:  # F9
    path = object_array(tmp_path)
    items = [{"image": "x.npy", "label": "x.npy"}]
    (tmp_path / "list.json").write_text(json.dumps({"training": items}))
    with pytest.raises(BadVolumesError, match=r"x\.npy"):
        prepare_volumes(find_sources(datalist=tmp_path / "list.json"), tmp_path / "cache", progress=False)
    labels = LabelSet.from_metadata({"default": {"names": ["background", "spleen"]}})
    with pytest.raises(ValueError, match=r"x\.npy|expected"):
        SegmentationChecker(labels, 1, "CT")(find_cases(None, tmp_path / "list.json").cases[0])
    with pytest.raises(ValueError, match=r"x\.npy"):
        scan_items(path, CTScans(), tmp_path / "out")
    with pytest.raises(ValueError, match="allow_pickle"):
        LoadImaged("image")({"image": str(path)})  # MONAI's own, which the configurations use after the checks
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A list with paths that lead out of the folder in each way."""
    inner = tmp_path / "inner"
    inner.mkdir()
    volume = np.random.default_rng(0).integers(-1000, 1000, (8, 8, 8)).astype(np.int16)
    for name in ("inner/a.nii", "b.nii", "c.nii", "d.nii"):
        nib.save(nib.Nifti1Image(volume + len(name), np.eye(4)), tmp_path / name)
    (inner / "link.nii").symlink_to(tmp_path / "c.nii")
    paths = ["a.nii", "../b.nii", "link.nii", str(tmp_path / "d.nii")]
    items = [{"image": path, "label": 0, "name": str(number)} for number, path in enumerate(paths)]
    (inner / "list.json").write_text(json.dumps({"training": items}))
    return inner / "list.json"


WAYS: dict[str, Callable[..., Any]] = {
    "pre-training": lambda path, **options: find_sources(datalist=path, **options),
    "evaluation": lambda path, **options: find_validation(
        validation_datalist=path, validation_key="training", **options
    ),
    "segmentation": lambda path, **options: find_cases(None, path, **options),
    "classification": lambda path, **options: find_scans(None, path, **options),
}


@pytest.mark.parametrize("way", WAYS)
def test_paths_that_lead_out_are_refused_unless_allowed(way: str, outside: Path) -> None:  # D5
    with pytest.raises(DataError, match="--found::allow_outside True") as raised:
        WAYS[way](outside)
    assert str(raised.value).count("leads out of") == 3
    with pytest.raises(DataError, match="leads out of"):
        WAYS[way](outside, allow_outside="false")  # as a command line hands it on
    found = WAYS[way](outside, allow_outside=True)
    assert len(getattr(found, "cases", None) or found.sources) == 4


def test_the_command_takes_the_option(outside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--datalist", str(outside), "--cache_dir", str(tmp_path / "cache")]
    assert prepare_command(arguments) == 2
    assert "--allow_outside" in capsys.readouterr().err
    assert prepare_command([*arguments, "--allow_outside"]) == 0


def test_a_list_that_was_allowed_can_be_written_and_read(outside: Path, tmp_path: Path) -> None:
    found = find_cases(None, outside, allow_outside=True)
    division = Division(found.cases[:3], found.cases[3:], "as listed")
    written = outside.with_name("written.json")
    written.write_text(json.dumps(datalist_of(found, division, {})))
    again = find_cases(None, written, allow_outside=True)
    assert sorted(case.image[0] for case in again.cases) == sorted(case.image[0] for case in found.cases)


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "..", ".", "a/b", "a\0b", 7, None])
@pytest.mark.parametrize("key", ["name", "group"])
def test_names_in_a_list_cannot_lead_elsewhere(key: str, name: Any, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps({"training": [{"image": "a", "label": 0, key: name}]}))
    with pytest.raises(DataError, match=f"item 0: key '{key}' is .*, expected a text without '/'"):
        find_cases(None, tmp_path / "list.json")


@pytest.mark.parametrize("name", ["a\\..\\b", "..a", "ä\n b", "x" * 300])
def test_odd_names_are_kept(name: str, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps({"training": [{"image": "a", "label": 0, "name": name}]}))
    (case,) = find_cases(None, tmp_path / "list.json").cases
    assert isinstance(case, Case) and case.name == name
