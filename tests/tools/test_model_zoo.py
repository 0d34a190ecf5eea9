"""The checks of MONAI's Model Zoo, as described for its contributors, offline: on all bundles and on releases.

Shapes of all networks are in `tests/bundles/test_static.py`, properties of all workflows in `test_runs.py` beside it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.apps.utils import check_hash
from monai.bundle import ConfigParser, ckpt_export, verify_metadata, verify_net_in_out

from mim_components.networks import MiMReconstructor, classification_network, segmentation_network
from mim_components.utils.files import check_digest, sha256
from mim_components.weights import InputContract, ModelSettings, save_encoder
from mim_tools import release
from mim_tools.release_texts import model_card, tell_of_weights
from tests.small import SMALL_PRETRAIN

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = sorted(path.parents[1] for path in (ROOT / "bundles").glob("*/configs/metadata.json"))
every_bundle = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
LARGEST = 25 * 10**6  # most bytes of a file that is not in large_files.yml

TEXT, OBJECT = {"type": "string", "minLength": 1}, {"type": "object"}
TENSOR = {
    "type": "object",
    "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"],
    "properties": {
        "type": TEXT,
        "format": TEXT,
        "num_channels": {"type": "integer"},
        "spatial_shape": {"type": "array", "items": {"type": ["integer", "string"]}},
        "dtype": TEXT,
        "value_range": {"type": "array", "items": {"type": "number"}},
        "is_patch_data": {"type": "boolean"},
        "channel_def": OBJECT,
    },
}
TENSORS = {"type": "object", "minProperties": 1, "additionalProperties": TENSOR}
# in our words, and stricter: what is optional there is required here
TEXTS = """schema version monai_version pytorch_version numpy_version task description authors copyright name
    data_source data_type image_classes label_classes pred_classes intended_use""".split()
OBJECTS = "changelog required_packages_version eval_metrics supported_apps network_data_format".split()
SCHEMA = {
    "type": "object",
    "required": [*TEXTS, *OBJECTS, "references"],
    "properties": {
        **dict.fromkeys(TEXTS, TEXT),
        **dict.fromkeys(OBJECTS, OBJECT),
        "references": {"type": "array", "items": TEXT},
        "network_data_format": {
            "type": "object",
            "required": ["inputs", "outputs"],
            "properties": {"inputs": TENSORS, "outputs": TENSORS},
        },
    },
}
# keys of the configurations; of the sections only where a file has the section
INFERENCE_KEYS = "bundle_root device network_def inferer output_dir".split()
TRAIN_KEYS = "bundle_root device dataset_dir output_dir".split()
SECTION_KEYS = {
    "train": ["trainer", "trainer::max_epochs", "dataset", "dataset::data", "handlers", "inferer"],
    "validate": ["evaluator", "handlers", "dataset", "dataset::data", "inferer", "key_metric"],
}


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def check_schema(bundle: Path, folder: Path) -> None:
    """Check metadata with MONAI, which uses an existing schema instead of downloading one."""
    schema = folder / "schema.json"
    schema.write_text(json.dumps(SCHEMA))
    kept: dict[str, Any] = {"filepath": str(schema), "hash_val": sha256(schema), "hash_type": "sha256"}
    verify_metadata(meta_file=str(bundle / "configs" / "metadata.json"), **kept)


# the bundles themselves


def test_all_bundles_are_here() -> None:
    assert len(BUNDLES) == 14


@every_bundle
def test_files_and_schema(bundle: Path, tmp_path: Path) -> None:
    for name in (
        "LICENSE",
        "configs/metadata.json",
        "configs/inference.json",
        "docs/README.md",
        "docs/data_license.txt",
    ):
        assert (bundle / name).is_file(), name
    check_schema(bundle, tmp_path)


def test_the_schema_refuses(tmp_path: Path) -> None:
    folder = tmp_path / "bundle" / "configs"
    folder.mkdir(parents=True)
    metadata = read(BUNDLES[0] / "configs" / "metadata.json")
    metadata["network_data_format"]["inputs"]["image"]["num_channels"] = "1"
    (folder / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="'1' is not of type 'integer'"):
        check_schema(folder.parent, tmp_path)


@every_bundle
def test_names_of_keys(bundle: Path) -> None:
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.json")
    assert [key for key in INFERENCE_KEYS if key not in parser] == []
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "train.json")
    validates = bundle.name != "mim_pretrain"
    assert [key for key in [*TRAIN_KEYS, *["val_interval"] * validates] if key not in parser] == []
    sections = ["train", *["validate"] * validates]
    assert [f"{name}::{key}" for name in sections for key in SECTION_KEYS[name] if f"{name}::{key}" not in parser] == []


@every_bundle
def test_pages_with_weights_contradict_themselves_nowhere(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / bundle.name
    for name in ("configs", "docs"):
        shutil.copytree(bundle / name, folder / name)
    (folder / "models").mkdir()
    metadata = read(folder / "configs" / "metadata.json")
    tell_of_weights(folder, metadata, {"step": 7, "metric": "dice", "metric_value": 0.5}, "0123456789abcdef01")
    card, licence = model_card(folder, metadata), (folder / "docs" / "data_license.txt").read_text(encoding="utf-8")
    known = "sha256 0123456789abcdef..., step 7, dice 0.5000 in its own validation"
    assert card.count(f"`models/model.pt` holds trained weights ({known}).") == 1 and metadata["description"].endswith(
        ". models/model.pt holds trained weights."
    )
    for text in (card, licence, metadata["description"]):
        assert [word for word in ("not published", "are published", "no weights that") if word in text] == []
    assert "models/model.pt was trained on data whose terms may restrict its use." in licence
    assert f"bundles/{bundle.name}" not in card and "pip install -e" not in card and "](../" not in card
    assert "From the folder of the bundle." in card and "--config_file configs/inference.json" in card


# releases


def weights_of(bundle: Path, folder: Path) -> Path:
    """The files of a training with the preset nano, with random weights."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    if bundle.name == "mim_pretrain":
        sizes = tuple(map(tuple, SMALL_PRETRAIN["level_sizes"]))
        contract = InputContract("hybrid", "nano", 1, 8, tuple(SMALL_PRETRAIN["input_size"]), sizes)
        network = MiMReconstructor(1, contract.input_size, "nano", projection_dim=SMALL_PRETRAIN["projection_dim"])
        save_encoder(network.encoder, folder / "encoder.safetensors", contract)
        torch.save(network.state_dict(), folder / "model.pt")
        return folder / "model.pt"
    data = read(bundle / "configs" / "metadata.json")["dataset"]
    settings = {"preset": "nano", "in_channels": data["in_channels"], "positions": "rescaled"}
    net: torch.nn.Module
    if "class_names" in data:
        targets, size = data["class_names"], [16, 16, 8]
        settings |= {"architecture": "hybrid", "input_size": size}
        net = classification_network("hybrid", data["in_channels"], len(targets), size, "nano")
    else:
        labels, size = data["label_sets"]["default"], [32, 32, 32]
        targets = list(labels.get("regions", labels["names"][1:]))
        settings |= {"architecture": "hybrid_swin_unetr", "roi_size": size}
        channels = len(targets) + ("regions" not in labels)
        net = segmentation_network("hybrid_swin_unetr", data["in_channels"], channels, size, "nano")
    torch.save(net.state_dict(), folder / "model.pt")
    facts = ModelSettings(bundle.name, settings, targets).as_dict()
    (folder / "model.json").write_text(json.dumps({**facts, "step": 1, "metric": "dice", "metric_value": 0.5}))
    return folder / "model.pt"


