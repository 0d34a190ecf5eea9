"""The bundle `mim_ccccii_classification` on scans of noise: its three workflows agree."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from PIL import Image

from tests.small import SMALL

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "bundles" / "mim_ccccii_classification" / "configs"
OPTIONS = SMALL | {"input_size": [32, 32, 16], "crop_shift": 4}
TRAINING: dict[str, Any] = {
    "pretrained": "none",
    "max_epochs": 3,
    "val_interval": 1,
    "global_batch_size": 2,
    "learning_rate": 1e-3,
    "log_interval": 1,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans of three patients per class, brighter with each class; the first patients also have a short one."""
    folder, rng = tmp_path_factory.mktemp("ccccii"), np.random.default_rng(0)
    for label, name in enumerate(("Normal", "CP", "NCP")):
        for patient in range(3):
            for scan, count in enumerate((18, 9) if patient == 0 else (18,)):
                path = folder / "data" / name / f"{label}{patient}" / str(scan)
                path.mkdir(parents=True)
                for number in range(count):
                    pixels = rng.integers(60 * label, 60 * label + 100, (40, 36)).astype(np.uint8)
                    Image.fromarray(pixels).save(path / f"{number}.png")
    return folder


def options(place: Path, **more: Any) -> dict[str, Any]:
    own = {"dataset_dir": str(place / "data"), "output_dir": str(place / "run"), "logging_file": False}
    return {**OPTIONS, **own, "meta_file": str(CONFIGS / "metadata.json"), **more}


def run(place: Path, *names: str, **more: Any) -> None:
    training = {} if names == ("inference",) else {**TRAINING, "cache_dir": str(place / "cache")}
    training |= {} if names == ("inference",) else {"tracking_uri": f"sqlite:///{place / 'mlruns.db'}"}
    files = [str(CONFIGS / f"{name}.json") for name in names]
    monai.bundle.run(config_file=files, **options(place, **{**training, **more}))


@pytest.fixture(scope="module")
def trained(place: Path) -> Path:
    run(place, "train")
    return place


