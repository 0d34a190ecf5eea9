"""Transfer pre-trained weights into a fine-tuning network if they fit it and its input."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
from monai.networks.nets import ViT
from torch import nn

from mim_components.data.volumes import per_axis
from mim_components.networks.hybrid import HybridEncoder
from mim_components.networks.presets import PRESETS
from mim_components.weights.contract import InputContract, find_contract
from mim_components.weights.pretrained import LoadReport, PretrainedError, copy_encoder, encoder_of

logger = logging.getLogger(__name__)

IGNORABLE = ("orientation", "intensity")
WINDOW = "an HU window, clipped and scaled to [0, 1]"
PERCENTILE_WINDOW = "percentiles {} to {} of each volume, clipped and scaled to [0, 1]"


def start_from(
    network: nn.Module,
    pretrained: str | Path | None,
    orientation: str,
    intensity: object,
    ignore: Sequence[str] = (),
    positions: str = "rescaled",
    spacing: Sequence[float] | None = None,
) -> LoadReport | None:
    """Load pre-trained weights into `network`, in place, or leave it unchanged; the log says what was loaded.

    Args:
        network: fine-tuning network, before it is wrapped for several devices.
        pretrained: `encoder.safetensors`, `model.pt` or a checkpoint of a pre-training; "none" = from scratch.
        orientation: axis codes of the images that the network will see.
        intensity: the transform that scales intensities, array or dictionary version, or its configuration with
            `_target_`.
        ignore: what may differ from the input that the weights were trained on: "orientation", "intensity".
        positions: see `mim_components.weights.pretrained.load_pretrained`.
        spacing: voxel size of the images, mm along their axes; a warning says when it is more than twice or less than
            half of that of the training. None, or a value that is not positive, = native voxels.

    Returns:
        What was loaded; None from scratch.

    Raises:
        ValueError: `pretrained` is not given, or `ignore` names anything else.
        OtherVersionError: the weights predate the present hybrid encoder.
        PretrainedError: the file is missing, does not fit the network, or was trained on other input; says what to
            do.

    Example:
        >>> network = HybridEncoder(preset="nano")
        >>> print(start_from(network, "none", "RAS", {"_target_": "NormalizeIntensityd"}))  # from scratch
        None
    """
    _check_ignore(ignore)
    if pretrained is None:
        raise ValueError(
            "pretrained is not set: give --pretrained PATH (encoder.safetensors, model.pt or a checkpoint of "
            "mim_pretrain), or --pretrained none to train from scratch."
        )
    if str(pretrained) == "none":
        logger.info("Training from scratch: the weights of %s are random.", type(network).__name__)
        return None
    path = Path(pretrained)
    if not path.is_file():
        cause = "is a folder; give a file in it" if path.is_dir() else f"no such file, seen from {Path.cwd()}; set it"
        raise PretrainedError(f"{path}: {cause} with --pretrained, or use --pretrained none.")
    notes = _check_input(network, path, orientation, intensity, ignore, spacing)
    report = copy_encoder(network, path, positions)
    report = replace(report, notes=(*notes, *report.notes))
    logger.info("Pre-trained weights from %s: %s", path, report)
    return report


def _check_ignore(ignore: Sequence[str]) -> None:
    names = [ignore] if isinstance(ignore, str) else list(ignore)
    unknown = [name for name in names if name not in IGNORABLE]
    if unknown or isinstance(ignore, str):
        raise ValueError(
            f"ignore_contract must be a list of {' and '.join(map(repr, IGNORABLE))}, got {ignore!r}; "
            "what determines the shapes of the weights cannot be ignored."
        )


def _check_input(
    network: nn.Module,
    path: Path,
    orientation: str,
    intensity: object,
    ignore: Sequence[str],
    spacing: Sequence[float] | None,
) -> tuple[str, ...]:
    """Compare network and input with the contract of the weights; returns remarks for the report."""
    encoder = encoder_of(network)
    kind = _kind(encoder)
    if kind is None:
        raise PretrainedError(
            f"{path}: {type(network).__name__} has no encoder that MiM pre-trains and can only start from scratch; "
            "use --pretrained none, or another --architecture."
        )
    found = find_contract(path)
    if found is None:
        return ("input contract unknown: neither in the file nor in an encoder.safetensors beside it; not compared",)
    contract, source = found
    _check_architecture(path, contract, encoder, kind)
    conflicts = _input_conflicts(contract, orientation, intensity)
    hard = {name: text for name, text in conflicts.items() if name not in ignore}
    if hard:
        raise PretrainedError(
            f"{path}: trained on other input. " + "; ".join(f"{name}: {text}" for name, text in hard.items()) + ". "
            f'If that is intended, add --started::ignore "{sorted({*hard, *ignore})}".'
        )
    _warn_of_spacing(path, contract, orientation, spacing)
    notes = [_describe(contract, source, intensity)]
    return (*notes, *(f"conflict ignored as asked: {name}: {text}" for name, text in conflicts.items()))


def _kind(encoder: nn.Module) -> str | None:
    """Kind of encoder as in `InputContract.encoder`; None for one that MiM does not pre-train."""
    if isinstance(encoder, HybridEncoder):
        return "hybrid"
    return "vit" if isinstance(encoder, ViT) else None


def _check_architecture(path: Path, contract: InputContract, encoder: nn.Module, kind: str) -> None:
    """Refuse weights whose sizes differ from the encoder's, by name."""
    pairs: list[tuple[str, object, object]] = [("encoder", contract.encoder, kind)]
    if contract.encoder == kind:
        presets, patch_size = _sizes(encoder)
        if presets and contract.preset not in presets:
            pairs.append(("preset", contract.preset, presets[0]))
        pairs.append(("token size in voxels (patch_size)", contract.patch_size, patch_size))
    wrong = [f"{what}: {have} in the file, {want} in the network" for what, have, want in pairs if have != want]
    if wrong:
        hint = "--architecture" if contract.encoder != kind else "--preset"
        raise PretrainedError(f"{path}: does not fit the network. {'; '.join(wrong)}. Set {hint} as in the training.")