@pytest.fixture(scope="module", params=["mim_brats_segmentation", "mim_ccccii_classification", "mim_pretrain"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of one bundle per task; exports have tests of their own."""
    bundle, place = ROOT / "bundles" / request.param, tmp_path_factory.mktemp("zoo")
    options = {"projection_dim": SMALL_PRETRAIN["projection_dim"]} if bundle.name == "mim_pretrain" else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(release, "FORMATS", ())
        release.make_release(
            bundle,
            weights_of(bundle, place / "run"),
            place / "out",
            "https://host/{version}",
            options,
            "1.0.0",
            "first",
        )
    return place / "out" / bundle.name


def test_directory_of_a_release(made: Path, tmp_path: Path) -> None:
    for name in ("LICENSE", "configs/metadata.json", "configs/inference.json", "models/model.pt"):
        assert (made / name).is_file(), name
    check_schema(made, tmp_path)
    metadata = read(made / "configs" / "metadata.json")
    assert metadata["version"] == "1.0.0" and metadata["changelog"]["1.0.0"] == "first"


def test_large_files_of_a_release(made: Path) -> None:
    """Every file of weights is listed with its digest; nothing else is too large for the Zoo's repository."""
    listed = ConfigParser.load_config_file(made / "large_files.yml")["large_files"]
    kinds = (".pt", ".safetensors")
    weights = sorted(path.name for path in (made / "models").iterdir() if path.suffix in kinds)
    assert [entry["path"] for entry in listed] == [f"models/{name}" for name in weights]
    for entry in listed:
        assert check_hash(made / entry["path"], entry["hash_val"], entry["hash_type"])
        assert entry["url"] == f"https://host/1.0.0/{entry['path']}"
        assert check_digest(made / entry["path"])
    others = [path for path in made.rglob("*") if path.is_file() and path.suffix not in kinds]
    assert max(path.stat().st_size for path in others) < LARGEST


def test_requirements_of_a_release(made: Path) -> None:
    """The Zoo installs what the metadata pin; the file beside them pins the same."""
    metadata = read(made / "configs" / "metadata.json")
    pins = dict(line.split("==") for line in (made / "requirements.txt").read_text().splitlines())
    assert [pins[name] for name in ("monai", "torch", "numpy")] == [
        metadata[f"{name}_version"] for name in ("monai", "pytorch", "numpy")
    ]
    assert metadata["required_packages_version"].items() <= pins.items() and len(pins) == 18


@pytest.mark.filterwarnings("ignore")  # of TorchScript
def test_network_and_torchscript_of_a_release(made: Path) -> None:
    configs = {"meta_file": str(made / "configs/metadata.json"), "config_file": str(made / "configs/inference.json")}
    given: dict[str, Any] = {"net_id": "network_def", "bundle_root": str(made), **configs}
    verify_net_in_out(device="cpu", **given)
    ckpt_export(filepath=str(made / "models/verify.ts"), ckpt_file=str(made / "models/model.pt"), **given)
    formats = read(made / "configs/metadata.json")["network_data_format"]
    image, pred = formats["inputs"]["image"], formats["outputs"]["pred"]
    output = torch.jit.load(made / "models/verify.ts")(torch.zeros(1, image["num_channels"], *image["spatial_shape"]))
    assert output.shape[:2] == (1, pred["num_channels"])
    (made / "models/verify.ts").unlink()


def test_the_small_encoder_goes_with_its_page(made: Path, tmp_path: Path) -> None:
    page, weights = made / "models" / "encoder_tiny.md", made / "models" / "encoder_tiny.safetensors"
    if made.name != "mim_pretrain":
        assert not page.exists() and not weights.exists()
        return
    assert sha256(weights) in page.read_text() and check_digest(weights)
    assert "[its card](models/encoder_tiny.md)" in (made / "README.md").read_text()
    source = tmp_path / "mim_pretrain"
    shutil.copytree(ROOT / "bundles" / "mim_pretrain", source, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(
        release.ReleaseError,
        match=r"encoder_tiny\.md: describes encoder_tiny\.safetensors, but these or their digest are missing",
    ):
        release.make_release(source, made / "models" / "model.pt", tmp_path / "out", "https://host")
    assert not (tmp_path / "out" / "mim_pretrain").exists()
