"""Files of the bundle `mim_pretrain`: well-formed, complete, consistent with each other, and what MONAI expects."""

from __future__ import annotations

import configparser
import inspect
import json
import re
from collections import Counter
from collections.abc import Iterator
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

from mim_components.contract import InputContract
from mim_components.networks import MiM
from mim_components.pretrained import save_encoder

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundles" / "mim_pretrain"
CONFIGS = BUNDLE / "configs"
META = CONFIGS / "metadata.json"
# every way in which the files are used together
COMBINATIONS = [
    ["train"],
    ["train", "demo"],
    ["train", "multi_gpu_train"],
    ["train", "demo", "multi_gpu_train"],
    ["train", "evaluate"],
    ["train", "demo", "evaluate"],
    ["inference"],
    ["inference", "demo"],
]
# of https://project-monai.github.io/schema/meta_schema_20240725.json
REQUIRED = """schema version monai_version pytorch_version numpy_version required_packages_version task description
    authors copyright network_data_format""".split()
# what the Model Zoo wants beyond the schema
WANTED = """changelog name data_source data_type image_classes label_classes pred_classes eval_metrics intended_use
    references supported_apps""".split()
TEXTS = "schema version task description authors copyright name data_source data_type intended_use".split()
OBJECTS = "required_packages_version changelog eval_metrics supported_apps network_data_format".split()
TENSOR = "type format num_channels spatial_shape dtype value_range".split()
SMALL: dict[str, Any] = {
    "preset": "nano",
    "level_sizes": [[24, 24, 24], [16, 16, 16], [8, 8, 8]],
    "input_size": [32, 32, 32],
    "projection_dim": 16,
    "num_workers": 0,
    "device": "$torch.device('cpu')",
}


def configs() -> list[Path]:
    found = sorted(CONFIGS.glob("*.json"))
    assert {"train.json", "demo.json", "evaluate.json", "inference.json", "metadata.json"} <= {p.name for p in found}
    return found


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


def parser(names: list[str]) -> ConfigParser:
    """The files merged and taken apart; nothing is made."""
    parser = ConfigParser()
    parser.read_meta(META)
    parser.read_config([CONFIGS / f"{name}.json" for name in names])
    parser.parse()
    return parser


# every file by itself


@pytest.mark.parametrize("path", configs(), ids=lambda path: path.name)
def test_json_has_no_key_twice(path: Path) -> None:
    assert isinstance(read(path), dict)


@pytest.mark.parametrize("path", configs(), ids=lambda path: path.name)
def test_no_place_of_one_machine(path: Path) -> None:
    absolute = re.compile(r"^(/|~|[A-Za-z]:\\)|/(home|root|mnt|data|tmp|work|scratch|Users|usr|opt)\b")
    assert [text for text in texts(read(path)) if absolute.search(text)] == []


def test_every_combination_covers_every_config() -> None:
    assert {name for names in COMBINATIONS for name in names} == {p.stem for p in configs()} - {"metadata"}


# the files together


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_targets_and_references_exist(names: list[str]) -> None:
    parsed = parser(names)
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


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_arguments_are_those_of_the_target(names: list[str]) -> None:
    """A misspelt argument of one of our components would only be found when it is made."""
    checked = 0
    for name, item in parser(names).ref_resolver.items.items():
        if not isinstance(item, ConfigComponent) or not ConfigComponent.is_instantiable(item.config):
            continue
        target = item.config["_target_"]
        if target.startswith("mim_components."):
            given = {key: None for key in item.config if not key.startswith("_")}
            try:
                inspect.signature(locate(target)).bind(**given)  # type: ignore[arg-type]
            except TypeError as error:
                raise AssertionError(f"{name}: {target}: {error}") from error
            checked += 1
    assert checked >= 5


def test_inference_has_the_defaults_of_the_training() -> None:
    train, inference = read(CONFIGS / "train.json"), read(CONFIGS / "inference.json")
    settings = """bundle_root seed preset encoder in_channels level_sizes input_size patch_size hu_window mask_ratio
        projection_dim normalize_target on_bad max_voxels output_dir contract""".split()
    assert {key: inference[key] for key in settings} == {key: train[key] for key in settings}


# metadata and documents


