"""A release contains trained weights and its code, is verified, and runs with only MONAI installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mim_components.networks import segmentation_network
from mim_components.utils.files import sha256
from mim_components.weights import ModelSettings
from mim_tools import release
from mim_tools.release import main, make_release, push
from mim_tools.release_files import ReleaseError, add_encoders, copy_bundle, left_out
from mim_tools.verify.bundle import judge_bundle

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundles" / "mim_msd_spleen_segmentation"
SETTINGS = {"architecture": "hybrid_swin_unetr", "preset": "nano", "positions": "rescaled", "in_channels": 1,
            "orientation": "RAS", "spacing": [2.0, 2.0, 2.0], "roi_size": [32, 32, 32]}  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporters


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that a run with the preset nano would write."""
    torch.manual_seed(0)
    network = segmentation_network("hybrid_swin_unetr", 1, 2, (32, 32, 32), "nano")
    path = tmp_path_factory.mktemp("run") / "models" / "model.pt"
    path.parent.mkdir(parents=True)
    torch.save(network.state_dict(), path)
    facts = ModelSettings(BUNDLE.name, SETTINGS, ["spleen"]).as_dict()
    known = {"step": 40, "metric": "val_mean_dice", "metric_value": 0.75}
    path.with_suffix(".json").write_text(json.dumps({**facts, **known}))
    return path


