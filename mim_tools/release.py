"""Make a release of a bundle: a checked archive with weights and the code it needs.

python -m mim_tools.release bundles/mim_btcv_segmentation --weights out/models/model.pt --output release

The archive runs from its own folder where the packages of its requirements.txt are installed. Beside it are
its folder and, from a clone, a wheel of mim_components. Options of the training that are not stored beside the weights,
such as --projection_dim, must be given as they were in training.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, push_to_hf_hub
from monai.utils import optional_import
from safetensors.torch import save_file

import mim_components
from mim_components.utils.files import as_size, check_digest, digest_file, sha256, write_with_digest
from mim_components.utils.tensor_files import read_checkpoint
from mim_components.utils.text import root_cause
from mim_components.weights.contract import TRAINING_VOLUMES, InputContract, find_contract, read_facts
from mim_tools.bundle_files.compose import as_text
from mim_tools.export import FORMATS, export, from_encoder, has_onnx, read_pairs
from mim_tools.release_texts import check_metadata, model_card, tell_of_weights
from mim_tools.verify.bundle import judge_bundle
from mim_tools.verify.findings import table

logger = logging.getLogger(__name__)
RUNS = "cache checkpoints run* mlruns* demo pictures evaluation inference *.pt *.safetensors *.sha256 *.jsonl *.log"
SIZES = ("roi_size", "input_size")


class ReleaseError(ValueError):
    """A check of the release has failed; says which and why."""


def make_release(
    bundle: Path,
    weights: Path,
    output: Path,
    url: str,
    options: Mapping[str, Any] | None = None,
    version: str | None = None,
    changes: str = "",
) -> Path:
    """Write folder and archive of a release, after all checks.

    Args:
        bundle: folder of the bundle.
        weights: `model.pt` of a run, with what the run wrote beside it.
        output: folder for the release; created if missing.
        url: https address below which the weights files will be, for `large_files.yml`, which also has their sha256;
            `{version}` in it becomes that of the release.
        options: options of the training that are not stored beside the weights.
        version: version of the release; None = that of the bundle.
        changes: line for the changelog; required if the version has none there.

    Returns:
        The archive.

    Raises:
        ReleaseError: a check has failed.
        ValueError: the weights are damaged or do not fit the bundle.
        OSError: a file cannot be read or written.
    """
    folder = output / bundle.name
    if not url.startswith("https://"):
        raise ReleaseError(f"the address of the weights must begin with https://, got {url!r}.")
    if folder.exists():
        raise ReleaseError(f"{folder}: exists already; remove it, or choose another --output.")
    if not (bundle / "configs" / "metadata.json").is_file() or not weights.is_file():
        missing = bundle / "configs" / "metadata.json" if weights.is_file() else weights
        raise ReleaseError(f"{missing}: there is no such file.")
    shutil.copytree(bundle, folder, ignore=shutil.ignore_patterns(*RUNS.split()))
    try:
        facts = _add_weights(weights, folder / "models")
        _add_encoders(bundle / "models", folder / "models")
        _set_options(folder, weights, facts, dict(options or {}))
        _set_metadata(folder, facts, version, changes)
        metadata = _metadata(folder)
        address = url.replace("{version}", metadata["version"]).rstrip("/")
        (folder / "large_files.yml").write_text(_large_files(folder / "models", address), encoding="utf-8")
        for line in check(folder):
            logger.info("%s", line)
        _add_code(folder)
        tell_of_weights(folder, metadata, facts, sha256(folder / "models" / "model.pt"))
        (folder / "README.md").write_text(model_card(folder, metadata), encoding="utf-8")
        (folder / "requirements.txt").write_text(_requirements(metadata), encoding="utf-8")
    except BaseException:
        shutil.rmtree(folder)
        raise
    return _pack(folder, output / f"{bundle.name}_v{metadata['version']}.zip")


def _add_weights(weights: Path, models: Path) -> dict[str, Any]:
    """Copy `model.pt` and its companions, and write it as safetensors; returns the facts stored beside it."""
    state = read_checkpoint(weights)
    if "network" in state:
        raise ReleaseError(f"{weights}: is a checkpoint of a run, expected its models/model.pt.")
    write_with_digest(models / "model.pt", lambda partial: shutil.copyfile(weights, partial))
    # copies, because safetensors refuses tensors that share memory
    tensors = {name: value.clone().contiguous() for name, value in state.items()}
    write_with_digest(models / "model.safetensors", lambda partial: save_file(tensors, partial))
    facts = read_facts(weights.with_suffix(".json"))
    if facts:
        shutil.copyfile(weights.with_suffix(".json"), models / "model.json")
    for path in (weights.with_name(TRAINING_VOLUMES), *weights.parent.glob("encoder*.safetensors*")):
        if path.is_file():
            shutil.copyfile(path, models / path.name)
    return facts


def _add_encoders(source: Path, models: Path) -> None:
    """Copy weights for which a bundle has a page, such as `encoder_tiny.md`: page, weights and digest."""
    for page in sorted(each for each in source.glob("*.md") if each.name != "README.md"):
        weights = page.with_suffix(".safetensors")
        if not weights.is_file() or not check_digest(weights):
            raise ReleaseError(f"{page}: describes {weights.name}, but these or their digest are missing here.")
        for path in (weights, digest_file(weights)):
            shutil.copyfile(path, models / path.name)


def _set_options(folder: Path, weights: Path, facts: Mapping[str, Any], options: dict[str, Any]) -> None:
    """Make the settings of the training the defaults of the release."""
    metadata = _metadata(folder)
    settings = {**facts.get("settings", {}), **options}
    found = find_contract(weights)
    if metadata["workflow"] == "pretraining" and found is not None:
        settings = {**_of_contract(found[0]), **options}
    if facts and "label_set" not in settings and metadata["workflow"] == "segmentation":
        settings["label_set"] = _label_set(folder, facts["targets"])
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


def _label_set(folder: Path, targets: Sequence[str]) -> str | None:
    """Name of the label set with these targets; None for the default."""
    for name in ["default", *_metadata(folder)["dataset"]["label_sets"]]:
        parser = _parser(folder, {"label_set": name})
        if list(parser.get_parsed_content("labels").targets) == list(targets):
            return None if name == "default" else name
    raise ReleaseError(f"{folder.name} has no label set with the targets of the weights: {', '.join(targets)}.")


def _set_metadata(folder: Path, facts: Mapping[str, Any], version: str | None, changes: str) -> None:
    metadata = _metadata(folder)
    metadata["version"] = version or metadata["version"]
    if changes:
        if metadata["version"] in metadata["changelog"]:
            raise ReleaseError(
                f"version {metadata['version']} has a line in the changelog already; give a new --version."
            )
        metadata["changelog"] = {metadata["version"]: changes, **metadata["changelog"]}
    if facts.get("metric_value") is not None:
        metadata["eval_metrics"] = {facts["metric"]: facts["metric_value"]}
    parser = _parser(folder)
    size = next((parser[name] for name in SIZES if name in parser), None)
    for tensor in (*_tensors(metadata, "inputs"), *_tensors(metadata, "outputs")):
        if size is not None and len(tensor["spatial_shape"]) == 3:
            tensor["spatial_shape"] = list(size)
    text = json.dumps(metadata, indent=4, ensure_ascii=False) + "\n"
    (folder / "configs" / "metadata.json").write_text(text, encoding="utf-8")


def _tensors(metadata: Mapping[str, Any], side: str) -> list[dict[str, Any]]:
    return list(metadata["network_data_format"][side].values())


def check(folder: Path) -> list[str]:
    """Check a bundle with its weights; returns a line per check.

    Raises:
        ReleaseError: a check has failed.
    """
    lines = [check_metadata(folder, _metadata(folder), ReleaseError)]
    if findings := judge_bundle(folder):
        raise ReleaseError(f"{folder}: verify found:\n{table(findings)}")
    lines.append("verify: nothing found")
    network = _parser(folder).get_parsed_content("trained").network
    (image,), (pred,) = (_tensors(_metadata(folder), side) for side in ("inputs", "outputs"))
    shape = (1, image["num_channels"], *image["spatial_shape"])
    with torch.no_grad():
        output = network(torch.rand(shape, generator=torch.Generator().manual_seed(0)))
    wanted = [pred["num_channels"], *(pred["spatial_shape"] if len(pred["spatial_shape"]) == 3 else [])]
    if list(output.shape[1:]) != wanted or not output.isfinite().all():
        raise ReleaseError(f"the network maps {shape} to {list(output.shape[1:])}, the metadata says {wanted}.")
    lines.append(f"network: these weights map {shape} to {tuple(output.shape)}")
    encoder = folder / "models" / "encoder.safetensors"
    if _metadata(folder)["workflow"] == "pretraining" and encoder.is_file():
        network, shape = from_encoder(encoder)
    for ending in FORMATS:
        if ending == ".onnx" and not has_onnx:
            lines.append('export: ONNX not tried, pip install -e ".[export]"')
            continue
        path = folder / f"exported{ending}"
        try:
            lines.append(f"export: {ending[1:]} differs from PyTorch by {export(network, shape, path):.1g} at most")
        finally:
            path.unlink(missing_ok=True)
    return lines


def _parser(folder: Path, options: Mapping[str, Any] | None = None) -> ConfigParser:
    parser = ConfigParser()
    parser.read_meta(folder / "configs" / "metadata.json")
    parser.read_config(folder / "configs" / "inference.json")
    parser.update({"bundle_root": str(folder.absolute()), "output_dir": str(folder.absolute()), **(options or {})})
    return parser


def _metadata(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
    return read


def _add_code(folder: Path) -> None:
    """Copy the packages that the configurations name into the bundle."""
    source = Path(mim_components.__file__).parents[1]
    texts = "".join(path.read_text(encoding="utf-8") for path in (folder / "configs").glob("*.json"))
    for package in ("mim_components", "mim_tools"):
        if f"{package}." in texts:
            shutil.copytree(source / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))


def _requirements(metadata: Mapping[str, Any]) -> str:
    first = {
        "monai": metadata["monai_version"],
        "torch": metadata["pytorch_version"],
        "numpy": metadata["numpy_version"],
    }
    packages = {**first, **metadata["required_packages_version"]}
    return "".join(f"{name}=={number}\n" for name, number in packages.items())


def _large_files(models: Path, url: str) -> str:
    """List the weights files with digests and addresses; the Model Zoo does not store them."""
    lines = ["large_files:"]
    for path in sorted(each for each in models.iterdir() if each.suffix in (".pt", ".safetensors")):
        name = f"models/{path.name}"
        lines += [f'  - path: "{name}"', f'    url: "{url}/{name}"']
        lines += [f'    hash_val: "{sha256(path)}"', '    hash_type: "sha256"']
    return "\n".join(lines) + "\n"


def _pack(folder: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(each for each in folder.rglob("*") if each.is_file()):
            packed.write(path, path.relative_to(folder.parent))
    return archive


def make_wheel(output: Path) -> str:
    """Build the wheel of the packages in a folder; returns a line about it."""
    source = Path(mim_components.__file__).parents[1]
    if not (source / "setup.cfg").is_file():
        return "wheel: not built, this is not a clone of the repository"
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(output), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ReleaseError(f"the wheel could not be built: {done.stderr.strip().splitlines()[-1]}")
    return f"wheel: {next(output.glob('mim_components-*.whl'))}"


def push(folder: Path, repo: str, token: str | None = None) -> str:
    """Upload a release to the Hugging Face Hub, tagged with its version; returns the address.

    MONAI replaces the card by one made from docs/README.md, if there is one.
    """
    with tempfile.TemporaryDirectory() as place:
        staged = Path(shutil.copytree(folder, Path(place) / folder.name))
        (staged / "docs" / "README.md").unlink()
        return str(push_to_hf_hub(repo, folder.name, place, token, version=_metadata(folder)["version"]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the release; returns 1 if a check failed."""
    parser = argparse.ArgumentParser(
        "python -m mim_tools.release", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument("--weights", type=Path, required=True, help="model.pt of a run")
    parser.add_argument("--output", type=Path, default=Path("release"), help="folder for the release")
    parser.add_argument("--version", help="version of the release, default that of the bundle")
    parser.add_argument("--changes", default="", help="line for the changelog")
    parser.add_argument(
        "--url",
        help="https address below which the weights will lie, {version} is that of the release; default that of --push",
    )
    parser.add_argument("--no_wheel", action="store_true", help="do not build the wheel")
    parser.add_argument(
        "--push", metavar="OWNER/NAME", help="upload to the Hugging Face Hub, by MONAI's push_to_hf_hub"
    )
    parser.add_argument("--token", help="token of the Hub; default is the stored one")
    known, rest = parser.parse_known_args(arguments)
    options = read_pairs(rest, parser)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    url = known.url or (f"https://huggingface.co/{known.push}/resolve/{{version}}" if known.push else None)
    if url is None:
        parser.error("the address of the weights is missing: give --url https://..., or --push")
    if known.push and not optional_import("huggingface_hub")[1]:
        parser.error('--push needs huggingface_hub: pip install -e ".[hub]"')
    try:
        archive = make_release(known.bundle, known.weights, known.output, url, options, known.version, known.changes)
        if not known.no_wheel:
            print(make_wheel(known.output))
        print(f"{archive}: {as_size(archive.stat().st_size)}")
        if known.push:
            print(push(known.output / known.bundle.name, known.push, known.token))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"ERROR {root_cause(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