def _sizes(encoder: nn.Module) -> tuple[list[str], int]:
    """Names of the presets with an encoder's widths, and the edge of its tokens in voxels."""
    if isinstance(encoder, HybridEncoder):
        presets = [name for name, preset in PRESETS.items() if preset.hybrid.channels == encoder.channels]
        return presets, encoder.patch_size
    width, _, edge, *_ = encoder.state_dict()["patch_embedding.patch_embeddings.weight"].shape
    return [name for name, preset in PRESETS.items() if preset.vit.hidden_size == width], edge


def _input_conflicts(contract: InputContract, orientation: str, intensity: object) -> dict[str, str]:
    conflicts = {}
    if orientation != contract.orientation:
        conflicts["orientation"] = f"{contract.orientation} in the contract of the weights, {orientation} here"
    kind, _ = _intensity(intensity)
    trained = PERCENTILE_WINDOW.format(*contract.percentiles) if contract.percentiles else WINDOW
    if kind != trained:
        conflicts["intensity"] = f"{trained}, in the contract of the weights, {kind} here"
    return conflicts


def _warn_of_spacing(
    path: Path, contract: InputContract, orientation: str, spacing: Sequence[float] | None
) -> None:  # fmt: skip
    if contract.spacing is None or spacing is None:
        return
    axes = nib.orientations.axcodes2ornt(orientation)[:, 0]  # of R, A, S
    trained = [contract.spacing[int(axis)] for axis in axes]
    if any(max(here / there, there / here) > 2 for here, there in zip(spacing, trained, strict=True) if here > 0):
        logger.warning(
            "%s: trained on voxels of %s mm, here they are %s mm: more than twice as long or as short along an axis, "
            "so structures look unlike those of the training.",
            path,
            per_axis(trained),
            per_axis(spacing),
        )


def _intensity(transform: object) -> tuple[str, tuple[float, float] | None]:
    """Kind of an intensity scaling, and its window in HU if it has one."""
    names = ("a_min", "a_max", "lower", "upper", "b_min", "b_max", "clip", "relative", "channel_wise")
    settings: dict[str, Any]
    if isinstance(transform, Mapping):
        name = str(transform.get("_target_", "a dictionary without _target_")).rpartition(".")[-1]
        settings = {key: transform.get(key) for key in names}
    else:
        name = type(transform).__name__
        scaler = getattr(transform, "scaler", transform)  # of a dictionary version
        settings = {key: getattr(scaler, key, None) for key in names}
    if not (match := re.fullmatch("ScaleIntensityRange(Percentiles)?(d|D|Dict)?", name)):
        return name, None
    window = None if match[1] else (settings["a_min"], settings["a_max"])
    if (settings["b_min"], settings["b_max"], bool(settings["clip"])) != (0, 1, True):
        clipped = "clipped" if settings["clip"] else "not clipped"
        return f"{name} to [{settings['b_min']}, {settings['b_max']}], {clipped}", window
    if match[1]:
        return ("relative " if settings["relative"] else "") + PERCENTILE_WINDOW.format(
            settings["lower"], settings["upper"]
        ), None
    return WINDOW, window


def _input_of(contract: InputContract) -> str:
    if contract.percentiles:
        return "MR from percentile {} to {}".format(*contract.percentiles)
    return f"HU window {list(contract.hu_window or ())}"


def _describe(contract: InputContract, source: Path, intensity: object) -> str:
    text = (
        f"input contract, from {source.name}: {contract.encoder} encoder, preset {contract.preset}, "
        f"in_channels {contract.in_channels}, tokens of {contract.patch_size} voxels, {contract.orientation}, "
        f"{_input_of(contract)}, {contract.step} steps"
    )
    kind, window = _intensity(intensity)
    differs = kind == WINDOW and window is not None and tuple(window) != contract.hu_window
    return text + (f"; the window here is {list(window or ())}, the same in kind" if differs else "")
