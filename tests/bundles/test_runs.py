"""Every downstream bundle on a synthetic dataset in its layout: train from MiM weights, evaluate, predict."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from mim_components.data import BadVolumesError
from mim_components.labels import LabelSet
from mim_components.networks import HybridEncoder
from mim_components.utils.tensor_files import read_checkpoint
from mim_components.utils.text import root_cause
from mim_components.weights.contract import InputContract
from mim_components.weights.pretrained import save_encoder
from mim_tools.synthetic import write_synthetic_dataset, write_synthetic_layout
from mim_tools.synthetic.tissue import LABEL_NUMBERS
from tests.faults.runs import Bundle, Run, configs, environment_of_runs, finish, server, start_each
from tests.small import SMALL

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = sorted(path.parents[1] for path in (ROOT / "bundles").glob("*_*ation/configs/metadata.json"))
# names of the layouts in the generator
SYNTHETIC = {
    "mim_btcv_segmentation": "btcv",
    "mim_mmwhs_segmentation": "mmwhs",
    "mim_msd_spleen_segmentation": "msd_spleen",
    "mim_amos22_segmentation": "amos22",
    "mim_flare22_segmentation": "flare22",
    "mim_msd_liver_segmentation": "msd_liver",
    "mim_msd_lung_segmentation": "msd_lung",
    "mim_msd_pancreas_segmentation": "msd_pancreas",
    "mim_msd_hepaticvessel_segmentation": "msd_hepaticvessel",
    "mim_msd_colon_segmentation": "msd_colon",
    "mim_covid19_segmentation": "covid19",
    "mim_brats_segmentation": "brats",
    "mim_ccccii_classification": "ccccii",
}
SEGMENTATION: dict[str, Any] = {"spacing": [9.0, 9.0, 9.0], "roi_size": [32, 32, 32], "overlap": 0.0}
CLASSIFICATION: dict[str, Any] = {"input_size": [48, 48, 16]}
SHORT: dict[str, Any] = {
    "max_steps": 2,
    "validation_steps": 2,
    "global_batch_size": 1,
    "learning_rate": 1e-3,
    "log_interval": 1,
}


def test_every_bundle_is_here() -> None:
    assert [path.name for path in BUNDLES] == sorted(SYNTHETIC) and len(BUNDLES) == 13


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tiny pre-training."""
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    torch.manual_seed(0)
    contract = InputContract("hybrid", "nano", 1, 8, (32, 32, 32), ((40, 40, 32), (16, 16, 16), (8, 8, 8)), step=6)
    return save_encoder(HybridEncoder(preset="nano"), path, contract)


@dataclass(frozen=True)
class Place:
    """Paths for trying a bundle."""

    bundle: Path
    data: Path
    output: Path
    encoder: Path

    @property
    def meta(self) -> dict[str, Any]:
        return json.loads((self.bundle / "configs" / "metadata.json").read_text())

    @property
    def is_segmentation(self) -> bool:
        return str(self.meta["workflow"]) == "segmentation"

    @property
    def labels(self) -> LabelSet:
        return LabelSet.from_metadata(self.meta["dataset"]["label_sets"])

    def workflow(self, *names: str, kind: str = "train", **options: Any) -> ConfigWorkflow:
        """A workflow created from configuration files as by `python -m monai.bundle run`, but not run."""
        task = SEGMENTATION if self.is_segmentation else CLASSIFICATION
        given = {**SMALL, **task, "dataset_dir": str(self.data), "output_dir": str(self.output), **options}
        return ConfigWorkflow(
            config_file=[str(self.bundle / "configs" / f"{name}.json") for name in names],
            logging_file=False,
            workflow_type=kind,
            **{name: value for name, value in given.items() if value is not None},
        )

    def train(self, **options: Any) -> ConfigWorkflow:
        samples = {"num_samples": 1} if self.is_segmentation else {}
        # one store for all, since MLflow takes seconds to create one
        store = f"sqlite:///{self.encoder.parent / 'mlruns.db'}"
        given = {**SHORT, **samples, "cache_dir": str(self.output / "cache"), "tracking_uri": store}
        return self.workflow("train", **{**given, "pretrained": str(self.encoder), **options})


