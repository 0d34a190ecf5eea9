"""Configurations of all bundles: well-formed, complete, mutually consistent, and as MONAI expects."""

from __future__ import annotations

import inspect
import json
import re
from collections import Counter
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from pydoc import locate
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.config_item import ComponentLocator, ConfigComponent
from monai.bundle.reference_resolver import ReferenceResolver
from monai.bundle.scripts import verify_net_in_out

from mim_components.networks import MiM
from mim_components.utils.text import root_cause
from mim_components.weights.contract import InputContract
from mim_components.weights.pretrained import save_encoder
from mim_tools.bundle_files.compose import with_literals
from tests.small import SMALL_PRETRAIN

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundles" / "mim_pretrain"
CONFIGS = BUNDLE / "configs"
META = CONFIGS / "metadata.json"
FOLDERS = sorted(path.parents[1] for path in (ROOT / "bundles").glob("*/configs/metadata.json"))
DOWNSTREAM = [folder for folder in FOLDERS if folder != BUNDLE]
# every combination in which the files of a bundle are used
PRETRAINING = [
    ["train"],
    ["train", "demo"],
    ["train", "multi_gpu_train"],
    ["train", "demo", "multi_gpu_train"],
    ["train", "evaluate"],
    ["train", "demo", "evaluate"],
    ["train", "probe"],
    ["train", "demo", "probe"],
    ["inference"],
    ["inference", "demo"],
]
FINETUNING = [["train"], ["train", "multi_gpu_train"], ["train", "evaluate"], ["inference"]]
COMBINATIONS = [(BUNDLE, names) for names in PRETRAINING] + [
    (each, names) for each in DOWNSTREAM for names in FINETUNING
]
# keys on which training and inference must agree
SAME = {
    "pretraining": """bundle_root seed preset encoder in_channels level_sizes input_size patch_size modality
        hu_window scale mask_ratio projection_dim normalize_target output_dir contract""".split(),
    "segmentation": """bundle_root seed device architecture preset in_channels orientation spacing intensity foreground
        roi_size output_dir network_def settings""".split(),
    "classification": """bundle_root seed device architecture preset in_channels class_names hu_window input_size
        crop_shift crop_size intensity output_dir network_def settings""".split(),
}
OPTIONS = SMALL_PRETRAIN | {"level_sizes": [[24, 24, 24], [16, 16, 16], [8, 8, 8]]}
NAME = attrgetter("name")
every_combination = pytest.mark.parametrize(
    ("bundle", "names"), COMBINATIONS, ids=[f"{bundle.name}-{'+'.join(names)}" for bundle, names in COMBINATIONS]
)
every_config = pytest.mark.parametrize(
    "path",
    [path for folder in FOLDERS for path in sorted((folder / "configs").glob("*.json"))],
    ids=lambda path: f"{path.parents[1].name}-{path.stem}",
)


