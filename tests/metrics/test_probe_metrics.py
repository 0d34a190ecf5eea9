"""Linear classifier and nearest neighbours on features with a known answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mim_components.metrics import LinearClassifier, fit_linear, maximise_dice, nearest_classes, recalls


def test_fit_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    classes = np.arange(300) % 3
    features = (random.normal(size=(300, 4)) * [1, 10, 0.1, 1] + classes[:, None]).astype(np.float32)
    theirs = LogisticRegression(C=1.0, max_iter=1000, tol=1e-8)
    scaler = StandardScaler()
    theirs.fit(scaler.fit_transform(features), classes)
    # as many voxels of each class as in the sample: no correction
    ours = fit_linear(torch.from_numpy(features), torch.from_numpy(classes), torch.tensor([100, 100, 100]))
    logits = torch.from_numpy(features) @ ours.weight.T + ours.bias
    expected = theirs.predict_proba(scaler.transform(features))
    np.testing.assert_allclose(logits.softmax(1).numpy(), expected, atol=2e-3)


def test_priors_are_those_of_all_voxels() -> None:
    # an uninformative feature: the probabilities are the shares of all voxels, 90 % and 10 %, not the sample's half
    classifier = fit_linear(torch.ones(8, 1), torch.tensor([0, 1] * 4), torch.tensor([900, 100]))
    torch.testing.assert_close((classifier.weight.sum(1) + classifier.bias).softmax(0), torch.tensor([0.9, 0.1]))


def offset_of(leads: list[tuple[float, int, int]]) -> float:
    """Offset of class 1 for voxels given by its lead over class 0, their class, and how many each stands for."""
    lead, classes, stands_for = zip(*leads, strict=True)
    logits = torch.tensor([[0.0, value] for value in lead])
    classifier = LinearClassifier(torch.zeros(2, 1), torch.zeros(2))
    shifted = maximise_dice(classifier, logits, torch.tensor(classes), torch.tensor(stands_for), [1])
    assert shifted.bias[0] == 0 and logits[:, 1].tolist() == pytest.approx(list(lead))
    return float(shifted.bias[1])


def test_boundary_moves_to_the_best_dice() -> None:
    # a cell of 40 voxels of the class among 60 others, one of 60 among 840: never the most probable class, Dice 0;
    # with the first cell 2 * 40 / (100 + 100) = 0.4, with both 2 * 100 / (1000 + 100) = 0.18
    assert offset_of([(-0.9, 1, 40), (-0.9, 0, 60), (-2.6, 1, 60), (-2.6, 0, 840)]) == 1.0
    # predicted in 30 voxels too many: Dice 2 * 10 / (40 + 10) = 0.4, above their lead of 0.3 it is 1
    assert offset_of([(0.6, 1, 10), (0.3, 0, 30), (-1.0, 0, 60)]) == -0.5
    assert offset_of([(0.6, 1, 10), (-1.0, 0, 60)]) == 0.0  # nothing to gain
    # the same logits, but the voxel of the background stands for few: now both cells are worth it, 200 / 300
    assert offset_of([(-0.9, 1, 40), (-0.9, 0, 60), (-2.6, 1, 60), (-2.6, 0, 40)]) == 2.75


def test_offsets_are_chosen_one_after_the_other() -> None:
    # class 1 leads class 2 by 1 in all 10 voxels, 4 of them its own: Dice 8 / 14 at any offset from -0.75 on.
    # Then class 2 gets 1.25, and with it all voxels: Dice 12 / 16
    logits, classes = torch.tensor([[-9.0, 1.0, 0.0]] * 2), torch.tensor([1, 2])
    classifier = LinearClassifier(torch.zeros(3, 1), torch.zeros(3))
    sample = classifier, logits, classes, torch.tensor([4, 6])
    assert maximise_dice(*sample, order=[1, 2]).bias.tolist() == [0.0, 0.0, 1.25]
    # class 2 first gets all voxels at 1.25: 12 / 16; class 1 takes them back at 0.5, 8 / 14 instead of 0
    assert maximise_dice(*sample, order=[2, 1]).bias.tolist() == [0.0, 0.5, 1.25]


def test_class_without_voxels_keeps_its_bias() -> None:
    # its Dice is 0 / 0 where it is never predicted, and 0 where it is
    logits = torch.tensor([[0.0, 1.0, -5.0], [0.0, -1.0, 3.0]])
    classifier = LinearClassifier(torch.zeros(3, 1), torch.zeros(3))
    shifted = maximise_dice(classifier, logits, torch.tensor([1, 0]), torch.ones(2), order=[2, 1])
    assert shifted.bias.tolist() == [0.0, 0.0, 0.0]


def test_class_that_was_not_sampled_is_named() -> None:
    with pytest.raises(ValueError, match="no voxel of class 1 was sampled"):
        fit_linear(torch.rand(2, 1), torch.tensor([0, 2]), torch.ones(3))


def test_own_patient_is_passed_over() -> None:
    # the bank's mean is 0: patient 0's voxel of class 1 is the query itself; patient 1's nearest has class 2
    bank = torch.tensor([[1.0, 1.0], [1.0, 0.9], [-1.0, -1.0], [-1.0, -0.9]])
    classes, patients = torch.tensor([1, 2, 0, 0]), torch.tensor([0, 1, 1, 1])
    query = torch.tensor([[1.0, 1.0]])
    assert nearest_classes(query, torch.tensor([0]), bank, classes, patients, 1).tolist() == [2]
    assert nearest_classes(query, torch.tensor([7]), bank, classes, patients, 1).tolist() == [1]
    # three votes: 2, 0, 0
    assert nearest_classes(query, torch.tensor([0]), bank, classes, patients, 3).tolist() == [0]
    with pytest.raises(ValueError, match="neighbours must be 1 to 3, the voxels of other patients, got 4"):
        nearest_classes(query, torch.tensor([0]), bank, classes, patients, 4)


def test_recall_of_a_class_without_voxels() -> None:
    shares = recalls(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 3)
    assert shares[:2] == [0.5, 1.0] and math.isnan(shares[2])
