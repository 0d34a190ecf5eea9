from __future__ import annotations

import math

import pytest
import torch

from mim_components.metrics.classification import (
    auc_of_classes,
    class_figures,
    confusion_counts,
    micro_auc,
    summary_figures,
)

# four scans of the classes 0, 0, 1, 2
LABELS = torch.tensor([0, 0, 1, 2])
PROBABILITIES = torch.tensor([[0.6, 0.3, 0.1], [0.3, 0.6, 0.1], [0.4, 0.5, 0.1], [0.2, 0.1, 0.7]], dtype=torch.float64)
PREDICTED = PROBABILITIES.argmax(1)  # 0, 1, 1, 2


def test_auc_by_hand():
    # class 0: positives 0.6, 0.3 against 0.4, 0.2: 3 of 4 pairs in order; class 1: 0.5 against 0.3, 0.6, 0.1: 2 of 3
    # class 2: 0.7 against three of 0.1: 3 of 3
    assert auc_of_classes(PROBABILITIES, LABELS) == pytest.approx([3 / 4, 2 / 3, 1.0])


def test_micro_auc_by_hand():
    # positives 0.6, 0.3, 0.5, 0.7; negatives 0.3, 0.1, 0.6, 0.1, 0.4, 0.1, 0.2, 0.1. In order, an equal pair half:
    # 0.6: 7 + 1/2; 0.3: 5 + 1/2; 0.5: 7; 0.7: 8; of 4 * 8 pairs
    assert micro_auc(PROBABILITIES, LABELS) == pytest.approx((7.5 + 5.5 + 7 + 8) / 32)


def test_summary_by_hand():
    assert summary_figures(PROBABILITIES, LABELS) == pytest.approx(
        {"accuracy": 3 / 4, "auc_macro": (3 / 4 + 2 / 3 + 1) / 3, "auc_micro": 28 / 32}
    )


def test_confusion_and_class_figures_by_hand():
    assert confusion_counts(PREDICTED, LABELS, 3).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    figures = class_figures(PREDICTED, LABELS, 3)
    assert figures["sensitivity"] == pytest.approx([1 / 2, 1, 1])
    assert figures["precision"] == pytest.approx([1, 1 / 2, 1])
    assert figures["f1"] == pytest.approx([2 / 3, 2 / 3, 1])


def test_class_without_a_scan_has_no_auc_and_does_not_count():
    labels = torch.tensor([0, 0, 1, 1])
    first, second, third = auc_of_classes(PROBABILITIES, labels)
    # class 0: 0.6, 0.3 against 0.4, 0.2: 3 of 4; class 1: 0.5, 0.1 against 0.3, 0.6: 1 of 4
    assert (first, second) == pytest.approx((3 / 4, 1 / 4)) and math.isnan(third)
    assert summary_figures(PROBABILITIES, labels)["auc_macro"] == pytest.approx((3 / 4 + 1 / 4) / 2)
    assert math.isnan(class_figures(PREDICTED, labels, 3)["sensitivity"][2])


def test_one_class_only():
    labels = torch.zeros(4, dtype=torch.int64)
    assert all(map(math.isnan, auc_of_classes(PROBABILITIES, labels)))
    figures = summary_figures(PROBABILITIES, labels)
    assert math.isnan(figures["auc_macro"]) and not math.isnan(figures["auc_micro"])