@pytest.mark.slow
def test_training_splits_by_patient_and_keeps_the_best_model(trained: Path):
    out = trained / "run"
    listed = json.loads((out / "datalist.json").read_text())
    parts = {part: {item["group"] for item in listed[part]} for part in ("training", "validation")}
    assert not parts["training"] & parts["validation"]
    assert len(parts["validation"]) == 3  # round(0.4 * 3) = 1 patient of every class
    assert listed["labels"] == {"0": "Normal", "1": "CP", "2": "NCP"}
    assert "3 scans with fewer than 16 slices left out" in (out / "data_report.md").read_text()
    rows = [json.loads(line) for line in (out / "validation.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and {"val_accuracy", "val_auc_macro", "val_auc_micro"} <= rows[0].keys()
    facts = json.loads((out / "models" / "model.json").read_text())
    assert facts["metric_value"] == max(row["val_accuracy"] for row in rows)
    assert facts["targets"] == ["Normal", "CP", "NCP"]


@pytest.mark.slow
def test_evaluation_gives_the_best_validation_again(trained: Path):
    run(trained, "train", "evaluate")
    found = json.loads((trained / "run" / "evaluation" / "metrics.json").read_text())
    facts = json.loads((trained / "run" / "models" / "model.json").read_text())
    assert found["accuracy"] == pytest.approx(facts["metric_value"])
    assert sum(map(sum, found["confusion"])) == found["cases"]
    assert (trained / "run" / "evaluation" / "confusion.png").stat().st_size > 5000
    assert "paper: MiM 10k" in (trained / "run" / "evaluation" / "report.md").read_text()


@pytest.mark.slow
def test_evaluation_of_training_scans_says_so(trained: Path, tmp_path: Path):
    listed = json.loads((trained / "run" / "datalist.json").read_text())
    facts = json.loads((trained / "run" / "models" / "model.json").read_text())
    assert facts["training"] == {"fold": 0, "label_ratio": 1.0}
    swapped = {"training": listed["validation"], "validation": listed["training"]}
    (tmp_path / "list.json").write_text(json.dumps(swapped))
    run(trained, "train", "evaluate", datalist=str(tmp_path / "list.json"))
    found = json.loads((trained / "run" / "evaluation" / "metrics.json").read_text())
    assert len(found["in_training"]) == found["cases"] == len(listed["training"])
    text = (trained / "run" / "evaluation" / "report.md").read_text()
    assert "scans were in the training" in text and "paper: MiM 10k" not in text


@pytest.mark.slow
def test_inference_says_what_the_evaluation_says(trained: Path):
    """Training, evaluation and inference read a scan in the same way."""
    run(trained, "train", "evaluate")
    run(trained, "inference", dataset_dir=str(trained / "data"))
    with (trained / "run" / "inference" / "predictions.csv").open() as file:
        predicted = {row["source"]: row for row in csv.DictReader(file)}
    with (trained / "run" / "evaluation" / "cases.csv").open() as file:
        cases = list(csv.DictReader(file))
    names = ("prediction", "p_Normal", "p_CP", "p_NCP")
    assert cases
    for case in cases:
        assert [predicted[case["source"]][name] for name in names] == [case[name] for name in names]


@pytest.mark.slow
def test_datalist_of_a_run_gives_the_same_split(trained: Path, tmp_path: Path):
    again = {
        "output_dir": str(tmp_path / "again"),
        "max_epochs": 0.1,
        "datalist": str(trained / "run" / "datalist.json"),
    }
    run(trained, "train", **again, dataset_dir=str(trained / "data"))
    first, second = (
        json.loads((folder / "datalist.json").read_text()) for folder in (trained / "run", tmp_path / "again")
    )
    for part in ("training", "validation"):
        assert [item["name"] for item in first[part]] == [item["name"] for item in second[part]]


def workflow(place: Path, kind: str, *names: str, **more: Any) -> ConfigWorkflow:
    made = ConfigWorkflow(
        config_file=[str(CONFIGS / f"{name}.json") for name in names], workflow_type=kind, **options(place, **more)
    )
    made.initialize()
    return made


def test_properties_that_monai_expects(place: Path, tmp_path: Path):
    store = f"sqlite:///{tmp_path / 'mlruns.db'}"
    more = {**TRAINING, "cache_dir": str(place / "cache"), "tracking_uri": store, "output_dir": str(tmp_path / "run")}
    made = workflow(place, "train", "train", **more)
    assert made.check_properties() == []
    items = made.train_dataset
    image = items[0]["image"]
    assert image.shape == (1, 32, 32, 16) and image.dtype == torch.float32
    assert 0 <= float(image.min()) and float(image.max()) <= 1
    assert torch.equal(items[(1, 0)]["image"], items[(1, 0)]["image"])  # the same pass, the same augmentation
    assert not torch.equal(items[(1, 0)]["image"], items[(2, 0)]["image"])
    scan = made.parser.get_parsed_content("preprocessing")({"image": items.data.data[0]["image"]})["image"]
    assert scan.shape == (1, 40, 40, 16) and scan.dtype == torch.uint8  # what is cached
    centre = made.val_dataset[0]["image"]
    item = made.parser.get_parsed_content("prepared").validation[0]
    whole = made.parser.get_parsed_content("preprocessing")({"image": item["image"]})["image"]
    np.testing.assert_allclose(np.asarray(centre), np.asarray(whole)[:, 4:36, 4:36] / 255, atol=1e-6)
    made.finalize()


def test_networks_of_the_inference():
    for network, size in (("hybrid", [32, 32, 16]), ("swin_vit", [32, 32, 32])):
        parser = monai.bundle.ConfigParser()
        parser.read_config(str(CONFIGS / "inference.json"))
        parser.read_meta(str(CONFIGS / "metadata.json"))
        parser.update({"architecture": network, "preset": "nano", "input_size": size})
        made = parser.get_parsed_content("network_def")
        assert made(torch.zeros(1, 1, *size)).shape == (1, 3)