def run(workflow: ConfigWorkflow) -> None:
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def validation_of(split: dict[str, Any]) -> list[str]:
    """Names of the validation cases in a written list: a section, or fold 0."""
    items = split.get("validation") or [item for item in split["training"] if item["fold"] == 0]
    return [item["name"] for item in items]


@pytest.fixture(scope="module")
def trained_place(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Place]:
    """A bundle after two steps of training and MONAI's own check of its configuration; each is trained once."""
    places: dict[str, Place] = {}

    def get(name: str) -> Place:
        if name not in places:
            folder = tmp_path_factory.mktemp(name)
            data = write_synthetic_layout(folder / "data", SYNTHETIC[name], 5, spatial_size=(40, 40, 36))
            place = at(Place(ROOT / "bundles" / name, data, folder, encoder), folder / "output")
            workflow = place.train()
            workflow.initialize()
            assert workflow.check_properties() == []
            workflow.run()
            workflow.finalize()
            places[name] = place
        return places[name]

    return get


@pytest.fixture(scope="module", params=BUNDLES, ids=lambda path: path.name)
def trained(request: pytest.FixtureRequest, trained_place: Callable[[str], Place]) -> Place:
    return trained_place(request.param.name)


def test_training_keeps_the_best_model(trained: Place) -> None:
    facts = json.loads((trained.output / "models" / "model.json").read_text())
    (row,) = [json.loads(line) for line in (trained.output / "validation.jsonl").read_text().splitlines()]
    assert facts["bundle"] == trained.bundle.name and facts["step"] == row["step"] == 2
    assert facts["metric_value"] == row[facts["metric"]]
    weights = read_checkpoint(trained.output / "models" / "model.pt")
    assert all(isinstance(value, torch.Tensor) for value in weights.values())
    assert sum(name.startswith("encoder.") for name in weights) > 20
    run_state = json.loads((trained.output / "run.json").read_text())
    assert run_state["status"] == "finished"
    split = json.loads((trained.output / "datalist.json").read_text())
    assert 0 < len(validation_of(split)) < split["numTraining"]


def test_evaluation(trained: Place) -> None:
    workflow = trained.workflow("train", "evaluate", cache_dir=str(trained.output / "cache"))
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    workflow.finalize()
    folder = trained.output / "evaluation"
    report, metrics = (folder / "report.md").read_text(), json.loads((folder / "metrics.json").read_text())
    assert "paper's" in report and metrics
    with (folder / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    split = json.loads((trained.output / "datalist.json").read_text())
    assert sorted(row["case"] for row in rows) == sorted(validation_of(split))
    assert list(folder.glob("*.png"))
    if trained.is_segmentation:
        # the training's own validation saw the same cases in the same space
        facts = json.loads((trained.output / "models" / "model.json").read_text())
        assert np.nanmean([float(row["mean_dice"] or "nan") for row in rows]) == pytest.approx(
            facts["metric_value"], abs=1e-4
        )


def test_inference(trained: Place, tmp_path: Path) -> None:
    if trained.is_segmentation:
        check_segmentation(trained, tmp_path)
    else:
        check_classification(trained, tmp_path)


def predict(place: Place, output: Path) -> Path:
    """Predict the first scan of the list and return the path of the scan."""
    split = json.loads((place.output / "datalist.json").read_text())
    scan = place.data / split["training"][0]["image"]
    workflow = place.workflow("inference", kind="inference", dataset_dir=str(scan), output_dir=str(output),
                              checkpoint=str(place.output / "models" / "model.pt"))  # fmt: skip
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    return scan


def check_segmentation(place: Place, tmp_path: Path) -> None:
    scan = predict(place, tmp_path)
    (path,) = (tmp_path / "inference").glob("*_seg.nii.gz")
    source, label = nib.load(scan), nib.load(path)  # type: ignore[attr-defined]
    assert label.shape == source.shape[:3] and np.array_equal(label.affine, source.affine)
    assert label.get_data_dtype() == np.uint8
    assert set(np.unique(label.dataobj)) <= set(range(len(place.labels.names)))
    names = (tmp_path / "inference" / "labels.ctbl").read_text()
    assert all(name.replace(" ", "_") in names or name in names for name in place.labels.names[1:])


def check_classification(place: Place, tmp_path: Path) -> None:
    predict(place, tmp_path)
    with (tmp_path / "inference" / "predictions.csv").open() as file:
        (row,) = csv.DictReader(file)
    classes = place.meta["dataset"]["class_names"]
    assert row["prediction"] in classes
    assert sum(float(row[f"p_{name}"]) for name in classes) == pytest.approx(1.0, abs=1e-3)


# what is the same code in all bundles is tested on one


@pytest.fixture(scope="module")
def btcv(trained_place: Callable[[str], Place]) -> Place:
    return trained_place("mim_btcv_segmentation")


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / "models" / "model.pt")


