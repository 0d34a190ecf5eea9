"""What is measured: the error on masked voxels, and whether a child's context finds its parent token.

Axes: image (B, C, H, W, D); prediction (B, M, P), M masked tokens of P voxels; context (children, D); patches
(parents, N, D). Intensities are scaled to [0, 1].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
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
        `mse` of the prediction; `mse_visible_mean` of a constant, the mean of the volume's visible voxels; with
        `standardized` also `mse_token_mean`, of the mean of the true token. Each float64 `(B,)` on the CPU.
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
    """Which of its parent's N tokens is most similar to a child's context, for every child.

    Child i belongs to parent `i // (children / parents)`. Cosine similarity.

    Args:
        context: `(children, D)`.
        patches: `(parents, N, D)`.
        parent_token: int64 `(children,)`, the token each child was drawn for.
        parent_overlap: bool `(children, N)`, tokens that the child's box overlaps.
        temperature: of InfoNCE.

    Returns:
        `accuracy`: the most similar token is the parent token; `overlap_accuracy`: it is any that the child overlaps;
        `overlap_chance`: share of the tokens that the child overlaps; `infonce`: its loss. Each float64 `(children,)`
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
