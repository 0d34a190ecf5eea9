"""Classification metrics: confusion matrix, accuracy, area under the ROC curve, sensitivity, precision, F1.

The probabilities of all scans of a validation are collected by an Ignite metric.

Axes: probabilities (N, K) of N scans and K classes; labels (N,).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import ignite.distributed as idist
import torch
import torch.nn.functional as F
from ignite.engine import Engine
from ignite.metrics import Metric, MetricsLambda
from monai.metrics import compute_confusion_matrix_metric, compute_roc_auc, get_confusion_matrix
from torch import Tensor

from mim_components.metrics.segmentation import mean_of

# name here to name in MONAI
CLASS_FIGURES = {"sensitivity": "sensitivity", "precision": "precision", "f1": "f1 score"}


def confusion_counts(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Number of scans by class (row) and prediction (column), int64 `(K, K)`.

    Args:
        predicted: predicted classes, int64 `(N,)`.
        labels: true classes, int64 `(N,)`.
        num_classes: number of classes K.

    Example:
        >>> confusion_counts(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 2).tolist()
        [[1, 1], [0, 1]]
    """
    return torch.bincount(labels * num_classes + predicted, minlength=num_classes**2).view(num_classes, num_classes)


def auc_of_classes(probabilities: Tensor, labels: Tensor) -> list[float]:
    """Area under the ROC curve of every class against the rest; NaN where no scan, or every scan, has the class.

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
        predicted: predicted classes, int64 `(N,)`.
        labels: true classes, int64 `(N,)`.
        num_classes: number of classes K.
    """
    counts = get_confusion_matrix(F.one_hot(predicted, num_classes), F.one_hot(labels, num_classes)).sum(0)
    return {name: compute_confusion_matrix_metric(monai, counts).tolist() for name, monai in CLASS_FIGURES.items()}


def summary_figures(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """`accuracy`, `auc_macro` (mean over the classes where it is defined) and `auc_micro`, in [0, 1] or NaN.

    Args:
        probabilities: `(N, K)`, N at least 1.
        labels: int64 `(N,)`.
    """
    return {
        "accuracy": float((probabilities.argmax(1) == labels).double().mean()),
        "auc_macro": mean_of(auc_of_classes(probabilities, labels)),
        "auc_micro": micro_auc(probabilities, labels),
    }


@dataclass(frozen=True)
class ScoredScan:
    """One scan and the network's output for it.

    Attributes:
        name: name of the case.
        group: patient.
        source: path of the scan.
        label: class number.
        probabilities: one per class.
    """

    name: str
    group: str
    source: str
    label: int
    probabilities: tuple[float, ...]

    @property
    def predicted(self) -> int:
        """Most probable class; of equally probable ones the first."""
        return self.probabilities.index(max(self.probabilities))


def decollated(engine: Engine) -> list[dict[str, Any]]:
    """The scans of an evaluator's last batch: the loaded items with `pred`."""
    state: Any = engine.state
    return [{**batch, **output} for batch, output in zip(state.batch, state.output, strict=True)]


class ClassScores(Metric):
    """Collects the scans of a validation with their probabilities; its value is `summary_figures`.

    Reads batch and output of an evaluator, decollated and after softmax: `pred` `(K,)`, `label`, `name`, `group`
    (patient) and `source`. Scans are gathered from all processes.

    Attributes:
        scans: the scans in the order of their names, once the value is computed.

    Raises:
        ValueError: when updated, a probability that is not finite; names the scan.

    Example:
        >>> scan = {"name": "1", "group": "1", "source": "1.nii.gz", "label": 0, "pred": [0.75, 0.25]}
        >>> scores = ClassScores()
        >>> scores.update([scan, {**scan, "name": "2", "label": 1, "pred": [0.625, 0.375]}])  # wrong, yet less sure
        >>> scores.compute()
        {'accuracy': 0.5, 'auc_macro': 1.0, 'auc_micro': 0.75}
    """

    def __init__(self) -> None:
        self._own: list[ScoredScan] = []
        self.scans: list[ScoredScan] = []
        super().__init__()

    def reset(self) -> None:
        """Discard all scans."""
        self._own, self.scans = [], []

    def iteration_completed(self, engine: Engine) -> None:
        """Add the scans of the finished batch."""
        self.update(decollated(engine))

    def update(self, output: Sequence[Mapping[str, Any]]) -> None:
        """Add the scans of a batch."""
        for item in output:
            probabilities = tuple(torch.as_tensor(item["pred"]).double().flatten().tolist())
            if not all(map(math.isfinite, probabilities)):
                raise ValueError(f"{item['name']}: the network's output is not finite: {list(probabilities)}.")
            name, group, source = (str(item[key]) for key in ("name", "group", "source"))
            self._own.append(ScoredScan(name, group, source, int(item["label"]), probabilities))

    def compute(self) -> dict[str, float]:
        """`summary_figures` over the scans of all processes."""
        every: Any = idist.all_gather(self._own) if idist.get_world_size() > 1 else [self._own]
        named = {scan.name: scan for part in every for scan in part}  # a sampler gives some scans to several processes
        self.scans = [named[name] for name in sorted(named)]
        return summary_figures(*as_tensors(self.scans))


def as_tensors(scans: Sequence[ScoredScan]) -> tuple[Tensor, Tensor]:
    """Convert to probabilities, float64 `(N, K)`, and labels, int64 `(N,)`."""
    probabilities = torch.tensor([scan.probabilities for scan in scans], dtype=torch.float64)
    return probabilities, torch.tensor([scan.label for scan in scans])


def one_figure(scores: ClassScores, name: str) -> MetricsLambda:
    """One of the scores as a metric of its own, for MONAI's `key_val_metric`.

    Example:
        >>> scores = ClassScores()
        >>> accuracy = one_figure(scores, "accuracy")
        >>> scan = {"group": "1", "source": "1.nii.gz", "pred": [0.75, 0.25]}
        >>> scores.update([{**scan, "name": "1", "label": 0}, {**scan, "name": "2", "label": 1}])
        >>> accuracy.compute()
        0.5
    """
    return MetricsLambda(itemgetter(name), scores)