def at(place: Place, output: Path, bundle: Path | None = None) -> Place:
    output.mkdir(exist_ok=True)
    return Place(bundle or place.bundle, place.data, output, place.encoder)


def test_bad_scans_are_named_and_the_others_predicted(btcv: Place, tmp_path: Path) -> None:
    batch = tmp_path / "batch"
    scan = predict(btcv, tmp_path)
    (path,) = (tmp_path / "inference").glob("*_seg.nii.gz")
    batch.mkdir()
    for name in ("bad", "good"):
        shutil.copy(scan, batch / f"{name}.nii.gz")
    content = bytearray(gzip.decompress(scan.read_bytes()))
    content[-20] ^= 1
    (batch / "bad.nii.gz").write_bytes(gzip.compress(content)[:-6] + bytes(6))
    content[123] = 1  # lengths in metres
    (batch / "large.nii.gz").write_bytes(gzip.compress(content))
    (batch / "void.nii.gz").touch()
    workflow = btcv.workflow("inference", kind="inference", dataset_dir=str(batch), output_dir=str(batch / "out"),
                              checkpoint=str(btcv.output / "models" / "model.pt"))  # fmt: skip
    workflow.initialize()
    with pytest.raises(RuntimeError, match="evaluator") as raised:  # MONAI's error, raised from ours
        workflow.run()
    error = root_cause(raised.value)
    assert isinstance(error, BadVolumesError) and "3 of 4 volumes cannot be used" in str(error)
    causes = {Path(bad.path).name: bad.cause for bad in error.bad}
    assert "damaged compressed data" in causes["bad.nii.gz"] and "is empty (0 bytes)" in causes["void.nii.gz"]
    assert "m large; expected mm" in causes["large.nii.gz"]
    (other,) = (batch / "out" / "inference").glob("*_seg.nii.gz")
    assert other.name == "good_seg.nii.gz" and other.read_bytes() == path.read_bytes()


def test_evaluation_in_the_space_of_the_scans(btcv: Place, tmp_path: Path) -> None:
    place = at(btcv, Path(shutil.copytree(btcv.output, tmp_path / "run")))
    run(place.workflow("train", "evaluate", cache_dir=str(place.output / "cache"), space="original"))
    report = (place.output / "evaluation" / "report.md").read_text()
    assert "original" in report and "not comparable" in report


