"""Make a release of a bundle: a checked archive with weights and the code it needs.

python -m mim_tools.release bundles/mim_btcv_segmentation --weights out/models/model.pt --output release

The archive runs from its own folder where the packages of its requirements.txt are installed. Beside it are
its folder and, from a clone, a wheel of mim_components. Options of the training that are not stored beside the weights,
such as --projection_dim, must be given as they were in training.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import push_to_hf_hub
from monai.utils import optional_import

import mim_components
from mim_components.utils.files import as_size, sha256
from mim_components.utils.text import root_cause
from mim_tools.export import FORMATS, export, from_encoder, has_onnx, read_pairs
from mim_tools.release_files import (
    ReleaseError,
    add_code,
    add_encoders,
    add_weights,
    copy_bundle,
    large_files,
    left_out,
    pack,
)
from mim_tools.release_metadata import (
    name_of_label_set,
    read_configuration,
    read_metadata,
    set_metadata,
    set_options,
    tensors_of,
)
from mim_tools.release_texts import check_metadata, model_card, tell_of_weights
from mim_tools.verify.bundle import judge_bundle
from mim_tools.verify.findings import table

logger = logging.getLogger(__name__)


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
    folder.mkdir(parents=True)
    try:
        copy_bundle(bundle, folder)
        facts = add_weights(weights, folder / "models")
        add_encoders(bundle / "models", folder / "models")
        if names := left_out(bundle, folder):
            logger.warning("not in the release, and no output of a run: %s", ", ".join(names))
        set_options(folder, weights, facts, dict(options or {}))
        set_metadata(folder, facts, version, changes)
        metadata = read_metadata(folder)
        address = url.replace("{version}", metadata["version"]).rstrip("/")
        (folder / "large_files.yml").write_text(large_files(folder / "models", address), encoding="utf-8")
        for line in check(folder):
            logger.info("%s", line)
        add_code(folder)
        digest = sha256(folder / "models" / "model.pt")
        tell_of_weights(folder, metadata, facts, digest, name_of_label_set(folder))
        (folder / "README.md").write_text(model_card(folder, metadata), encoding="utf-8")
        (folder / "requirements.txt").write_text(_requirements(metadata), encoding="utf-8")
    except BaseException:
        shutil.rmtree(folder)
        raise
    return pack(folder, output / f"{bundle.name}_v{metadata['version']}.zip")


def check(folder: Path) -> list[str]:
    """Check a bundle with its weights; returns a line per check.

    Raises:
        ReleaseError: a check has failed.
    """
    lines = [check_metadata(folder, read_metadata(folder), ReleaseError)]
    if findings := judge_bundle(folder):
        raise ReleaseError(f"{folder}: verify found:\n{table(findings)}")
    lines.append("verify: nothing found")
    network = read_configuration(folder).get_parsed_content("trained").network
    (image,), (pred,) = (tensors_of(read_metadata(folder), side) for side in ("inputs", "outputs"))
    shape = (1, image["num_channels"], *image["spatial_shape"])
    with torch.no_grad():
        output = network(torch.rand(shape, generator=torch.Generator().manual_seed(0)))
    wanted = [pred["num_channels"], *(pred["spatial_shape"] if len(pred["spatial_shape"]) == 3 else [])]
    if list(output.shape[1:]) != wanted or not output.isfinite().all():
        raise ReleaseError(f"the network maps {shape} to {list(output.shape[1:])}, the metadata says {wanted}.")
    lines.append(f"network: these weights map {shape} to {tuple(output.shape)}")
    encoder = folder / "models" / "encoder.safetensors"
    if read_metadata(folder)["workflow"] == "pretraining" and encoder.is_file():
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


def _requirements(metadata: Mapping[str, Any]) -> str:
    first = {
        "monai": metadata["monai_version"],
        "torch": metadata["pytorch_version"],
        "numpy": metadata["numpy_version"],
    }
    packages = {**first, **metadata["required_packages_version"]}
    return "".join(f"{name}=={number}\n" for name, number in packages.items())


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
        return str(push_to_hf_hub(repo, folder.name, place, token, version=read_metadata(folder)["version"]))


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