def read(path: Path) -> Any:
    """JSON in which no key occurs twice in one object."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated = [key for key, count in Counter(key for key, _ in items).items() if count > 1]
        assert not repeated, f"{path.name}: {repeated} stand twice in one object"
        return dict(items)

    return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=pairs)


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from texts(part)


def parser(bundle: Path, names: list[str]) -> ConfigParser:
    """The files merged and parsed; nothing is instantiated."""
    parser = ConfigParser()
    parser.read_meta(bundle / "configs" / "metadata.json")
    parser.read_config([bundle / "configs" / f"{name}.json" for name in names])
    parser.parse()
    return parser


# every file by itself


@every_config
def test_json_has_no_key_twice(path: Path) -> None:
    assert isinstance(read(path), dict)


@every_config
def test_no_place_of_one_machine(path: Path) -> None:
    absolute = re.compile(r"^(/|~|[A-Za-z]:\\)|/(home|root|mnt|data|tmp|work|scratch|Users|usr|opt)\b")
    assert [text for text in texts(read(path)) if absolute.search(text)] == []


@pytest.mark.parametrize("bundle", FOLDERS, ids=lambda path: path.name)
def test_every_combination_covers_every_config(bundle: Path) -> None:
    named = {name for folder, names in COMBINATIONS if folder == bundle for name in names}
    assert named == {path.stem for path in (bundle / "configs").glob("*.json")} - {"metadata"}


# the files together


@every_combination
def test_targets_and_references_exist(bundle: Path, names: list[str]) -> None:
    parsed = parser(bundle, names)
    items = parsed.ref_resolver.items
    locator = ComponentLocator()
    targets = 0
    for name, item in items.items():
        if isinstance(item, ConfigComponent) and ConfigComponent.is_instantiable(item.config):
            target = item.config["_target_"]
            found = locate(target) if "." in target else locator.get_component_module_name(target)
            assert found, f"{name}: {target} is not there"
            targets += 1
        for reference in ReferenceResolver.find_refs_in_config(config=item.config, id=name):
            assert reference in items, f"{name} refers to {reference}, which is not there"
    assert targets >= 9


@every_combination
def test_arguments_are_those_of_the_target(bundle: Path, names: list[str]) -> None:
    """Otherwise a misspelt argument of a component would only be noticed when it is instantiated."""
    checked = 0
    for name, item in parser(bundle, names).ref_resolver.items.items():
        if not isinstance(item, ConfigComponent) or not ConfigComponent.is_instantiable(item.config):
            continue
        target = item.config["_target_"]
        if target.startswith("mim_components."):
            given = {key: None for key in item.config if not key.startswith("_")}
            signature = inspect.signature(locate(target))  # type: ignore[arg-type]
            try:
                (signature.bind_partial if item.config.get("_mode_") == "callable" else signature.bind)(**given)
            except TypeError as error:
                raise AssertionError(f"{name}: {target}: {error}") from error
            checked += 1
    assert checked >= 5


@pytest.mark.parametrize("bundle", FOLDERS, ids=lambda path: path.name)
def test_inference_has_the_defaults_of_the_training(bundle: Path) -> None:
    train, inference = (read(bundle / "configs" / f"{name}.json") for name in ("train", "inference"))
    metadata = read(bundle / "configs" / "metadata.json")
    settings = SAME[metadata["workflow"]]
    assert {key: inference[key] for key in settings} == with_literals({key: train[key] for key in settings}, metadata)


@pytest.mark.parametrize("bundle", DOWNSTREAM, ids=NAME)
def test_what_changes_the_input_is_compared_with_the_training(bundle: Path) -> None:
    config = read(bundle / "configs" / "inference.json")
    names = "hu_window input_size" if bundle.name.endswith("classification") else "orientation spacing roi_size"
    assert set(names.split()) <= config["settings"]["settings"].keys()


@pytest.mark.parametrize("bundle", [each for each in DOWNSTREAM if each.name.endswith("segmentation")], ids=NAME)
@pytest.mark.parametrize(
    ("names", "overlap"),
    [(["train"], 0.5), (["train", "evaluate"], 0.7), (["inference"], 0.7)],
    ids=["train", "evaluate", "inference"],
)
def test_windows_overlap_less_only_while_training(bundle: Path, names: list[str], overlap: float) -> None:
    """It is one option: a value on the command line applies whichever files the command reads."""
    files = [str(bundle / "configs" / f"{name}.json") for name in names]
    given = ConfigWorkflow(config_file=files, logging_file=False, workflow_type="train", overlap=0.25)
    assert given.parser["overlap"] == 0.25
    parsed = parser(bundle, names)
    inferer = parsed["inferer" if names == ["inference"] else "validate::inferer"]
    assert parsed["overlap"] == overlap and inferer["overlap"] == "@overlap"


def length(bundle: Path, cases: int, **options: Any) -> tuple[int, int, int]:
    """Steps of the training, of the warm-up and between two validations for a number of training cases."""
    parsed = ConfigParser()
    parsed.read_meta(bundle / "configs" / "metadata.json")
    parsed.read_config(bundle / "configs" / "train.json")
    parsed.update({"prepared": {"_target_": "types.SimpleNamespace", "training": [0] * cases}, **options})
    max_steps, warmup_steps, validation_steps, checkpoint_interval = (
        parsed.get_parsed_content(name)
        for name in ("max_steps", "warmup_steps", "validation_steps", "checkpoint_interval")
    )
    assert checkpoint_interval == validation_steps
    return max_steps, warmup_steps, validation_steps


@pytest.mark.parametrize("bundle", DOWNSTREAM, ids=NAME)
@pytest.mark.parametrize("cases", [1, 6, 24, 2_514])
def test_length_does_not_depend_on_the_cases(bundle: Path, cases: int) -> None:
    train = read(bundle / "configs" / "train.json")
    expected = (25_000, 1_250, 500), 1, 3e-4
    if bundle.name == "mim_ccccii_classification":  # VoCo's 100 epochs of 2,514 scans, batches of 4; every 2 of them
        expected = (100 * 2_514 // 4, 3_142, 2 * 2_514 // 4), 4, 3e-4
    assert (length(bundle, cases), train["global_batch_size"], train["learning_rate"]) == expected


def test_length_that_is_given() -> None:
    bundle = ROOT / "bundles" / "mim_btcv_segmentation"
    # 100 epochs of 24 cases; 5 % of them warm up; 2 epochs are 48 steps, of 4 scans 12
    assert length(bundle, 24, max_epochs=100, val_interval=2) == (2_400, 120, 48)
    assert length(bundle, 24, max_epochs=100, val_interval=2, global_batch_size=4) == (600, 30, 12)
    assert length(bundle, 6, max_epochs=100) == (600, 30, 500)
    assert length(bundle, 24, max_steps=200, validation_steps=40) == (200, 10, 40)


@pytest.mark.parametrize("bundle", DOWNSTREAM, ids=NAME)
@pytest.mark.parametrize(
    "options", [{"max_steps": 200, "max_epochs": 3}, {"validation_steps": 40, "val_interval": 1}], ids="-".join
)
def test_length_that_is_given_twice_is_refused(bundle: Path, options: dict[str, int], tmp_path: Path) -> None:
    """Refused before any file of the dataset is looked for."""
    made = ConfigWorkflow(
        config_file=str(bundle / "configs" / "train.json"),
        logging_file=False,
        workflow_type="train",
        **{"dataset_dir": str(tmp_path / "missing"), "output_dir": str(tmp_path), "pretrained": "none", **options},
    )
    (steps, number), (epochs, passes) = options.items()
    with pytest.raises(RuntimeError) as refused:
        made.initialize()
    assert f"--{steps} {number} and --{epochs} {passes} are both given" in str(root_cause(refused.value))


def test_inference_prepares_a_scan_as_the_training_does() -> None:
    """Only the reading of scans, and steps for labels, may differ; all other transforms are identical."""
    folder = ROOT / "mim_tools" / "bundle_files" / "segmentation" / "configs"
    lines = {}
    for name in ("train", "inference"):
        transforms = read(folder / f"{name}.json")["preprocessing"]["transforms"]
        kept = ("Orientationd", "Spacingd", "SpatialPadd")
        lines[name] = [each for each in transforms if isinstance(each, str) or each["_target_"] in kept]
    assert len(lines["train"]) == 5 and lines["inference"] == lines["train"]


def test_description_and_licences_of_the_pretraining() -> None:
    assert "weights of the default settings are not published yet" in read(META)["description"]
    data = (BUNDLE / "docs" / "data_license.txt").read_text()
    for name in ("BTCV", "COVID-19", "LUNA16", "STOIC", "FLARE23", "LIDC", "HNSCC", "TotalSegmentator"):
        assert name in data
    assert "**Weights of the default settings are not published yet**" in (BUNDLE / "docs" / "README.md").read_text()


# the way MONAI reads it


def test_network_is_what_the_metadata_says() -> None:
    small = {
        **{key: OPTIONS[key] for key in ("preset", "level_sizes", "input_size", "projection_dim")},
        "_meta_::network_data_format::inputs::image::spatial_shape": OPTIONS["input_size"],
        "bundle_root": str(BUNDLE),
    }
    where = {"net_id": "network_def", "meta_file": str(META), "config_file": str(CONFIGS / "inference.json")}
    verify_net_in_out(**where, device="cpu", **small)
    with pytest.raises(ValueError, match="output channel number `1` doesn't match: `2`"):
        verify_net_in_out(
            **where, device="cpu", **small, **{"_meta_::network_data_format::outputs::pred::num_channels": 2}
        )


@pytest.mark.parametrize("bundle", DOWNSTREAM, ids=lambda path: path.name)
def test_downstream_network_is_what_the_metadata_says(bundle: Path) -> None:
    """`inference.json` alone, as the Model Zoo checks it; a small network of the same channels."""
    small = {
        "preset": "nano",
        "roi_size" if bundle.name.endswith("_segmentation") else "input_size": [32, 32, 32],
        "_meta_::network_data_format::inputs::image::spatial_shape": [32, 32, 32],
        "bundle_root": str(bundle),
    }
    meta, config = bundle / "configs" / "metadata.json", bundle / "configs" / "inference.json"
    where = {"net_id": "network_def", "meta_file": str(meta), "config_file": str(config), "device": "cpu"}
    verify_net_in_out(**where, **small)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan and weights."""
    folder = tmp_path_factory.mktemp("static")
    voxels = np.random.RandomState(0).randint(-1000, 1000, (30, 28, 26)).astype(np.int16)
    (folder / "scans").mkdir()
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / "scans" / "scan.nii")
    network = MiM(input_size=(32, 32, 32), preset="nano", projection_dim=16)
    (folder / "models").mkdir()
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    sizes = tuple(tuple(size) for size in OPTIONS["level_sizes"])
    contract = InputContract("hybrid", "nano", 1, 8, (32, 32, 32), sizes)
    save_encoder(network.encoder, folder / "models" / "encoder.safetensors", contract)
    return folder