def test_a_copy_of_the_bundle_works_elsewhere(btcv: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "elsewhere" / "my_bundle"
    shutil.copytree(btcv.bundle, copy, ignore=shutil.ignore_patterns("cache", "*.db", "models"))
    monkeypatch.chdir(tmp_path)
    place = at(btcv, tmp_path / "unused", copy)
    run(place.train(output_dir=None, cache_dir=None, tracking_uri=None))
    run(place.workflow("train", "evaluate", output_dir=None))
    scans = btcv.data / "Training" / "img" if (btcv.data / "Training").is_dir() else next(btcv.data.rglob("img"))
    first = sorted(scans.glob("*.nii.gz"))[0]
    run(place.workflow("inference", kind="inference", output_dir=None, dataset_dir=str(first)))
    found = {path.name for path in copy.iterdir()}
    assert {"models", "evaluation", "inference", "cache", "mlruns.db", "metrics.jsonl", "datalist.json"} <= found
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere", "unused"}


def test_interrupted_run_continues_to_the_same_weights(btcv: Place, tmp_path: Path) -> None:
    options = {"max_steps": 4, "validation_steps": 1, "num_samples": 2, "ema_decay": 0.5}
    whole = at(btcv, tmp_path / "whole")
    run(whole.train(**options))
    parts = at(btcv, tmp_path / "parts")
    workflow = parts.train(**options, **{"train::signals": {"_target_": f"{__name__}.StopAfter", "step": 2}})
    workflow.initialize()
    with pytest.raises(KeyboardInterrupt):
        workflow.run()
    assert json.loads((parts.output / "run.json").read_text())["status"] == "interrupted"
    run(parts.train(**options))
    first, second = weights_of(whole.output), weights_of(parts.output)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    texts = [(each.output / "validation.jsonl").read_text() for each in (whole, parts)]
    facts = [json.loads((each.output / "models" / "model.json").read_text()) for each in (whole, parts)]
    assert texts[0] == texts[1]
    assert {**facts[0], "run": ""} == {**facts[1], "run": ""}


class StopAfter:
    """Replaces the signal handler: interrupts after a step, once its checkpoint is written."""

    def __init__(self, step: int) -> None:
        self.step = step

    def attach(self, engine: Any) -> None:
        from ignite.engine import Events

        engine.add_event_handler(Events.ITERATION_COMPLETED(once=self.step), self.stop)

    def stop(self, engine: Any) -> None:
        raise KeyboardInterrupt

    def close(self) -> None:
        """Nothing to restore."""


@pytest.mark.parametrize("network", ["unetr", "swin_unetr"])
def test_monai_networks_from_scratch(btcv: Place, tmp_path: Path, network: str) -> None:
    place = at(btcv, tmp_path / "run")
    sizes = {"architecture": network, "preset": "tiny", "roi_size": [32, 32, 64]}
    run(place.train(pretrained="none", max_steps=1, validation_steps=1, **sizes))
    facts = json.loads((place.output / "models" / "model.json").read_text())
    assert facts["settings"]["architecture"] == network
    run(place.workflow("train", "evaluate", cache_dir=str(place.output / "cache"), **sizes))
    with pytest.raises(RuntimeError) as caught:
        sizes |= {"architecture": None}
        run(place.workflow("train", "evaluate", cache_dir=str(place.output / "cache"), **sizes))
    assert f"architecture: '{network}' in the file, 'hybrid_swin_unetr' here" in str(caught.value.__cause__)


def test_options_of_the_optimisation_and_a_quarter_of_the_labels(btcv: Place, tmp_path: Path) -> None:
    place = at(btcv, tmp_path / "run")
    options = {"ema_decay": 0.9, "layer_decay": 0.75, "early_stop_patience": 1, "label_ratio": 0.25}
    run(place.train(max_steps=3, validation_steps=1, **options))
    facts = json.loads((place.output / "models" / "model.json").read_text())
    assert facts["training"] == {"fold": 0, "label_ratio": 0.25}
    rows = [json.loads(line) for line in (place.output / "metrics.jsonl").read_text().splitlines()]
    # step 1 of a warm-up of 1 step: the decoder's rate is the first group's, and is the whole rate
    assert rows[0]["learning_rate"] == pytest.approx(1e-3)
    assert "## Training\n\n0001\n\n## Validation\n\n0035\n" in (place.output / "data_report.md").read_text()


def test_brats_2021(encoder: Path, tmp_path: Path) -> None:
    data = write_synthetic_layout(tmp_path / "data", "brats2021", 5, spatial_size=(40, 40, 36))
    place = Place(ROOT / "bundles" / "mim_brats_segmentation", data, tmp_path / "output", encoder)
    place.output.mkdir()
    run(place.train())
    facts = json.loads((place.output / "models" / "model.json").read_text())
    assert facts["targets"] == ["TC", "WT", "ET"] and facts["settings"]["in_channels"] == 4


# in processes of their own


@pytest.mark.parametrize("name", ["mim_btcv_segmentation", "mim_ccccii_classification"])
def test_two_processes_train_like_one(
    name: str, trained_place: Callable[[str], Place], encoder: Path, tmp_path: Path
) -> None:
    one, two = (at(trained_place(name), tmp_path / number) for number in ("one", "two"))
    run(one.train(global_batch_size=2))
    task = SEGMENTATION if one.is_segmentation else CLASSIFICATION
    options = {**SHORT, **task, "preset": "nano", "num_workers": 0, "global_batch_size": 2, "dataset_dir": two.data,
               "output_dir": two.output, "cache_dir": two.output / "cache", "pretrained": encoder,
               "tracking_uri": f"sqlite:///{encoder.parent / 'mlruns.db'}"}  # fmt: skip
    if one.is_segmentation:
        options["num_samples"] = 1
    files = configs(Bundle(one.bundle.name, {}))
    for each in start_each(["run", *files, *(f"--{key}={value}" for key, value in options.items())], tmp_path):
        finish(each)
    rows = [
        [json.loads(line) for line in (place.output / "metrics.jsonl").read_text().splitlines()] for place in (one, two)
    ]
    for first, second in zip(*rows, strict=True):
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-4)
    facts = [json.loads((place.output / "models" / "model.json").read_text()) for place in (one, two)]
    assert facts[1]["metric_value"] == pytest.approx(facts[0]["metric_value"], abs=1e-3)
    first, second = weights_of(one.output), weights_of(two.output)
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=1e-3, atol=1e-3)


