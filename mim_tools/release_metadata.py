"""Settings and metadata of a release: those of the training of its weights become the defaults of the bundle."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from mim_components.labels import LabelSet
from mim_components.weights.contract import InputContract, find_contract
from mim_tools.bundle_files.compose import as_text
from mim_tools.release_files import ReleaseError

logger = logging.getLogger(__name__)
SIZES = ("roi_size", "input_size")


def read_configuration(folder: Path, options: Mapping[str, Any] | None = None) -> ConfigParser:
    """The inference of a bundle, with options."""
    parser = ConfigParser()
    parser.read_meta(folder / "configs" / "metadata.json")
    parser.read_config(folder / "configs" / "inference.json")
    parser.update({"bundle_root": str(folder.absolute()), "output_dir": str(folder.absolute()), **(options or {})})
    return parser


def read_metadata(folder: Path) -> dict[str, Any]:
    """The metadata of a bundle."""
    read: dict[str, Any] = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
    return read


def write_metadata(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Write the metadata of a bundle."""
    text = json.dumps(metadata, indent=4, ensure_ascii=False) + "\n"
    (folder / "configs" / "metadata.json").write_text(text, encoding="utf-8")


def tensors_of(metadata: Mapping[str, Any], side: str) -> list[dict[str, Any]]:
    """Descriptions of the `inputs` or `outputs` of the network."""
    return list(metadata["network_data_format"][side].values())


