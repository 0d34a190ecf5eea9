"""The input that an encoder expects, and the settings of a fine-tuned network, stored with the weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mim_components import __version__
from mim_components.transforms.intensity import IntensityScale
from mim_components.utils.files import write_text_safely
from mim_components.utils.tensor_files import CONTRACT_VERSION, OtherVersionError, what_it_is

TRAINING_VOLUMES = "training_volumes.txt"  # beside the weights: the content of each scan of the training, one per line


class WrongWeightsError(ValueError):
    """The checkpoint was trained with settings other than the configuration's; names file, settings and remedy."""


# missing from contracts written before MR was supported, or before standardised tokens were recorded
_EARLIER = {"modality": '"ct"', "percentiles": "null", "normalize_target": "false"}


@dataclass(frozen=True)
class InputContract:
    """How to prepare input for an encoder, and how the encoder was trained.

    Attributes:
        encoder: "hybrid" or "vit".
        preset: name of the sizes.
        in_channels: channels of the image.
        patch_size: edge of a token, voxels.
        input_size: size of the volumes it was trained on, voxels.
        level_sizes: native sizes of the levels, outermost first, voxels.
        hu_window: CT intensities that become 0 and 1, HU; values outside are clipped. None = -1000 to 1000.
        orientation: axis codes of (H, W, D).
        axes: order of the axes of a batch.
        step: optimizer steps of pre-training.
        version: version of this project that wrote it.
        contract_version: version of the layers and of this contract; other versions are refused.
        spacing: voxel size that volumes were resampled to, mm along R, A and S; None = native voxels.
        modality: "ct" or "mr".
        percentiles: percentiles of each MR volume that become 0 and 1; values outside are clipped. None = 0.5 and 99.5.
        normalize_target: the decoder predicts standardised tokens; the encoder's input does not depend on it.

    Raises:
        ValueError: unknown modality.

    Example:
        >>> contract = InputContract("hybrid", "nano", 1, 8, (32, 32, 32), ((64, 64, 64), (32, 32, 32)))
        >>> contract.to_metadata()["hu_window"]
        '[-1000.0, 1000.0]'
        >>> InputContract.from_metadata(contract.to_metadata(), "encoder.safetensors") == contract
        True
    """

    encoder: str
    preset: str
    in_channels: int
    patch_size: int
    input_size: tuple[int, ...]
    level_sizes: tuple[tuple[int, ...], ...]
    hu_window: tuple[float, float] | None = None
    orientation: str = "RAS"
    axes: str = "BCHWD"
    step: int = 0
    version: str = __version__
    contract_version: int = CONTRACT_VERSION
    spacing: tuple[float, ...] | None = None
    modality: str = "ct"
    percentiles: tuple[float, float] | None = None
    normalize_target: bool = False

    def __post_init__(self) -> None:
        """Set the scaling that follows from the modality."""
        scale = IntensityScale(self.modality)
        if self.hu_window is None:
            object.__setattr__(self, "hu_window", scale.hu_range)
        if self.percentiles is None:
            object.__setattr__(self, "percentiles", scale.percentiles)

    def to_metadata(self) -> dict[str, str]:
        """Convert to the metadata of a safetensors file: strings, each value as JSON."""
        return {name: json.dumps(value) for name, value in asdict(self).items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str] | None, source: str | Path) -> InputContract:
        """Inverse of `to_metadata`; `source` is named in errors.

        Raises:
            OtherVersionError: the contract has another version.
            ValueError: an entry is missing or damaged, or the modality is unknown.
        """
        names = [field.name for field in fields(cls)]
        if metadata and any(name in metadata for name in names):
            found = metadata.get("contract_version", "1")
            if found != str(CONTRACT_VERSION):
                raise OtherVersionError(source, found)
        metadata = None if metadata is None else {**_EARLIER, **metadata}
        missing = [name for name in names if name not in (metadata or {})]
        if missing or metadata is None:
            raise ValueError(f"{source}: no input contract in its metadata, missing: {', '.join(missing)}.")
        values: dict[str, Any] = {}
        for name in names:
            try:
                values[name] = _tuples(json.loads(metadata[name]))
            except ValueError as error:
                raise ValueError(f"{source}: {name} of its input contract is damaged ({error}).") from error
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{source}: its input contract cannot be used: {error}") from error


def _tuples(value: Any) -> Any:
    return (
        tuple(_tuples(each) for each in value) if isinstance(value, Sequence) and not isinstance(value, str) else value
    )


