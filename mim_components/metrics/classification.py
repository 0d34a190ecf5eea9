"""Figures of a classification: confusion matrix, accuracy, area under the ROC curve, sensitivity, precision, F1.

Axes: probabilities (N, K) of N scans and K classes; labels (N,).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from monai.metrics import compute_confusion_matrix_metric, compute_roc_auc, get_confusion_matrix
from torch import Tensor

# name here to name in MONAI
CLASS_FIGURES = {"sensitivity": "sensitivity", "precision": "precision", "f1": "f1 score"}


def confusion_counts(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Number of scans by class (row) and prediction (column), int64 `(K, K)`.

    Args:
        predicted: int64 `(N,)`.
        labels: int64 `(N,)`.
        num_classes: K.

    Example:
        >>> confusion_counts(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 2).tolist()
        [[1, 1], [0, 1]]
    """
    return torch.bincount(labels * num_classes + predicted, minlength=num_classes**2).view(num_classes, num_classes)


def auc_of_classes(probabilities: Tensor, labels: Tensor) -> list[float]:
    """Area under the ROC curve of every class against the rest; NaN where no scan or every scan is of the class.

    Args:
        probabilities: `(N, K)`.
        labels: int64 `(N,)`.
    """
    counts = torch.bincount(labels, minlength=probabilities.shape[1]).tolist()
    return [
        float(compute_roc_auc(probabilities[:, number], (labels == number).long()))  # type: ignore[arg-type]
        if 0 < count < len(labels)
        else math.nan
        for number, count in enumerate(counts)
    ]


def micro_auc(probabilities: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve of all N * K decisions "this scan is of this class" together."""
    one_hot = F.one_hot(labels, probabilities.shape[1])
    return float(compute_roc_auc(probabilities, one_hot, "micro"))  # type: ignore[arg-type]


def class_figures(predicted: Tensor, labels: Tensor, num_classes: int) -> dict[str, list[float]]:
    """Sensitivity, precision and F1 of every class; NaN where the divisor is 0.

    Args:
        predicted: int64 `(N,)`.
        labels: int64 `(N,)`.
        num_classes: K.
    """
    counts = get_confusion_matrix(F.one_hot(predicted, num_classes), F.one_hot(labels, num_classes)).sum(0)
    return {name: compute_confusion_matrix_metric(monai, counts).tolist() for name, monai in CLASS_FIGURES.items()}


def mean_of_defined(values: list[float]) -> float:
    """Mean of those that are not NaN; NaN where all are."""
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def summary_figures(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """`accuracy`, `auc_macro` (mean over the classes for which it is defined) and `auc_micro`, in [0, 1] or NaN.

    Args:
        probabilities: `(N, K)`, N at least 1.
        labels: int64 `(N,)`.
    """
    return {
        "accuracy": float((probabilities.argmax(1) == labels).double().mean()),
        "auc_macro": mean_of_defined(auc_of_classes(probabilities, labels)),
        "auc_micro": micro_auc(probabilities, labels),
    }