def workflow(names: list[str], kind: str, place: Path, **options: Any) -> ConfigWorkflow:
    made = ConfigWorkflow(
        config_file=[str(CONFIGS / f"{name}.json") for name in names],
        meta_file=str(META),
        logging_file=False,
        workflow_type=kind,
        **{**OPTIONS, "dataset_dir": str(place / "scans"), "cache_dir": str(place / "cache"), **options},
    )
    made.initialize()
    return made


def test_properties_of_the_training(place: Path, tmp_path: Path) -> None:
    options = {"global_batch_size": 1, "max_steps": 1, "tracking_uri": f"sqlite:///{tmp_path / 'mlruns.db'}"}
    made = workflow(["train"], "train", place, output_dir=str(tmp_path / "run"), **options)
    assert made.check_properties() == []
    made.finalize()


def test_properties_of_the_inference(place: Path) -> None:
    made = workflow(["inference"], "inference", place, output_dir=str(place))
    assert made.check_properties() == []
    assert made.version == read(META)["version"]


def test_properties_of_the_evaluation(place: Path) -> None:
    made = workflow(["train", "evaluate"], "train", place, output_dir=str(place))
    assert made.check_properties() == []


@pytest.mark.parametrize("bundle", FOLDERS, ids=NAME)
@pytest.mark.parametrize(("device", "expected"), [("cuda", True), ("cpu", None)])
def test_optimizer_is_fused_on_cuda(bundle: Path, device: str, expected: bool | None) -> None:
    optimizer = read(bundle / "configs" / "train.json")["optimizer"]
    parser = ConfigParser({"device": torch.device(device), "fused": optimizer["fused"]})
    assert optimizer["_target_"] == "torch.optim.AdamW" and parser.get_parsed_content("fused") is expected