def test_metadata() -> None:
    meta = read(META)
    assert [key for key in REQUIRED + WANTED if key not in meta] == []
    assert [key for key in TEXTS if not isinstance(meta[key], str)] == []
    assert [key for key in OBJECTS if not isinstance(meta[key], dict)] == []
    assert re.fullmatch(r"\d+\.\d+\.\d+", meta["version"]) and meta["version"] in meta["changelog"]
    for side, name in (("inputs", "image"), ("outputs", "pred")):
        tensor = meta["network_data_format"][side][name]
        assert [key for key in TENSOR if key not in tensor] == []
    assert "No pre-trained weights are published yet" in meta["description"]
    assert "#" not in META.read_text()  # MONAI turns it into ::


def test_metadata_names_what_the_package_requires() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    required = {re.split(r"[><=]", line)[0] for line in setup["options"]["install_requires"].split()}
    base = {"monai", "torch", "numpy"}  # have keys of their own
    assert read(META)["required_packages_version"].keys() == required - base


def test_licence_and_documents() -> None:
    assert (BUNDLE / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    data = (BUNDLE / "docs" / "data_license.txt").read_text()
    for name in ("BTCV", "COVID-19", "LUNA16", "STOIC", "FLARE23", "LIDC", "HNSCC", "TotalSegmentator"):
        assert name in data
    readme = (BUNDLE / "docs" / "README.md").read_text()
    assert "No pre-trained weights are published yet" in readme
    named = set(re.findall(r"configs/(\w+\.json)", readme))
    assert named == {p.name for p in configs()} - {"metadata.json"}


def test_readme_names_real_options() -> None:
    readme = (BUNDLE / "docs" / "README.md").read_text()
    known = {key for path in configs() for key in read(path)}
    options = set(re.findall(r"--([a-z_]+)", readme)) - {"config_file", "standalone", "nproc_per_node"}
    table = readme.split("## **Settings**")[1].split("## **")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("|")]
    options |= {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert len(options) > 15 and sorted(options - known) == []


# as MONAI looks at it


def test_network_is_what_the_metadata_says() -> None:
    small = {
        **{key: SMALL[key] for key in ("preset", "level_sizes", "input_size", "projection_dim")},
        "_meta_::network_data_format::inputs::image::spatial_shape": SMALL["input_size"],
        "bundle_root": str(BUNDLE),
    }
    where = {"net_id": "network_def", "meta_file": str(META), "config_file": str(CONFIGS / "inference.json")}
    verify_net_in_out(**where, device="cpu", **small)
    with pytest.raises(ValueError, match="output channel number `1` doesn't match: `2`"):
        verify_net_in_out(
            **where, device="cpu", **small, **{"_meta_::network_data_format::outputs::pred::num_channels": 2}
        )


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
    sizes = tuple(tuple(size) for size in SMALL["level_sizes"])
    contract = InputContract("hybrid", "nano", 1, 8, (32, 32, 32), sizes)
    save_encoder(network.encoder, folder / "models" / "encoder.safetensors", contract)
    return folder


def workflow(names: list[str], kind: str, place: Path, **options: Any) -> ConfigWorkflow:
    made = ConfigWorkflow(
        config_file=[str(CONFIGS / f"{name}.json") for name in names],
        meta_file=str(META),
        logging_file=False,
        workflow_type=kind,
        **{**SMALL, "dataset_dir": str(place / "scans"), "cache_dir": str(place / "cache"), **options},
    )
    made.initialize()
    return made


def test_properties_of_the_training(place: Path, tmp_path: Path) -> None:
    options = {"global_batch_size": 1, "max_steps": 1, "tracking_uri": f"sqlite:///{tmp_path / 'mlruns.db'}"}
    made = workflow(["train"], "train", place, output_dir=str(tmp_path / "run"), prepare_workers=0, **options)
    assert made.check_properties() == []
    made.finalize()


def test_properties_of_the_inference(place: Path) -> None:
    made = workflow(["inference"], "inference", place, output_dir=str(place))
    assert made.check_properties() == []
    assert made.version == read(META)["version"]


def test_properties_of_the_evaluation(place: Path) -> None:
    made = workflow(["train", "evaluate"], "train", place, output_dir=str(place), prepare_workers=0)
    assert made.check_properties() == []
