"""Heads on fixed features: a linear classifier, and the classes of nearest neighbours.

Axes: features (n, F) of n voxels; classes (n,), from 0 to K - 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_STEPS = 200  # of L-BFGS
CHUNK = 2**26  # similarities held at once


class LinearClassifier(NamedTuple):
    """Logits `(n, K)` are `features @ weight.T + bias` on raw features; `weight` `(K, F)`, `bias` `(K,)`."""

    weight: Tensor
    bias: Tensor


def stacked(classifiers: Sequence[LinearClassifier]) -> LinearClassifier:
    """One classifier with the logits of all, one after the other."""
    weights, biases = zip(*classifiers, strict=True)
    return LinearClassifier(torch.cat(weights), torch.cat(biases))


def fit_linear(features: Tensor, classes: Tensor, priors: Tensor) -> LinearClassifier:
    """Multinomial logistic regression on standardised features, by PyTorch's L-BFGS.

    Rare classes are over-represented in the sample of voxels. The fit is that of scikit-learn's
    `LogisticRegression(C=1)` on this sample; then log(share among all voxels / share in the sample) is added to each
    bias, which makes the probabilities those of all voxels (King and Zeng's prior correction).

    Args:
        features: `(n, F)`.
        classes: int64 `(n,)`; each of the K classes occurs.
        priors: number of voxels of every class among all voxels, `(K,)`.

    Raises:
        ValueError: a class does not occur; gives its number.
    """
    counts = torch.bincount(classes, minlength=len(priors))
    if not bool((counts > 0).all()):
        raise ValueError(f"no voxel of class {int((counts == 0).nonzero()[0])} was sampled.")
    mean, std = _scale(features)
    x = (features - mean) / std
    weight = torch.zeros(len(priors), x.shape[1], device=x.device, requires_grad=True)
    bias = torch.zeros(len(priors), device=x.device, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=MAX_STEPS, tolerance_grad=1e-6, history_size=10, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(F.linear(x, weight, bias), classes)
        value = value + 0.5 / len(x) * weight.square().sum()
        torch.autograd.backward(value)
        return value

    with torch.enable_grad():
        solver.step(loss)
    weight, bias = weight.detach(), bias.detach()
    shift = torch.log(priors.to(bias) / priors.sum()) - torch.log(counts.to(bias) / counts.sum())
    weight = weight / std
    return LinearClassifier(weight, bias + shift - weight @ mean)


def maximise_dice(
    classifier: LinearClassifier, logits: Tensor, classes: Tensor, stands_for: Tensor, order: Sequence[int]
) -> LinearClassifier:  # fmt: skip
    """Add to the bias of each class in `order` the offset of -4, -3.75, ... 4 that gives it the best Dice.

    The most probable class does not give the best Dice: a voxel is worth adding from half the best Dice on, taken as a
    probability (Lipton et al. 2014). Nor are probabilities calibrated beyond the voxels of the fit. The classes are set
    once, each with the earlier offsets in place; of equally good offsets the one nearest 0 is used, and 0 for a class
    without voxels.

    Args:
        classifier: classifier whose biases are set.
        logits: its logits of voxels other than those of its fit, `(n, K)`.
        classes: classes of these voxels, int64 `(n,)`.
        stands_for: number of voxels that each of them represents, `(n,)`.
        order: classes in the order in which they are set.

    Example:
        >>> flat = torch.tensor([900.0, 100.0]).log()  # uninformative features: class 1 is never predicted
        >>> sample = flat.expand(2, 2), torch.tensor([0, 1]), torch.tensor([900.0, 100.0])
        >>> shifted = maximise_dice(LinearClassifier(torch.zeros(2, 1), flat), *sample, order=[1])
        >>> (shifted.bias - flat).tolist()  # from log 9 = 2.2 on class 1 is everywhere: Dice 2/11, not 0
        [0.0, 2.25]
    """
    logits, stands_for = logits.clone(), stands_for.double()
    offsets = torch.tensor(sorted((step / 4 for step in range(-16, 17)), key=abs)).to(logits)
    shift = torch.zeros_like(classifier.bias)
    for number in order:
        own = stands_for * (classes == number)
        if not own.any():
            continue
        rivals = torch.cat([logits[:, :number], logits[:, number + 1 :]], dim=1).amax(1)
        predicted = ((logits[:, number] - rivals)[:, None] + offsets > 0).double()  # (n, offsets)
        dice = 2 * (own @ predicted) / (stands_for @ predicted + own.sum())
        best = offsets[dice.argmax()]  # the first of equal ones
        shift[number] = best
        logits[:, number] += best
    return LinearClassifier(classifier.weight, classifier.bias + shift)


def nearest_classes(
    queries: Tensor, query_patients: Tensor, bank: Tensor, bank_classes: Tensor, bank_patients: Tensor, neighbours: int
) -> Tensor:
    """The class of most of the nearest voxels of other patients, by cosine similarity of standardised features.

    Ties go to the lowest class.

    Args:
        queries: features, `(n, F)`.
        query_patients: patients, int64 `(n,)`.
        bank: features to search, `(m, F)`; they define the mean and standard deviation of all.
        bank_classes: classes, int64 `(m,)`.
        bank_patients: patients, int64 `(m,)`; a query's own patient is skipped.
        neighbours: number of nearest voxels that vote.

    Returns:
        Classes, int64 `(n,)`.

    Raises:
        ValueError: other patients have fewer voxels than `neighbours`.
    """
    others = min((int((bank_patients != patient).sum()) for patient in query_patients.unique()), default=0)
    if not 1 <= neighbours <= others:
        raise ValueError(f"neighbours must be 1 to {others}, the voxels of other patients, got {neighbours}.")
    mean, std = _scale(bank)
    queries, bank = (F.normalize((part - mean) / std, dim=1) for part in (queries, bank))
    found = []
    for rows in torch.arange(len(queries), device=queries.device).split(max(CHUNK // len(bank), 1)):
        similar = queries[rows] @ bank.T
        similar[query_patients[rows, None] == bank_patients] = -math.inf
        nearest = similar.topk(neighbours, dim=1).indices
        found.append(F.one_hot(bank_classes[nearest], int(bank_classes.max()) + 1).sum(1).argmax(1))
    return torch.cat(found)


def recalls(predicted: Tensor, classes: Tensor, num_classes: int) -> list[float]:
    """Recall of every class: share of its voxels that are predicted as such; NaN for a class without voxels.

    Example:
        >>> recalls(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 1, 2]), 4)
        [0.5, 1.0, 1.0, nan]
    """
    right = predicted == classes
    return [float(right[classes == each].double().mean()) for each in range(num_classes)]


def _scale(features: Tensor) -> Sequence[Tensor]:
    """Mean and standard deviation `(F,)`; 1 for a feature that is constant."""
    mean, std = features.mean(0), features.std(0, correction=0)
    return mean, torch.where(std > 1e-8, std, torch.ones_like(std))
