"""Load the encoder of a pre-training into any network that has one, and report what was loaded."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mim_components.networks.hybrid import HybridEncoder
from mim_components.networks.mim import MiM
from mim_components.tokens import Grid, check_positions, sincos_positions, token_grid
from mim_components.utils.files import (
    WrongDigestError,
    as_full_disk,
    check_digest,
    tensor_bytes,
    tensors_writer,
    write_with_digest,
)
from mim_components.utils.tensor_files import check_finite, check_version, read_checkpoint, what_it_is
from mim_components.weights.contract import InputContract, find_contract

logger = logging.getLogger(__name__)

FIRST_CONVOLUTIONS = ("embeddings.0.conv.weight", "patch_embedding.patch_embeddings.weight")
POSITIONS = "patch_embedding.position_embeddings"
TRAINED_GRID = "_extra_state"  # of the hybrid encoder


class PretrainedError(ValueError):
    """Weights do not fit the network; names the file, and what was found and expected."""


@dataclass(frozen=True)
class LoadReport:
    """What `load_pretrained` did.

    Attributes:
        loaded: tensors that were copied.
        new: tensors of the network's encoder that the file lacks.
        ignored: tensors of the file that were not used, with the reason.
        adapted: tensors that were changed to fit, with the change.
        share: share of the encoder's parameters that were loaded, 0 to 1.
        outside: parts of the network outside its encoder, all new, with their number of tensors.
        notes: further remarks, such as where the input contract was found.
    """

    loaded: tuple[str, ...]
    new: tuple[str, ...]
    ignored: tuple[tuple[str, str], ...]
    adapted: tuple[tuple[str, str], ...]
    share: float
    outside: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors loaded, {self.share:.1%} of the encoder's parameters"]
        lines += [f"  {note}" for note in self.notes]
        lines += [f"  adapted: {name} ({how})" for name, how in self.adapted]
        lines += [f"  new: {text}" for text in _by_part((name, "in the encoder") for name in self.new)]
        lines += [f"  new: {part}: {count} tensors" for part, count in self.outside]
        lines += [f"  ignored: {text}" for text in _by_part(self.ignored)]
        return "\n".join(lines)


def _by_part(names: Iterable[tuple[str, str]], most: int = 3) -> list[str]:
    """Names with their reasons; more than `most` with the same part and reason become a count."""
    parts: dict[tuple[str, str], list[str]] = {}
    for name, why in names:
        parts.setdefault((name.partition(".")[0], why), []).append(name)
    texts = []
    for (part, why), members in parts.items():
        short = [f"{part}: {len(members)} tensors"] if len(members) > most else members
        texts += [f"{text} ({why})" for text in short]
    return texts


def save_encoder(encoder: nn.Module, path: str | Path, contract: InputContract) -> Path:
    """Write an encoder's weights as safetensors, with the input contract as metadata, and a digest beside it.

    Raises:
        FullDiskError: the disk is full; says how much space is missing.
        OSError: writing fails for another reason.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}
    try:
        return write_with_digest(Path(path), tensors_writer(state, contract.to_metadata()))
    except OSError as error:
        raise as_full_disk(error, Path(path), tensor_bytes(state)) from error


