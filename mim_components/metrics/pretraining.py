"""Metrics of pre-training: error on masked voxels, and how often a child's context finds its parent token.

Axes: image (B, C, H, W, D); prediction (B, M, P), M masked tokens of P voxels; context (children, D); patches
(parents, N, D). Intensities are scaled to [0, 1].
"""

from __future__ import annotations

import math
from operator import itemgetter
from typing import Any

import torch
import torch.nn.functional as F
from ignite.metrics import Metric, MetricsLambda
from torch import Tensor

from mim_components.losses import alignment_loss
from mim_components.tokens import gather_tokens, patchify, restore_tokens, visible_and_masked_ids


def reconstruction_scores(
    prediction: Tensor, image: Tensor, masked: Tensor, patch_size: int, standardized: bool = False
) -> dict[str, Tensor]:
    """Mean squared errors on masked voxels, one per volume.

    Args:
        prediction: voxels of the masked tokens in ascending token order, `(B, M, P)`.
        image: `(B, C, H, W, D)`.
        masked: bool `(B, N)`, True = hidden.
        patch_size: edge of a token, voxels.
        standardized: the prediction is of standardised tokens; it gets mean and standard deviation of the true token.

    Returns:
        `mse` of the prediction; `mse_visible_mean` of a constant, the mean of the volume's visible voxels; and with
        `standardized` `mse_token_mean`, of the mean of the true token. Each float64 `(B,)` on the CPU.
    """
    visible_ids, masked_ids = visible_and_masked_ids(masked, masked.shape[1] - prediction.shape[1])
    tokens = patchify(image.float(), patch_size)
    target = gather_tokens(tokens, masked_ids)
    prediction = prediction.float()
    guesses = {"mse_visible_mean": gather_tokens(tokens, visible_ids).mean((1, 2), keepdim=True)}
    if standardized:
        prediction = restore_tokens(prediction, target)
        guesses["mse_token_mean"] = target.mean(2, keepdim=True)
    return {
        name: (guess - target).square().mean((1, 2)).cpu().double()
        for name, guess in {"mse": prediction, **guesses}.items()
    }


def alignment_scores(
    context: Tensor, patches: Tensor, parent_token: Tensor, parent_overlap: Tensor, temperature: float = 0.1
) -> dict[str, Tensor]:
    """Compare the context of every child with the N tokens of its parent.

    Child i belongs to parent `i // (children / parents)`. Cosine similarity.

    Args:
        context: context vectors, `(children, D)`.
        patches: projected tokens, `(parents, N, D)`.
        parent_token: int64 `(children,)`, the token each child was drawn for.
        parent_overlap: bool `(children, N)`, tokens that the child's box overlaps.
        temperature: temperature of InfoNCE.

    Returns:
        `accuracy`: whether the most similar token is the parent token; `overlap_accuracy`: whether the child overlaps
            it;
        `overlap_chance`: share of tokens that the child overlaps; `infonce`: the loss. Each float64 `(children,)`
        on the CPU.
    """
    parents = F.normalize(patches.float(), dim=-1).repeat_interleave(len(context) // len(patches), 0)
    cosine = (parents @ F.normalize(context.float(), dim=-1).unsqueeze(-1)).squeeze(-1)  # (children, N)
    best = cosine.argmax(1)
    scores = {
        "accuracy": best == parent_token,
        "overlap_accuracy": parent_overlap.gather(1, best.unsqueeze(1)).squeeze(1),
        "overlap_chance": parent_overlap.double().mean(1),
        "infonce": alignment_loss(context, patches, parent_token, parent_overlap, temperature, reduction="none"),
    }
    return {name: value.to("cpu", torch.float64) for name, value in scores.items()}


class CropScores(Metric):
    """Collect the scores of all crops; the result is their mean over crops, by name.

    Attributes:
        rows: one per crop, with `volume`, `crop` and its scores.

    Raises:
        ValueError: a score is not finite; names the volume.

    Example:
        >>> scores = CropScores()
        >>> scores.update((["a", "a"], [0, 1], [{"mse_level1": 0.25}, {"mse_level1": 0.75}]))
        >>> scores.compute()
        {'mse_level1': 0.5, 'mse': 0.5}
    """

    required_output_keys = ("names", "crops", "scores")
    _skip_unrolling = True

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        super().__init__()

    def reset(self) -> None:
        """Discard all rows."""
        self.rows = []

    def update(self, output: Any) -> None:
        """Add the scores of a batch."""
        for name, crop, scores in zip(*output, strict=True):
            bad = [key for key, value in scores.items() if value is not None and not math.isfinite(value)]
            if bad:
                raise ValueError(f"{name}, crop {crop}: {bad[0]} is not finite.")
            self.rows.append({"volume": name, "crop": crop, **scores})

    def compute(self) -> dict[str, float]:
        """Mean of every score over all crops that have it; `mse` is the mean over the levels."""
        means = mean_scores(self.rows)
        levels = [value for name, value in means.items() if name.startswith("mse_level")]
        return {**means, "mse": math.fsum(levels) / len(levels)}


def mean_scores(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean of every score over the rows that have it, by name; scores that no row has are left out."""
    names = [name for name in rows[0] if name not in ("volume", "crop")]
    values = {name: [row[name] for row in rows if row[name] is not None] for name in names}
    return {name: math.fsum(there) / len(there) for name, there in values.items() if there}


def mean_error(scores: CropScores) -> MetricsLambda:
    """The key metric: mean squared error on masked voxels, averaged over the levels; smaller is better.

    Example:
        >>> scores = CropScores()
        >>> error = mean_error(scores)
        >>> scores.update((["a"], [0], [{"mse_level1": 0.25, "mse_level2": 0.75}]))
        >>> error.compute()
        0.5
    """
    return MetricsLambda(itemgetter("mse"), scores)
