"""Texts of a release: check its metadata, mention the weights on its pages, and write its model card."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mim_tools.bundle_files.options import BEGIN, with_options

# keys of MONAI's schema of metadata.json, and further ones that the Model Zoo requires
REQUIRED = """schema version monai_version pytorch_version numpy_version required_packages_version task description
    authors copyright network_data_format changelog name data_source data_type image_classes label_classes pred_classes
    eval_metrics intended_use references""".split()
PIPELINES = {
    "pretraining": "image-feature-extraction",
    "segmentation": "image-segmentation",
    "classification": "image-classification",
}


def check_metadata(folder: Path, metadata: Mapping[str, Any], error: type[ValueError]) -> str:
    """Check version, changelog and required keys; returns a line about it.

    Raises:
        ValueError: something is missing, in the form of `error`; names it.
    """
    version = metadata.get("version", "")
    if missing := [name for name in REQUIRED if name not in metadata]:
        raise error(f"{folder}: metadata.json lacks {', '.join(missing)}.")
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise error(f"version must be like 1.0.0, got {version!r}.")
    if version not in metadata["changelog"]:
        raise error(f"version {version} has no line in the changelog; give one with --changes.")
    if not (folder / "LICENSE").is_file() or not (folder / "docs" / "data_license.txt").is_file():
        raise error(f"{folder}: LICENSE and docs/data_license.txt belong to a release.")
    return f"metadata: version {version}, all keys that MONAI and the Model Zoo require"


def tell_of_weights(
    folder: Path, metadata: dict[str, Any], facts: Mapping[str, Any], digest: str, label_set: str = ""
) -> None:
    """Replace what the pages of a bundle say about missing weights, defaults, channels and the folder of commands."""
    (image,), (pred,) = (metadata["network_data_format"][side].values() for side in ("inputs", "outputs"))
    which = f" ({label_set})" if label_set else ""
    value = facts.get("metric_value")
    known = f", {label_set}" if label_set else ""
    known += f", step {facts['step']}" if "step" in facts else ""
    known += f", {facts['metric']} {value:.4f} in its own validation" if value is not None else ""
    weights = f"`models/model.pt` holds trained weights (sha256 {digest[:16]}...{known})."
    needs = (
        "The bundle includes the package `mim_components`; run it from its own folder after "
        "`pip install -r requirements.txt`."
    )
    page = folder / "docs" / "README.md"
    if BEGIN in (text := page.read_text(encoding="utf-8")):
        page.write_text(with_options(text, folder), encoding="utf-8")
    _replace(
        page,
        {
            r"\*\*(?:No weights are|Weights of the default settings are not) published[^*]*\*\*[^.]*\.pt`[^.]*\.":
                f"**Weights.** {weights}",
            r"The bundle needs [^`]*`mim_components`.*?3\.10\s+or\s+newer\.": needs,
            r"From the root of the repository\. From this folder, write `configs/\.\.\.` instead of\s+`[\w/.]*`\.":
                "From the folder of the bundle.",
            rf"\bbundles/{folder.name}/": "",
            r"(Networks, with\s+)\d+(\s+)channels?(\s+in\s+and\s+)\d+\b":
                rf"\g<1>{image['num_channels']}\g<2>{_channels(image['num_channels'])}\g<3>{pred['num_channels']}",
            **_of_modality(metadata["workflow"], image["modality"]),
        },
    )  # fmt: skip
    _replace(
        folder / "docs" / "data_license.txt",
        {
            r"This bundle contains no data(?:, and no weights that were trained on any)?\.":
                "This bundle contains no data. models/model.pt was trained on data whose terms may restrict its use.",
        },
    )  # fmt: skip
    (folder / "models" / "README.md").write_text(f"{weights} `model.safetensors` holds the same.\n", encoding="utf-8")
    metadata["description"] = re.sub(
        r"[.;] (Weights for models/model\.pt|weights of the default settings) are not published.*$",
        f". models/model.pt holds trained weights{which}.", metadata["description"]
    )  # fmt: skip
    path = folder / "configs" / "metadata.json"
    path.write_text(json.dumps(metadata, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")


def _of_modality(workflow: str, modality: str) -> dict[str, str]:
    """What the page of a pre-training says of CT, for another modality."""
    if workflow != "pretraining":
        return {}
    found = (r"(\A# [^\n]* on )CT\b", r"(\*\*Tags\*\*\s+[^\n]*, )CT\b", r"(from )CT( volumes without labels)")
    return {pattern: rf"\g<1>{modality}" + (r"\g<2>" if ")CT(" in pattern else "") for pattern in found}


def _channels(number: int) -> str:
    return "channel" if number == 1 else "channels"


def _replace(page: Path, texts: Mapping[str, str]) -> None:
    text = page.read_text(encoding="utf-8")
    for pattern, new in texts.items():
        text = re.sub(pattern, new, text, flags=re.DOTALL)
    page.write_text(text, encoding="utf-8")


def model_card(folder: Path, metadata: Mapping[str, Any]) -> str:
    """The page of the bundle with the header for the Hugging Face Hub; its links start at the top folder."""
    tags = ["monai", "medical", "3d", "mask-in-mask", metadata["workflow"]]
    head = [
        "---",
        "license: apache-2.0",
        "library_name: monai",
        f"pipeline_tag: {PIPELINES[metadata['workflow']]}",
        "tags:",
        *(f"- {tag}" for tag in tags),
        "---",
    ]
    text = (folder / "docs" / "README.md").read_text(encoding="utf-8")
    return "\n".join(head) + "\n\n" + text.replace("](../", "](")