def in_bash(script: str, cwd: Path) -> str:
    """Run commands in bash, each of which must succeed, and return what they print."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    script = f"set -euo pipefail\n{script}"
    done = subprocess.run(["bash", "-c", script], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_page_on_adding_a_dataset(tmp_path: Path) -> None:
    """The page's commands and metadata run verbatim; only options of size are added to its trainings."""
    page = (ROOT / "docs" / "add_a_dataset.md").read_text()
    (metadata,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    listing, copies, runs = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    scans = write_synthetic_dataset(tmp_path / "made", 5, spatial_size=(40, 36, 32), spacing=(9, 9, 9))
    classes = {"right_kidney": 1, "left_kidney": 1, "kidney_lesion": 2}
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / "kidneys" / folder).mkdir(parents=True)
    for scan in scans:
        label = nib.load(scan.parents[1] / "labels" / scan.name.replace(".nii", "_label.nii"))  # type: ignore[attr-defined]
        values = np.asarray(label.dataobj)
        kidneys = sum(
            (number * (values == LABEL_NUMBERS[name]) for name, number in classes.items()), np.zeros_like(values)
        )
        shutil.copy(scan, tmp_path / "kidneys" / "imagesTr")
        nib.save(nib.Nifti1Image(kidneys.astype(np.uint8), label.affine), tmp_path / "kidneys" / "labelsTr" / scan.name)
    bundle = tmp_path / "bundles" / "mim_kidney_segmentation"
    (bundle / "configs").mkdir(parents=True)
    (bundle / "configs" / "metadata.json").write_text(metadata)
    sizes = {**SEGMENTATION, "preset": "nano", "num_workers": 0}
    shown = " ".join(f"--{key} '{value}'" for key, value in sizes.items())
    short = " ".join(f"--{key} '{value}'" for key, value in {**SHORT, "num_samples": 1}.items())
    runs = re.sub(r"(--pretrained none)$", rf"\1 {short}", runs, flags=re.MULTILINE)
    runs = re.sub(r"^(python -m monai.bundle run .*)$", rf"\1 {shown}", runs, flags=re.MULTILINE)
    done = in_bash(f"{listing}\n{copies}", tmp_path)
    assert "5 scans listed" in done
    # commands as parsed by a shell, run in forked processes
    for number, words in enumerate(
        in_bash(f'python() {{ printf "%s\\x1f" "$@"; echo; }}\n{runs}', tmp_path).splitlines()
    ):
        *start, _ = words.split("\x1f")
        assert start[:2] == ["-m", "monai.bundle"]
        log = tmp_path / f"{number}.log"
        finish(Run(tmp_path, log, None, server().fork(start[2:], environment_of_runs(), log, cwd=tmp_path)))
    assert len(list((bundle / "inference").glob("*_seg.nii.gz"))) == 5
    assert "cyst" in (bundle / "evaluation" / "report.md").read_text()
