"""Linear classifier and nearest neighbours on features whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mim_components.metrics import fit_linear, nearest_classes, recalls


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
    # a feature that tells nothing: the probabilities are the shares of all voxels, 90 % and 10 %, not the sample's half
    classifier = fit_linear(torch.ones(8, 1), torch.tensor([0, 1] * 4), torch.tensor([900, 100]))
    torch.testing.assert_close((classifier.weight.sum(1) + classifier.bias).softmax(0), torch.tensor([0.9, 0.1]))


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
