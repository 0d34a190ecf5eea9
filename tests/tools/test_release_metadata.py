"""The metadata and pages of a release describe its weights: label set, classes, channels, modality, options."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mim_components.networks import MiMReconstructor, classification_network, segmentation_network
from mim_components.weights import InputContract, ModelSettings, save_encoder
from mim_tools import release
from mim_tools.release import make_release
from mim_tools.release_files import ReleaseError
from mim_tools.release_metadata import read_metadata, set_metadata

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
SIZE = [32, 32, 32]


@pytest.fixture(autouse=True)
def no_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are slow, and have tests of their own."""
    monkeypatch.setattr(release, "FORMATS", ())


def fine_tuned(bundle: str, targets: list[str], folder: Path, out_channels: int, in_channels: int = 1) -> Path:
    """The files of a fine-tuning with the preset nano, with random weights."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"preset": "nano", "in_channels": in_channels, "positions": "rescaled"}
    network: torch.nn.Module
    if "classification" in bundle:
        settings |= {"architecture": "hybrid", "input_size": [16, 16, 8]}
        network = classification_network("hybrid", in_channels, out_channels, [16, 16, 8], "nano")
    else:
        settings |= {"architecture": "hybrid_swin_unetr", "roi_size": SIZE}
        network = segmentation_network("hybrid_swin_unetr", in_channels, out_channels, SIZE, "nano")
    folder.mkdir(parents=True)
    torch.save(network.state_dict(), folder / "model.pt")
    facts = ModelSettings(bundle, settings, targets).as_dict()
    (folder / "model.json").write_text(json.dumps({**facts, "step": 1, "metric": "dice", "metric_value": 0.5}))
    return folder / "model.pt"


def released(bundle: str, weights: Path, out: Path, **options: Any) -> Path:
    make_release(BUNDLES / bundle, weights, out, "https://host", options, "1.0.0", "first")
    return out / bundle


def formats(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    both = read_metadata(folder)["network_data_format"]
    return both["inputs"]["image"], both["outputs"]["pred"]


# --- label sets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label_set", ["organ_only", "whole_organ"])
def test_weights_of_another_label_set(label_set: str, tmp_path: Path) -> None:
    bundle = "mim_msd_liver_segmentation"
    weights = fine_tuned(bundle, ["liver"], tmp_path / "run", out_channels=2)
    folder = released(bundle, weights, tmp_path / "out", label_set=label_set)
    _, pred = formats(folder)
    assert (pred["num_channels"], pred["channel_def"]) == (2, {"0": "background", "1": "liver"})
    metadata = read_metadata(folder)
    assert metadata["pred_classes"] == "2 channels, softmax: 0: background, 1: liver"
    assert metadata["label_classes"] == "single channel data, 0: background, 1: liver"
    assert metadata["description"].endswith(f"models/model.pt holds trained weights (label set {label_set}: liver).")
    for name in ("train", "inference"):
        assert json.loads((folder / "configs" / f"{name}.json").read_text())["label_set"] == label_set
    card = (folder / "README.md").read_text()
    for row in ("`preset` | nano", "`roi_size` | [32, 32, 32]", f"`label_set` | {label_set}"):
        assert f"| {row} |" in card  # the defaults of the release
    assert f", label set {label_set}: liver, step 1" in card and "with 1 channel in and 2 out" in card


def test_targets_of_several_label_sets_need_its_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = fine_tuned("mim_msd_liver_segmentation", ["liver"], tmp_path / "run", out_channels=2)
    text = "2 label sets with the targets of the weights: liver; say with --label_set .*: organ_only, whole_organ"
    with pytest.raises(ReleaseError, match=text):
        released("mim_msd_liver_segmentation", weights, tmp_path / "out")
    one = fine_tuned("mim_msd_hepaticvessel_segmentation", ["vessel or tumour"], tmp_path / "one", out_channels=2)
    folder = released("mim_msd_hepaticvessel_segmentation", one, tmp_path / "out")
    assert formats(folder)[1]["channel_def"] == {"0": "background", "1": "vessel or tumour"}
    card = " ".join((folder / "README.md").read_text().split())
    assert "Networks, with 1 channel in and 2 out" in card
    regions = fine_tuned("mim_brats_segmentation", ["TC", "WT", "ET"], tmp_path / "four", 3, in_channels=4)
    with caplog.at_level("INFO", "mim_tools"):
        released("mim_brats_segmentation", regions, tmp_path / "out")
    assert "label set: default; the same targets have et_label_2, brats2021, given with --label_set" in caplog.messages


@pytest.mark.parametrize("bundle", sorted(path.name for path in BUNDLES.iterdir()))
def test_default_weights_leave_the_description_as_it_is(bundle: str, tmp_path: Path) -> None:
    shutil.copytree(BUNDLES / bundle / "configs", tmp_path / "configs")
    before = read_metadata(tmp_path)
    set_metadata(tmp_path, {}, None, "")
    if bundle == "mim_pretrain":
        before["image_classes"] = before["image_classes"].partition("; or MR")[0]
    assert read_metadata(tmp_path) == before


# --- other channels and classes ---------------------------------------------------------------------------------------


def test_weights_of_other_channels(tmp_path: Path) -> None:
    bundle = "mim_msd_spleen_segmentation"
    folder = released(bundle, fine_tuned(bundle, ["spleen"], tmp_path / "run", 2, in_channels=2), tmp_path / "out")
    image, _ = formats(folder)
    assert image["num_channels"] == 2 and image["channel_def"] == {"0": "image, channel 0", "1": "image, channel 1"}
    assert read_metadata(folder)["image_classes"].startswith("2 channel CT, clipped to -57 to 175 HU")
    assert "Networks, with 2 channels in and 2 out" in (folder / "README.md").read_text()


def test_weights_of_other_classes(tmp_path: Path) -> None:
    bundle = "mim_ccccii_classification"
    weights = fine_tuned(bundle, ["healthy", "ill"], tmp_path / "run", out_channels=2)
    folder = released(bundle, weights, tmp_path / "out")
    _, pred = formats(folder)
    assert (pred["num_channels"], pred["spatial_shape"]) == (2, [1, 2])
    assert pred["channel_def"] == {"0": "healthy", "1": "ill"}
    metadata = read_metadata(folder)
    assert metadata["pred_classes"] == "2 channels, softmax: 0: healthy, 1: ill"
    assert metadata["label_classes"] == "one class per scan, 0: healthy, 1: ill"
    assert json.loads((folder / "configs" / "train.json").read_text())["class_names"] == ["healthy", "ill"]
    assert re.search(r"with 1 channel in and 2\s+classes out", (folder / "README.md").read_text())


# --- pre-training -----------------------------------------------------------------------------------------------------


def pretrained(folder: Path, in_channels: int = 1, **changes: Any) -> Path:
    """The files of a pre-training with the preset nano, with random weights."""
    torch.manual_seed(0)
    size, levels = (32, 32, 32), ((40, 40, 32), (16, 16, 16), (8, 8, 8))
    contract = InputContract("hybrid", "nano", in_channels, 8, size, levels, **changes)
    network = MiMReconstructor(in_channels, size, "nano", projection_dim=16)
    save_encoder(network.encoder, folder / "encoder.safetensors", contract)
    torch.save(network.state_dict(), folder / "model.pt")
    return folder / "model.pt"


def test_pre_training_on_mr_is_not_called_ct(tmp_path: Path) -> None:
    folder = released("mim_pretrain", pretrained(tmp_path / "run", modality="mr"), tmp_path / "out", projection_dim=16)
    image, _ = formats(folder)
    assert (image["modality"], image["format"]) == ("MR", "magnitude")
    metadata = read_metadata(folder)
    assert metadata["name"] == "MiM pre-training on MR"
    assert metadata["image_classes"] == (
        "single channel MR, clipped to the percentiles 0.5 and 99.5 of each volume and scaled to [0, 1]"
    )
    assert "unlabelled MR volumes" in metadata["task"] and "learns from unlabelled MR by" in metadata["description"]
    assert "148 CT of the head and neck" in metadata["description"]  # of the other encoder in it
    card = (folder / "README.md").read_text()
    assert "# MiM pre-training on MR" in card and "image modelling, MR, 3D" in card
    assert "from MR volumes without labels" in card
    assert "| `modality` | mr |" in card and "| `preset` | nano |" in card and "| `projection_dim` | 16 |" in card
    assert (folder / "models" / "encoder_tiny.md").is_file()


def test_pre_training_with_a_window_and_two_channels(tmp_path: Path) -> None:
    weights = pretrained(tmp_path / "run", in_channels=2, hu_window=(-160.0, 240.0))
    folder = released("mim_pretrain", weights, tmp_path / "out", projection_dim=16)
    metadata, (image, pred) = read_metadata(folder), formats(folder)
    assert metadata["image_classes"] == "2 channel CT, clipped to -160 to 240 HU and scaled to [0, 1]"
    assert metadata["pred_classes"].startswith("2 channel reconstruction")
    assert metadata["name"] == "MiM pre-training on CT" and image["format"] == "hounsfield"
    assert image["num_channels"] == pred["num_channels"] == len(pred["channel_def"]) == 2
    assert pred["channel_def"]["1"] == "channel 1, image with its masked tokens reconstructed"