def read_contract(path: str | Path) -> InputContract:
    """The input contract of an `encoder.safetensors`; only its header is read.

    Raises:
        OtherVersionError: its contract has another version.
        ValueError: not a safetensors file, or one without a contract.
    """
    return InputContract.from_metadata(_metadata(path), path)


def file_beside(weights: Path, name: str) -> Path | None:
    """A file beside weights or, for a checkpoint of a run, in the run's `models`; None if there is none."""
    folders = [weights.parent]
    if weights.parent.name == "checkpoints":
        folders.append(weights.parent.parent / "models")
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def read_training_volumes(weights: Path) -> frozenset[str]:
    """Content of the scans that weights were trained on, see `write_training_volumes`; empty if unknown."""
    found = file_beside(weights, TRAINING_VOLUMES)
    return frozenset(found.read_text(encoding="utf-8").splitlines() if found else ())


def write_training_volumes(models: Path, contents: Iterable[str]) -> None:
    """Write what `read_training_volumes` reads.

    Args:
        models: folder of the weights.
        contents: `content` of the volumes of a pre-training, see `PreparedVolume`, or `images` of the training cases of
            a fine-tuning, see `PreparedCases`.

    Raises:
        FullDiskError: the disk is full.
    """
    write_text_safely(models / TRAINING_VOLUMES, "".join(f"{content}\n" for content in sorted(contents)))


def step_in_name(weights: Path) -> int | None:
    """Step of a checkpoint of a run, such as `step_00000500.pt`; None for other names."""
    number = re.fullmatch(r"step_(\d{8})\.pt", weights.name)
    return int(number[1]) if number else None


def find_contract(weights: str | Path) -> tuple[InputContract, Path] | None:
    """The input contract of a weights file, and the file that holds it; None if there is none.

    Args:
        weights: a safetensors file with the contract in its metadata, or any other file beside an
            `encoder.safetensors`, or a checkpoint of a run, whose `models` has one; the contract then has the step of
            the checkpoint.

    Raises:
        OtherVersionError: it is a contract of another version.
        ValueError: the file with the contract cannot be read, or holds only part of it.
    """
    path = Path(weights)
    places = [path if path.suffix == ".safetensors" else None, file_beside(path, "encoder.safetensors")]
    known = {field.name for field in fields(InputContract)}
    for source in (place for place in places if place is not None and place.is_file()):
        if known & (metadata := _metadata(source)).keys():
            break
    else:
        return None
    contract = InputContract.from_metadata(metadata, source)
    step = step_in_name(path)
    return (contract if step is None else replace(contract, step=step)), source


def find_facts(weights: Path) -> dict[str, Any]:
    """`read_facts` of the JSON file beside weights or, for a checkpoint of a run, of the `model.json` in its `models`.

    The latter is about the best model, so the metric is left out, and the step is that of the checkpoint.

    Raises:
        WrongWeightsError: the file is damaged.
    """
    step = step_in_name(weights)
    source = weights.with_suffix(".json") if step is None else file_beside(weights, "model.json")
    facts = read_facts(source) if source else {}
    if not facts or step is None:
        return facts
    return {name: value for name, value in facts.items() if not name.startswith("metric")} | {"step": step}


def _metadata(path: str | Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file ({what_it_is(path) or error}).") from error


@dataclass(frozen=True)
class ModelSettings:
    """The settings that must agree between the training of a network and its use.

    Attributes:
        bundle: name of the bundle.
        settings: values by option name.
        targets: names of what the output channels stand for.

    Example:
        >>> settings = ModelSettings("mim_btcv_segmentation", {"spacing": (1.5, 1.5, 2.0)}, ("spleen", "liver"))
        >>> settings.as_dict()["settings"], settings.as_dict()["targets"]
        ({'spacing': [1.5, 1.5, 2.0]}, ['spleen', 'liver'])
    """

    bundle: str
    settings: Mapping[str, Any]
    targets: Sequence[str]

    def as_dict(self) -> dict[str, Any]:
        """Convert for `model.json`; tuples become lists, as in JSON."""
        values = {"bundle": self.bundle, "settings": dict(self.settings), "targets": list(self.targets)}
        return {**json.loads(json.dumps(values)), "version": __version__}


def read_facts(path: Path) -> dict[str, Any]:
    """Read a `model.json`: `ModelSettings.as_dict` and facts about the training; empty if there is no such file.

    Raises:
        WrongWeightsError: the file is damaged.
    """
    if not path.exists():
        return {}
    try:
        facts: dict[str, Any] = json.loads(path.read_text())
        facts["settings"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WrongWeightsError(f"{path}: damaged ({error}); remove it to use the weights unchecked.") from error
    return facts