def set_options(folder: Path, weights: Path, facts: Mapping[str, Any], options: dict[str, Any]) -> None:
    """Make the settings of the training the defaults of the release.

    Raises:
        ReleaseError: an option is unknown, or the targets of the weights fit no label set, or several.
    """
    metadata = read_metadata(folder)
    settings = {**facts.get("settings", {}), **options}
    found = find_contract(weights)
    if metadata["workflow"] == "pretraining" and found is not None:
        settings = {**_of_contract(found[0]), **options}
    if facts and "label_set" not in settings and metadata["workflow"] == "segmentation":
        settings["label_set"] = _label_set(folder, facts["targets"])
    if facts and metadata["workflow"] == "classification":
        if facts["targets"] != read_configuration(folder).get_parsed_content("class_names"):
            settings.setdefault("class_names", facts["targets"])
    known: set[str] = set()
    for path in sorted((folder / "configs").glob("*.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        own = {name: value for name, value in settings.items() if name in config and config[name] != value}
        if path.name in ("train.json", "inference.json"):
            known |= settings.keys() & config.keys()
            path.write_text(as_text({**config, **own}), encoding="utf-8")
    if unknown := sorted(options.keys() - known):
        raise ReleaseError(f"{folder.name} has no option {', '.join(unknown)}.")


def _of_contract(contract: InputContract) -> dict[str, Any]:
    names = "encoder preset in_channels input_size level_sizes modality hu_window spacing normalize_target".split()
    plain: dict[str, Any] = json.loads(json.dumps({name: getattr(contract, name) for name in names}))
    return plain


def name_of_label_set(folder: Path) -> str:
    """Label set of a segmentation, with what it segments, for pages; empty for the default one."""
    if read_metadata(folder)["workflow"] != "segmentation" or (labels := _labels(folder)).name == "default":
        return ""
    return f"label set {labels.name}: {', '.join(labels.targets)}"


def _labels(folder: Path, label_set: str | None = None) -> LabelSet:
    options = {} if label_set is None else {"label_set": label_set}
    labels: LabelSet = read_configuration(folder, options).get_parsed_content("labels")
    return labels


def _label_set(folder: Path, targets: Sequence[str]) -> str | None:
    """Name of the label set with these targets; None for the default."""
    names = read_metadata(folder)["dataset"]["label_sets"]
    found = [name for name in names if list(_labels(folder, name).targets) == list(targets)]
    text = f"the targets of the weights: {', '.join(targets)}"
    if not found:
        raise ReleaseError(f"{folder.name} has no label set with {text}.")
    if "default" in found:
        if len(found) > 1:
            others = ", ".join(name for name in found if name != "default")
            logger.info("label set: default; the same targets have %s, given with --label_set", others)
        return None
    if len(found) > 1:
        raise ReleaseError(
            f"{folder.name} has {len(found)} label sets with {text}; say with --label_set which of them the weights "
            f"were trained on: {', '.join(found)}."
        )
    return str(found[0])


def set_metadata(folder: Path, facts: Mapping[str, Any], version: str | None, changes: str) -> None:
    """Set version, metric, and the network's input and output, which follow from the options.

    Raises:
        ReleaseError: the version has a line in the changelog already.
    """
    metadata = read_metadata(folder)
    metadata["version"] = version or metadata["version"]
    if changes:
        if metadata["version"] in metadata["changelog"]:
            raise ReleaseError(
                f"version {metadata['version']} has a line in the changelog already; give a new --version."
            )
        metadata["changelog"] = {metadata["version"]: changes, **metadata["changelog"]}
    if facts.get("metric_value") is not None:
        metadata["eval_metrics"] = {facts["metric"]: facts["metric_value"]}
    parser = read_configuration(folder)
    size = next((parser[name] for name in SIZES if name in parser), None)
    for tensor in (*tensors_of(metadata, "inputs"), *tensors_of(metadata, "outputs")):
        if size is not None and len(tensor["spatial_shape"]) == 3:
            tensor["spatial_shape"] = list(size)
    _set_image(metadata, parser.get_parsed_content("in_channels"))
    if metadata["workflow"] == "segmentation":
        _set_labels(metadata, _labels(folder))
    elif metadata["workflow"] == "classification":
        _set_classes(metadata, parser.get_parsed_content("class_names"))
    else:
        _set_contract(metadata, parser.get_parsed_content("contract"))
    write_metadata(folder, metadata)


def _set_image(metadata: dict[str, Any], channels: int) -> None:
    """Describe the channels of the image, where their number is not that of the bundle."""
    (image,) = tensors_of(metadata, "inputs")
    if image["num_channels"] != channels:
        image["num_channels"] = channels
        image["channel_def"] = {str(number): f"image, channel {number}" for number in range(channels)}
        metadata["image_classes"] = _with_channels(metadata["image_classes"], channels)


def _with_channels(text: str, channels: int) -> str:
    """A text such as "single channel CT, ..." for another number of channels."""
    return re.sub(r"^\w+ channel\b", "single channel" if channels == 1 else f"{channels} channel", text)


def _set_contract(metadata: dict[str, Any], contract: InputContract) -> None:
    """Describe the images of a pre-training: modality, scaling and channels."""
    modality, channels = contract.modality.upper(), contract.in_channels
    (image,), (pred,) = (tensors_of(metadata, side) for side in ("inputs", "outputs"))
    image |= {"modality": modality, "format": "magnitude" if contract.percentiles else "hounsfield"}
    if pred["num_channels"] != channels:
        _set_channels(metadata, [f"channel {number}, {pred['channel_def']['0']}" for number in range(channels)])
    if contract.percentiles:
        limits = "the percentiles {:g} and {:g} of each volume".format(*contract.percentiles)
    else:
        limits = "{:g} to {:g} HU".format(*contract.hu_window or ())
    text = f"single channel {modality}, clipped to {limits} and scaled to [0, 1]"
    metadata["image_classes"] = _with_channels(text, channels)
    metadata["pred_classes"] = _with_channels(metadata["pred_classes"], channels)
    for name, found in (("name", r"\bon CT\b"), ("task", r"\bunlabelled CT\b"), ("description", r"\bunlabelled CT\b")):
        metadata[name] = re.sub(found, lambda each: each[0].replace("CT", modality), metadata[name])


def _set_labels(metadata: dict[str, Any], labels: LabelSet) -> None:
    """Describe the classes of a segmentation."""
    names = labels.targets if labels.is_regions else labels.names
    kind = "channels of overlapping regions, sigmoid" if labels.is_regions else "channels, softmax"
    _set_channels(metadata, names)
    metadata["pred_classes"] = f"{len(names)} {kind}: {_numbered(names)}"
    metadata["label_classes"] = f"single channel data, {_numbered(labels.names)}"


def _set_classes(metadata: dict[str, Any], names: Sequence[str]) -> None:
    """Describe the classes of a classification, where they are not those of the bundle."""
    (pred,) = tensors_of(metadata, "outputs")
    if list(pred["channel_def"].values()) != list(names):
        _set_channels(metadata, names)
        pred["spatial_shape"] = [1, len(names)]
        metadata["pred_classes"] = f"{len(names)} channels, softmax: {_numbered(names)}"
        metadata["label_classes"] = f"one class per scan, {_numbered(names)}"


def _set_channels(metadata: dict[str, Any], names: Sequence[str]) -> None:
    (pred,) = tensors_of(metadata, "outputs")
    pred["num_channels"] = len(names)
    pred["channel_def"] = {str(number): name for number, name in enumerate(names)}


def _numbered(names: Sequence[str]) -> str:
    return ", ".join(f"{number}: {name}" for number, name in enumerate(names))