def random_encoders(contract: InputContract, seed: int, count: int) -> list[nn.Module]:
    """Encoders of a contract with random weights; PyTorch's generator stays as it is.

    Args:
        contract: input contract.
        seed: seed of the weights; the first encoder is the one that a pre-training with this seed starts from.
        count: number of encoders.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = (contract.in_channels, contract.input_size, contract.preset, contract.encoder)
        return [MiM(*sizes, num_levels=1).encoder for _ in range(count)]


def load_pretrained(network: nn.Module, path: str | Path, positions: str = "rescaled") -> LoadReport:
    """Copy a pre-trained encoder into `network`, in place.

    The encoder is `network.encoder`, `network.vit` (MONAI's UNETR), or `network` itself. A 1-channel first convolution
    is repeated for more input channels and divided by their number, so that activations keep their scale; fixed
    positions are recomputed for another grid.

    Args:
        network: network to load into.
        path: `encoder.safetensors`, `model.pt` or a checkpoint of a pre-training, or `model.safetensors` of a release.
        positions: for a ViT on a grid other than the trained one: "rescaled" to the trained range, which the input
            contract in or beside the file gives (without a contract, like "index"), or "index". The hybrid encoder has
            its own setting.

    Returns:
        What was loaded, new, ignored and adapted.

    Raises:
        OtherVersionError: the weights predate the present hybrid encoder.
        PretrainedError: nothing matches, or a shape differs in more than input channels or the position grid, or in
            that grid where the network does not keep its own, as MONAI's `ViT`.
    """
    report = copy_encoder(network, path, positions)
    logger.info("Pre-trained encoder from %s: %s", path, report)
    return report


def copy_encoder(network: nn.Module, path: str | Path, positions: str = "rescaled") -> LoadReport:
    """`load_pretrained` without logging."""
    check_positions(positions)
    target = encoder_of(network)
    source, ignored = _read_encoder(Path(path))
    found = find_contract(path)
    state = target.state_dict()
    _check_kind(source, state, path)
    stored = _trained_grid_of(source, *found, path) if found else None
    trained = None if positions == "index" else stored
    adapted: list[tuple[str, str]] = []
    loaded: dict[str, Tensor] = {}
    for name, value in source.items():
        if name in state:
            loaded[name] = _fit(name, value, state[name], network, path, adapted, trained)
        else:
            ignored.append((name, _why_ignored(name, target)))
    if not loaded:
        raise PretrainedError(
            f"{path}: 0 of {len(source)} tensors fit the network's encoder; found names such as "
            f"{sorted(source)[:3]}, expected names such as {sorted(state)[:3]}."
        )
    target.load_state_dict(loaded, strict=False)
    numbers = {name: value.numel() for name, value in state.items()}
    new = tuple(name for name in state if name not in loaded)
    share = sum(numbers[name] for name in loaded) / sum(numbers.values())
    notes = (_unknown_grid(network, stored),) if POSITIONS in loaded and _grid_of(network) is None else ()
    return LoadReport(tuple(loaded), new, tuple(ignored), tuple(adapted), share, _outside(network, target), notes)


def _trained_grid_of(source: dict[str, Tensor], contract: InputContract, contract_file: Path, path: str | Path) -> Grid:
    """The token grid of a contract; refuses a contract whose number of tokens is not that of the weights."""
    grid = token_grid(contract.input_size, contract.patch_size)
    stored = source[POSITIONS].shape[1] if POSITIONS in source else math.prod(grid)
    if stored != math.prod(grid):
        raise PretrainedError(
            f"{path}: has positions for {stored} tokens, but the input contract in {contract_file} names a grid of "
            f"{' x '.join(map(str, grid))} = {math.prod(grid)} tokens: it belongs to other weights. Put the "
            "encoder.safetensors of the same training there, or remove it."
        )
    return grid


def _why_ignored(name: str, encoder: nn.Module) -> str:
    if isinstance(encoder, HybridEncoder) and name.startswith(HybridEncoder.MASKED_ONLY):
        return "only used with masked input"
    return "the network has no such tensor"


def _outside(network: nn.Module, encoder: nn.Module) -> tuple[tuple[str, int], ...]:
    """Modules of a network other than its encoder, with their number of tensors."""
    if network is encoder:
        return ()
    parts = ((name, len(part.state_dict())) for name, part in network.named_children() if part is not encoder)
    return tuple((name, count) for name, count in parts if count)


def encoder_of(network: nn.Module) -> nn.Module:
    """The part of a network that takes pre-trained weights."""
    for name in ("encoder", "vit"):
        part = getattr(network, name, None)
        if isinstance(part, nn.Module):
            return part
    return network


def _check_kind(source: dict[str, Tensor], state: dict[str, Tensor], path: str | Path) -> None:
    """Refuse the other kind of encoder, whose transformer blocks may fit by chance."""
    for name in FIRST_CONVOLUTIONS:
        if (name in source) != (name in state) and any(other in source for other in FIRST_CONVOLUTIONS):
            found, expected = ("another kind", name) if name in state else (name, "another kind")
            raise PretrainedError(
                f"{path}: weights of another kind of encoder (hybrid or vit): the file's first layer is {found}, "
                f"the network's is {expected}."
            )


def _read_encoder(path: Path) -> tuple[dict[str, Tensor], list[tuple[str, str]]]:
    """Tensors of the encoder, alone or in a whole network, and what else the file holds, with the reason."""
    if path.suffix == ".safetensors":
        try:
            weights = load_file(path)
            check_digest(path)
        except WrongDigestError as error:
            raise PretrainedError(str(error)) from error
        except SafetensorError as error:
            raise PretrainedError(f"{path}: not a readable safetensors file ({what_it_is(path) or error}).") from error
        check_version(weights, path)
        check_finite(weights, path)
        state: dict[str, Any] = weights
    else:
        state = read_checkpoint(path)
        state = state.get("network", state)
    inside = {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}
    ignored = [(name, "not part of the encoder") for name in state if not name.startswith("encoder.")]
    return (inside, ignored) if inside else (state, [])


def _fit(
    name: str, value: Tensor, wanted: Tensor, network: nn.Module, path: str | Path, adapted: list[tuple[str, str]],
    trained: Grid | None,
) -> Tensor:  # fmt: skip
    have, want = tuple(value.shape), tuple(wanted.shape)
    if name == POSITIONS and have[2] == want[2]:
        return _positions(value, want, network, path, adapted, trained)
    if name == TRAINED_GRID:
        return _trained_grid(value, wanted, network, adapted)
    if have == want:
        return value
    if name in FIRST_CONVOLUTIONS and have[1] == 1 and have[:1] + have[2:] == want[:1] + want[2:]:
        adapted.append((name, f"1 input channel repeated {want[1]} times and divided by {want[1]}"))
        return value.expand(want) / want[1]
    cause = "another preset or patch size?"
    if name in FIRST_CONVOLUTIONS and have[:1] + have[2:] == want[:1] + want[2:]:
        cause = f"weights for {have[1]} input channels cannot be used for {want[1]}, only those for 1 channel can."
    raise PretrainedError(f"{path}: {name} has shape {have}, the network needs {want}; {cause}")


def _trained_grid(value: Tensor, own: Tensor, network: nn.Module, adapted: list[tuple[str, str]]) -> Tensor:
    """The grid that the weights were trained on, which replaces the network's; reports where they differ."""
    differs = bool(value.any() and own.any()) and not torch.equal(value, own)
    if differs and getattr(encoder_of(network), "positions", None) == "rescaled":
        adapted.append(("positions", f"of the grid {tuple(own.tolist())} rescaled to {tuple(value.tolist())}"))
    return value


def _positions(
    value: Tensor,
    want: tuple[int, ...],
    network: nn.Module,
    path: str | Path,
    adapted: list[tuple[str, str]],
    trained: Grid | None,
) -> Tensor:
    """Fixed positions for the network's grid; those of the file if the grid is the same, or is not known."""
    grid = _grid_of(network)
    if grid is None:
        if value.shape[1] != want[1]:
            raise PretrainedError(
                f"{path}: has positions for {value.shape[1]} tokens, the network has {want[1]} tokens and does not say "
                "in which grid, so their positions cannot be computed; build it with the img_size of the weights, or "
                "use mim_components.networks.ViTEncoder or MONAI's UNETR, which know their grid."
            )
        return value
    positions = sincos_positions(grid, want[2], value, trained)
    if positions.shape == value.shape and torch.allclose(positions, value, atol=1e-5):
        return value
    how = f"fixed positions computed for the grid {grid}"
    adapted.append((POSITIONS, how + (f", rescaled to {trained}" if trained else "")))
    return positions


def _grid_of(network: nn.Module) -> Grid | None:
    """The token grid of a ViT network; None if it keeps neither grid nor size of the image, like MONAI's ViT."""
    grid = getattr(network, "feat_size", None) or getattr(encoder_of(network), "grid", None)
    if grid is None:
        sizes = [getattr(network, name, None) for name in ("img_size", "patch_size")]  # of MONAI's ViTAutoEnc
        if not all(isinstance(size, tuple) for size in sizes):
            return None
        grid = [side // edge for side, edge in zip(*sizes, strict=True)]
    h, w, d = grid
    return h, w, d


def _unknown_grid(network: nn.Module, trained: Grid | None) -> str:
    """Remark where positions were taken as they are because the network does not say its grid."""
    text = f"the grid {trained}" if trained else "their training"
    return (
        f"positions: those of {text}, unchanged: {type(encoder_of(network)).__name__} does not keep its img_size; they "
        "are wrong where the grid of the network is another one with as many tokens"
    )
