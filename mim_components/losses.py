"""Losses of Mask in Mask: masked reconstruction and cross-level alignment (docs/method.md, 4).

Axes: prediction and target (B, M, P), M masked tokens of P voxels; context (children, D); patches (parents, N, D).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim_components.networks.mim import MiMOutput
from mim_components.tokens import gather_tokens, patchify, standardize_tokens, visible_and_masked_ids
from mim_components.transforms.geometry import CHILD_CONTENT
from mim_components.transforms.levels import LevelBatch

SCHEDULES = ("simultaneous", "coarse_to_fine", "fine_to_coarse")


def masked_targets(image: Tensor, masked_ids: Tensor, patch_size: int, normalize: bool = False) -> Tensor:
    """Voxels of the masked tokens: image `(B, C, H, W, D)`, token numbers `(B, M)` to `(B, M, P)`."""
    target = gather_tokens(patchify(image, patch_size), masked_ids)
    return standardize_tokens(target) if normalize else target


def reconstruction_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over masked tokens of the mean squared error over the token's voxels; both `(B, M, P)` (Equation 2)."""
    return F.mse_loss(_precise(prediction), _precise(target))


def alignment_loss(
    context: Tensor,
    patches: Tensor,
    parent_token: Tensor,
    parent_overlap: Tensor | None = None,
    temperature: float = 0.1,
    kind: str = "infonce",
    reduction: str = "mean",
) -> Tensor:
    """Pull a child's context to its parent token, away from the parent's tokens it does not overlap (Equation 5).

    Child i belongs to parent `i // (children / parents)`. Cosine similarity.

    Args:
        context: one vector per child, `(children, D)`.
        patches: one vector per token of each parent, `(parents, N, D)`.
        parent_token: int64 `(children,)`, the positive.
        parent_overlap: bool `(children, N)`, tokens that the child's box overlaps: those that are not the parent token
            are neither positive nor negative. None = only the parent token overlaps.
        temperature: temperature tau of InfoNCE; unused by "byol".
        kind: "infonce", or "byol" for `2 - 2 cos` with the positive alone (Table 12).
        reduction: "mean" over the children, or "none" for one value per child, `(children,)`.

    Raises:
        ValueError: unknown kind or reduction, or the number of children is not a multiple of that of parents.
    """
    if kind not in ("infonce", "byol"):
        raise ValueError(f"kind must be 'infonce' or 'byol', got {kind!r}.")
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction must be 'mean' or 'none', got {reduction!r}.")
    children, parents = len(context), len(patches)
    if children % parents:
        raise ValueError(f"children must be a multiple of parents, got {children=}, {parents=}.")
    with torch.autocast(context.device.type, enabled=False):
        context = F.normalize(_precise(context), dim=-1).view(parents, children // parents, -1)
        patches = F.normalize(_precise(patches), dim=-1)
        cosine = (context @ patches.transpose(1, 2)).flatten(0, 1)  # (children, N)
    if kind == "byol":
        distance = 2 - 2 * cosine.gather(1, parent_token.unsqueeze(1)).squeeze(1)
        return distance.mean() if reduction == "mean" else distance
    logits = cosine / temperature
    if parent_overlap is not None:
        positive = torch.arange(logits.shape[1], device=logits.device) == parent_token.unsqueeze(1)
        logits = logits.masked_fill(parent_overlap & ~positive, -math.inf)
    return F.cross_entropy(logits, parent_token, reduction=reduction)


def level_weights(weights: Sequence[float], schedule: str, progress: float) -> list[float]:
    """Weights of the levels when `progress` in [0, 1] of the training is done (Table 14).

    `coarse_to_fine` starts at 2 for the outermost level and 0 for the innermost and reaches 1 for all along a cosine;
    `fine_to_coarse` is its mirror. Start values between are interpolated linearly: the table gives only the ends. The
    schedule's factor multiplies `weights`.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}.")
    last = len(weights) - 1
    if schedule == "simultaneous" or last == 0:
        return list(weights)
    remaining = 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))  # 1 at the start, 0 at the end
    starts = [2 * (1 - level / last) for level in range(last + 1)]
    if schedule == "fine_to_coarse":
        starts.reverse()
    return [weight * (1 + (start - 1) * remaining) for weight, start in zip(weights, starts, strict=True)]


class MiMLoss(nn.Module):
    """Weighted sum of the reconstruction of every level and the alignment of every pair (Equations 8-10, Table 3).

    Args:
        patch_size: edge of a token in voxels.
        reconstruction_weights: one weight per level, outermost first; 0 switches a term off. None = 1 each.
        alignment_weights: one weight per pair of adjacent levels; 0 switches a term off. None = `alpha` each.
        temperature: of InfoNCE.
        kind: "infonce" or "byol".
        normalize_target: standardise each target token.
        schedule: "simultaneous", "coarse_to_fine" or "fine_to_coarse" for the reconstruction weights.
        child_content: as in the crop. "any": the alignment is a mean over all children, as in the paper. "prefer": a
            mean over the samples, each of them the mean over its children with content, 0 where it has none; among
            equal tokens of air InfoNCE has no answer.
        alpha: weight of the alignment of every pair if `alignment_weights` is None.

    Raises:
        ValueError: the numbers of weights do not match, a weight is negative, all are 0, or a name is unknown.

    Example:
        >>> from mim_components.networks import MiM
        >>> images = (torch.rand(2, 1, 16, 16, 16),)
        >>> masked = (torch.arange(8).repeat(2, 1) > 2,)  # 3 of 8 tokens are visible
        >>> batch = LevelBatch(images, masked, (), (), ())
        >>> network = MiM(input_size=(16, 16, 16), preset="nano", num_levels=1, projection_dim=16)
        >>> loss = MiMLoss(patch_size=8, reconstruction_weights=(2.0,))
        >>> terms = loss(network(images, masked), batch)
        >>> torch.equal(terms["loss"], 2 * terms["reconstruction_level1"])
        True
    """

    def __init__(
        self,
        patch_size: int = 16,
        reconstruction_weights: Sequence[float] | None = None,
        alignment_weights: Sequence[float] | None = None,
        temperature: float = 0.1,
        kind: str = "infonce",
        normalize_target: bool = False,
        schedule: str = "simultaneous",
        child_content: str = "prefer",
        alpha: float = 0.1,
    ) -> None:
        super().__init__()
        self.reconstruction_weights = reconstruction_weights
        self.alignment_weights = alignment_weights
        self.alpha = alpha
        everything = [weight for weights in self.weights() for weight in weights]
        if min(everything) < 0 or max(everything) == 0:
            raise ValueError(f"loss weights must not be negative and not all 0, got {everything}.")
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}.")
        if kind not in ("infonce", "byol"):
            raise ValueError(f"kind must be 'infonce' or 'byol', got {kind!r}.")
        if child_content not in CHILD_CONTENT:
            raise ValueError(f"child_content must be one of {CHILD_CONTENT}, got {child_content!r}.")
        level_weights((), schedule, 0.0)  # refuses an unknown schedule
        self.patch_size = patch_size
        self.temperature = temperature
        self.kind = kind
        self.normalize_target = normalize_target
        self.schedule = schedule
        self.child_content = child_content

    def weights(self, num_levels: int | None = None) -> tuple[list[float], list[float]]:
        """Weights of the reconstruction of every level and of the alignment of every pair.

        Args:
            num_levels: levels of the network; None = the number of weights given.

        Raises:
            ValueError: numbers of weights do not fit each other, or the network.
        """
        levels = num_levels or 2
        if self.alignment_weights is not None:
            levels = len(self.alignment_weights) + 1
        if self.reconstruction_weights is not None:
            levels = len(self.reconstruction_weights)
        if num_levels not in (None, levels):
            raise ValueError(f"the network predicts {num_levels} levels, the loss has weights for {levels} levels.")
        reconstruction = [1.0] * levels if self.reconstruction_weights is None else list(self.reconstruction_weights)
        alignment = [self.alpha] * (levels - 1) if self.alignment_weights is None else list(self.alignment_weights)
        if len(alignment) != levels - 1:
            raise ValueError(
                "alignment_weights must have one value per pair of adjacent levels, one fewer than "
                f"reconstruction_weights, got {len(alignment)} and {levels}."
            )
        return reconstruction, alignment

    def forward(
        self, output: MiMOutput, batch: LevelBatch, progress: float = 0.0, sizes: Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        """Compute all terms by name, and their weighted sum as `loss`, in float32.

        Args:
            output: the network's output for the volumes of `batch`.
            batch: volumes, masks and parents of all levels.
            progress: share of the training that is done, for the schedule.
            sizes: number of volumes of each level that the means are over, if `batch` is only a part of them: the terms
                of all parts add up to those of the whole. None = those of `batch`.

        Returns:
            `loss`, `reconstruction_level1` ..., `alignment_level1_2` ...; every term unweighted, scalar.

        Raises:
            ValueError: the network has another number of levels.
        """
        reconstruction, alignment = self.weights(len(output.prediction))
        terms: dict[str, Tensor] = {}
        total = output.prediction[0].new_zeros((), dtype=torch.float32)
        weights = level_weights(reconstruction, self.schedule, progress)
        sizes = sizes or batch.sizes
        for level, (prediction, weight) in enumerate(zip(output.prediction, weights, strict=True), start=1):
            term = self._reconstruction(prediction, batch.images[level - 1], batch.masked[level - 1])
            terms[f"reconstruction_level{level}"] = term = len(prediction) / sizes[level - 1] * term
            total = total + weight * term
        for pair, weight in enumerate(alignment):
            term = self._alignment(output, batch, pair, sizes[pair + 1])
            terms[f"alignment_level{pair + 1}_{pair + 2}"] = term
            total = total + weight * term
        return {"loss": total, **terms}

    def _reconstruction(self, prediction: Tensor, image: Tensor, masked: Tensor) -> Tensor:
        if not len(prediction):  # a 0 that stays in the graph
            return prediction.sum()
        _, ids = visible_and_masked_ids(masked, masked.shape[1] - prediction.shape[1])
        target = masked_targets(image, ids, self.patch_size, self.normalize_target)
        return reconstruction_loss(prediction, target)

    def _alignment(self, output: MiMOutput, batch: LevelBatch, pair: int, size: int) -> Tensor:
        context, patches = output.context[pair], output.patches[pair]
        if not len(context):
            return context.sum() + patches.sum()
        token, overlap = batch.parent_token[pair], batch.parent_overlap[pair]
        each = alignment_loss(context, patches, token, overlap, self.temperature, self.kind, reduction="none")
        if self.child_content == "any":
            return each.sum() / size
        return (each * batch.content_weight[pair]).sum()  # even with all weights 0 it stays in the graph, for DDP


def _precise(x: Tensor) -> Tensor:
    """Convert to float32; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