@pytest.fixture(scope="module")
def made(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release, unpacked elsewhere, without ONNX, which is slow and tested in test_export.py."""
    tmp_path = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(release, "FORMATS", (".ts",))
        archive = make_release(
            BUNDLE, weights, tmp_path / "release", "https://host/spleen", version="1.0.0", changes="first weights"
        )
    assert archive.name == "mim_msd_spleen_segmentation_v1.0.0.zip"
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path / "unpacked")
    return tmp_path / "unpacked" / BUNDLE.name


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_what_a_release_holds(made: Path, weights: Path) -> None:
    state = torch.load(made / "models" / "model.pt", weights_only=True)
    same = load_file(made / "models" / "model.safetensors")
    assert state.keys() == same.keys() and all(torch.equal(state[name], same[name]) for name in state)
    metadata = read(made / "configs" / "metadata.json")
    assert metadata["version"] == "1.0.0" and next(iter(metadata["changelog"].items())) == ("1.0.0", "first weights")
    assert metadata["eval_metrics"] == {"val_mean_dice": 0.75}
    assert metadata["description"].endswith("models/model.pt holds trained weights.")
    for side in ("inputs", "outputs"):
        assert next(iter(metadata["network_data_format"][side].values()))["spatial_shape"] == [32, 32, 32]
    for name in ("train", "inference"):  # the settings of the training are the defaults
        config = read(made / "configs" / f"{name}.json")
        assert (config["preset"], config["roi_size"], config["spacing"]) == ("nano", [32, 32, 32], [2.0, 2.0, 2.0])
    large = (made / "large_files.yml").read_text()
    assert f'hash_val: "{sha256(weights)}"' in large and 'url: "https://host/spleen/models/model.pt"' in large
    assert (made / "requirements.txt").read_text().startswith("monai==1.6.1\ntorch==2.13.0\n")
    assert (made / "LICENSE").is_file() and (made / "mim_components" / "networks" / "hybrid.py").is_file()
    assert not list(made.rglob("__pycache__")) and not (made / "mim_tools").exists()


def test_pages_tell_of_the_weights(made: Path) -> None:
    card = (made / "README.md").read_text()
    head, text = card.split("---\n\n", 1)
    assert "library_name: monai" in head and "pipeline_tag: image-segmentation" in head and "- medical" in head
    assert "val_mean_dice 0.7500 in its own validation" in text and "includes the package `mim_components`" in text
    for page in (card, (made / "docs" / "README.md").read_text(), (made / "docs" / "data_license.txt").read_text()):
        assert "weights are published" not in page and "no weights that were trained" not in page


def test_the_code_in_it_is_known_by_verify(made: Path, tmp_path: Path) -> None:
    made = Path(shutil.copytree(made, tmp_path / made.name))
    assert judge_bundle(made) == []
    (made / "mim_components" / "tokens.py").write_text("import os\n")
    (made / "mim_components" / "more.py").write_text("import os\n")
    assert {each.file for each in judge_bundle(made)} == {"mim_components/tokens.py", "mim_components/more.py"}


def test_what_is_refused(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = [str(BUNDLE), "--weights", str(weights), "--output", str(out), "--no_wheel", "--url", "https://host"]
    assert main([*command, "--version", "2.0.0"]) == 1
    assert "version 2.0.0 has no line in the changelog; give one with --changes" in capsys.readouterr().err
    assert not (out / BUNDLE.name).exists()  # nothing of it remains
    assert main([*command, "--changes", "weights"]) == 1  # they would not be in it
    assert "has a line in the changelog already; give a new --version" in capsys.readouterr().err
    assert main([*command, "--presett", "nano"]) == 1
    assert "has no option presett" in capsys.readouterr().err
    assert main([*command, "--positions", "index"]) == 1  # not that of the weights
    assert "positions: 'rescaled' in the file, 'index' here" in capsys.readouterr().err
    assert main([*command, "--preset", "tiny"]) == 1  # a network that cannot be built
    assert "ERROR hybrid_swin_unetr needs" in capsys.readouterr().err
    assert main([*command[:-1], "http://host"]) == 1
    assert "must begin with https://, got 'http://host'" in capsys.readouterr().err
    step = tmp_path / "step.pt"
    torch.save({"network": torch.load(weights, weights_only=True)}, step)
    with pytest.raises(ReleaseError, match="is a checkpoint of a run, expected its models/model.pt"):
        make_release(BUNDLE, step, out, "https://host")
    with pytest.raises(ReleaseError, match="there is no such file"):
        make_release(BUNDLE, tmp_path / "absent.pt", out, "https://host")
    (out / BUNDLE.name).mkdir(parents=True)
    with pytest.raises(ReleaseError, match="exists already"):
        make_release(BUNDLE, weights, out, "https://host")


# --- what is packed ---------------------------------------------------------------------------------------------------


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("/data/patients/Jane Doe/ct.nii.gz")


# what training, evaluation, probe and inference write below output_dir, by default the bundle's own folder
OF_RUNS = """.lock run.json data_contents.json data_notes.txt data_report.md datalist.json excluded_volumes.json
    error.log metrics.jsonl validation.jsonl quarantine.jsonl passed_over.jsonl tracking_spool.jsonl
    nonfinite_step_00000007.json mlruns.db mlruns.db-wal probe/cases.csv probe/run_002/report.md evaluation/cases.csv
    inference/results.csv
    cache/a.json checkpoints/step_00000001.pt pictures/a.png run_002/run.json demo/run.json""".split()


def test_a_release_of_a_bundle_trained_in_place_holds_nothing_else_of_the_run(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(release, "FORMATS", ())
    bundle = Path(shutil.copytree(BUNDLE, tmp_path / BUNDLE.name))
    shutil.copytree(weights.parent, bundle / "models", dirs_exist_ok=True)
    own = "notes.txt", "scans/a.nii.gz", "models/model.ts", "docs/.README.md.swp"
    put(bundle, *OF_RUNS, *own)
    with caplog.at_level("WARNING", "mim_tools"):
        archive = make_release(bundle, bundle / "models" / "model.pt", tmp_path / "out", "https://host",
                               version="1.0.0", changes="first")  # fmt: skip
    with zipfile.ZipFile(archive) as packed:
        names = {name.partition("/")[2] for name in packed.namelist()}
        assert not any(b"Jane Doe" in packed.read(name) for name in packed.namelist())
    assert {name for name in names if not name.startswith(("mim_components/", "configs/", "docs/"))} == {
        "LICENSE", "README.md", "requirements.txt", "large_files.yml", "models/README.md", "models/model.pt",
        "models/model.pt.sha256", "models/model.safetensors", "models/model.safetensors.sha256", "models/model.json",
    }  # fmt: skip
    assert caplog.messages == [
        "not in the release, and no output of a run: docs/.README.md.swp, models/model.ts, notes.txt, scans/"
    ]


@pytest.mark.parametrize("bundle", sorted((ROOT / "bundles").iterdir()), ids=lambda path: path.name)
def test_all_files_of_a_bundle_in_git_are_packed(bundle: Path, tmp_path: Path) -> None:
    command = ["git", "ls-files", "."]
    listed = subprocess.run(command, cwd=bundle, capture_output=True, text=True).stdout.split()
    if not listed:
        pytest.skip("this is no clone of the repository")
    (tmp_path / "models").mkdir()
    copy_bundle(bundle, tmp_path)
    add_encoders(bundle / "models", tmp_path / "models")
    assert {*listed} - files_of(tmp_path).keys() == {"models/README.md"}  # which a release writes anew


def test_all_that_git_ignores_in_a_bundle_is_known(tmp_path: Path) -> None:
    lines = (ROOT / ".gitignore").read_text().splitlines()
    patterns = [line.removeprefix("/bundles/*/") for line in lines if line.startswith("/bundles/*/")]
    assert "probe/" in patterns and "*.jsonl" in patterns and "data_contents.json" in patterns
    put(tmp_path, *(f"{pattern.rstrip('/').replace('*', 'x')}" for pattern in patterns if pattern != "models/*"))
    (tmp_path / "release").mkdir()
    assert left_out(tmp_path, tmp_path / "release") == ["release/"]


# --- to the Hugging Face Hub ------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Replaces huggingface_hub: records calls, keeps uploaded files, and contacts no server."""
    asked: list[tuple[Any, ...]] = []

    class HfApi:
        def __init__(self, token: str | None) -> None:
            asked.append(("token", token))

        def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None:
            asked.append(("repository", repo_id, private))

        def upload_folder(self, repo_id: str, folder_path: str) -> str:
            shutil.copytree(folder_path, tmp_path / "hub" / repo_id)
            asked.append(("folder", repo_id))
            return f"https://huggingface.co/{repo_id}"

        def create_tag(self, repo_id: str, tag: str, exist_ok: bool) -> None:
            asked.append(("tag", repo_id, tag))

    module: Any = ModuleType("huggingface_hub")
    module.HfApi = HfApi
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setattr("monai.bundle.scripts.huggingface_hub", module)
    return asked


def files_of(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256(path) for path in folder.rglob("*") if path.is_file()}


def test_what_goes_to_the_hub(made: Path, hub: list[tuple[Any, ...]], tmp_path: Path) -> None:
    """The whole release with its own card, and a tag of its version; MONAI would use docs/README.md as the card."""
    before = files_of(made)
    assert push(made, "me/spleen", "secret") == "https://huggingface.co/me/spleen"
    assert hub == [("token", "secret"), ("repository", "me/spleen", True), ("folder", "me/spleen"),
                   ("tag", "me/spleen", "1.0.0")]  # fmt: skip
    uploaded = files_of(tmp_path / "hub" / "me/spleen")
    assert before.keys() - uploaded.keys() == {"docs/README.md"} and uploaded.items() <= before.items()
    assert files_of(made) == before


def test_command_of_a_push(
    hub: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[Any] = []
    archive = tmp_path / "a.zip"
    archive.write_bytes(b"0")

    def noted(answer: Any) -> Callable[..., Any]:
        def call(*values: Any) -> Any:
            given.append(values)
            return answer

        return call

    monkeypatch.setattr(release, "make_release", noted(archive))
    monkeypatch.setattr(release, "push", noted("the address"))
    command = ["bundles/x", "--weights", "model.pt", "--output", str(tmp_path), "--no_wheel", "--push", "me/spleen"]
    assert main([*command, "--token", "secret"]) == 0
    assert (
        given[0][3] == "https://huggingface.co/me/spleen/resolve/{version}"
    )  # main would change with the next release
    assert given[1] == (tmp_path / "x", "me/spleen", "secret") and "the address" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SystemExit):
        main(command)
    assert len(given) == 2 and '--push needs huggingface_hub: pip install -e ".[hub]"' in capsys.readouterr().err


# hides this repository, however it is installed, and then acts as `python -m monai.bundle`
RUNNER = f"""
import runpy, sys
sys.meta_path[:] = [each for each in sys.meta_path if "editable" not in repr(each)]
sys.path[:] = [each for each in sys.path if each != {str(ROOT)!r}]
import mim_components
assert mim_components.__file__.startswith(sys.argv.pop(1)), mim_components.__file__
runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
"""


def bundle_command(folder: Path, *words: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUNNER, str(folder), *words],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.long
def test_it_runs_where_only_monai_is_installed(made: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", str(tmp_path / "out")
    data.mkdir()
    rng = np.random.default_rng(0)
    for name in "abcde":
        label = np.zeros((40, 40, 36), np.uint8)
        label[10:25, 12:30, 10:20] = 1
        voxels = (rng.normal(0, 30, label.shape) + 100 * label).astype(np.int16)
        for kind, values in (("image", voxels), ("label", label)):
            nib.save(nib.Nifti1Image(values, np.diag([2.0, 2.0, 2.0, 1.0])), data / f"{name}_{kind}.nii.gz")
    items = [{"image": f"{name}_image.nii.gz", "label": f"{name}_label.nii.gz"} for name in "abcde"]
    (data / "list.json").write_text(json.dumps({"training": items}))
    given = ["--output_dir", out, "--num_workers", "0", "--device", "cpu"]
    listed = [*given, "--datalist", str(data / "list.json"), "--cache_dir", str(tmp_path / "cache")]
    steps = ["--max_steps", "2", "--validation_steps", "2", "--num_samples", "1", "--pretrained", "none"]
    bundle_command(made, "run", "--config_file", "configs/train.json", *listed, *steps)
    bundle_command(made, "run", "--config_file", "['configs/train.json','configs/evaluate.json']", *listed)
    scan = ["--dataset_dir", str(data / "a_image.nii.gz"), "--output_dir", str(tmp_path / "seg"), "--device", "cpu"]
    bundle_command(made, "run", "--config_file", "configs/inference.json", *scan)  # the weights of the release
    assert list((tmp_path / "seg" / "inference").glob("*_seg.nii.gz"))
    configs = ["--meta_file", "configs/metadata.json", "--config_file", "configs/inference.json"]
    names = ["--net_id", "network_def", "--ckpt_file", "models/model.pt", "--filepath", str(tmp_path / "model.ts")]
    bundle_command(made, "ckpt_export", *names, *configs)
    network = torch.jit.load(tmp_path / "model.ts")
    assert network(torch.zeros(1, 1, 32, 32, 32)).shape == (1, 2, 32, 32, 32)
