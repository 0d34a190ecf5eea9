"""Scores of a case: numbers by hand, millimetres, empty masks, and cropping that changes nothing."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice, compute_surface_dice
from monai.metrics.utils import do_metric_reduction

from mim_components.handlers.reports.segmentation import mean_row
from mim_components.metrics.segmentation import CaseResult, TargetScore, overlap_scores, score_case

ISO = (1.0, 1.0, 1.0)


def cube(start: tuple[int, int, int], size: int, shape: tuple[int, int, int] = (12, 12, 12)) -> np.ndarray:
    """Class map `(1, H, W, D)` with one cube of class 1."""
    volume = np.zeros((1, *shape), dtype=np.uint8)
    volume[0][tuple(slice(first, first + size) for first in start)] = 1
    return volume


def test_dice_of_two_overlapping_cubes() -> None:
    # 4x4x4 voxels each, shifted by 1 along one axis: 3x4x4 = 48 in common, 2 * 48 / (64 + 64) = 0.75
    score = score_case(cube((4, 3, 3), 4), cube((3, 3, 3), 4), ISO, [1.0])[0]
    assert score.dice == pytest.approx(0.75)


def test_volumes_are_millilitres() -> None:
    # 64 and 27 voxels of 2 x 2.5 x 5 mm = 25 mm³
    score = score_case(cube((4, 3, 3), 3), cube((3, 3, 3), 4), (2.0, 2.5, 5.0), [1.0])[0]
    assert (score.label_ml, score.pred_ml) == pytest.approx((64 * 0.025, 27 * 0.025))


@pytest.mark.parametrize(("tolerance", "nsd"), [(0.5, 32 / 52), (2.0, 34 / 52), (3.0, 1.0), (4.0, 1.0)])
def test_tolerance_is_millimetres_on_anisotropic_voxels(tolerance: float, nsd: float) -> None:
    """Cubes of 3x3x3 voxels, one shifted by a voxel of 3 mm; measured in voxels, 1 would suffice for an NSD of 1.

    Their edges are all voxels but the centre, 26 and 26. The planes of the label:
    - the first (9 voxels) is 3 mm from the first of the prediction;
    - the second (its rim, 8 voxels) lies in the first of the prediction, all of which is edge: 0 mm;
    - the third: 8 voxels lie on the rim of the prediction's second plane, 0 mm; the centre lies in the prediction's
      centre, 1 mm from that rim.
    So 16 of 26 at 0.5 mm, 17 at 2 mm, all at 3 mm; the prediction mirrors the label.
    """
    pair = cube((5, 4, 4), 3), cube((4, 4, 4), 3)
    assert score_case(*pair, (3.0, 1.0, 1.0), [tolerance])[0].nsd == pytest.approx(nsd)


def test_surface_at_exactly_the_tolerance_counts() -> None:
    steps = np.float32(0.7).item()  # 0.699999988
    # single voxels, 3 and 4 steps apart
    for spacing in (steps, 0.7, 0.70000002):
        assert score_case(cube((6, 3, 3), 1), cube((3, 3, 3), 1), (spacing,) * 3, [2.1])[0].nsd == 1.0
    assert score_case(cube((7, 3, 3), 1), cube((3, 3, 3), 1), (steps,) * 3, [2.1])[0].nsd == 0.0


def test_target_absent_in_the_label_is_not_counted() -> None:
    empty = np.zeros((1, 12, 12, 12), dtype=np.uint8)
    predicted = score_case(cube((3, 3, 3), 2), empty, ISO, [1.0])[0]
    assert math.isnan(predicted.dice) and math.isnan(predicted.nsd) and predicted.pred_ml == 0.008
    nothing = score_case(empty, empty, ISO, [1.0])[0]
    assert math.isnan(nothing.dice) and math.isnan(nothing.nsd) and nothing.label_ml == nothing.pred_ml == 0.0


def test_target_absent_in_the_prediction_scores_zero_as_in_monai() -> None:
    label, empty = cube((3, 3, 3), 2), np.zeros((1, 12, 12, 12), dtype=np.uint8)
    score = score_case(empty, label, ISO, [1.0])[0]
    pair = torch.from_numpy(empty)[None].bool(), torch.from_numpy(label)[None].bool()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = compute_dice(*pair), compute_surface_dice(*pair, class_thresholds=[1.0], include_background=True)
    assert (score.dice, score.nsd) == (float(theirs[0]), float(theirs[1])) == (0.0, 0.0)


def test_cropped_scores_are_those_of_the_whole_volume() -> None:
    """Blobs of three classes that also touch the borders of the volume, on anisotropic voxels."""
    rng = np.random.default_rng(0)
    spacing, tolerances = (0.8, 1.5, 3.0), [0.0, 1.7, 3.1]
    for _ in range(3):
        coarse = [rng.integers(0, 4, (1, 4, 3, 3)).astype(np.uint8) for _ in range(2)]
        label, pred = (np.kron(each, np.ones((1, 4, 4, 3), dtype=np.uint8)) for each in coarse)
        label[:, :2], pred[:, -1:] = 0, 0  # something to crop
        for target, score in enumerate(score_case(pred, label, spacing, tolerances)):
            pair = torch.from_numpy(pred == target + 1)[None], torch.from_numpy(label == target + 1)[None]
            nsd = compute_surface_dice(*pair, [tolerances[target]], include_background=True, spacing=spacing)
            assert score.dice == float(compute_dice(*pair)) and score.nsd == float(nsd)
            assert overlap_scores(pair[0][0, 0], pair[1][0, 0], spacing, tolerances[target]) == score[:2]


def test_regions_overlap() -> None:
    """A nested pair of regions is scored channel by channel."""
    label = np.concatenate([cube((2, 2, 2), 6), cube((4, 4, 4), 2)])
    pred = np.concatenate([cube((2, 2, 2), 6), cube((5, 4, 4), 2)])
    whole, core = score_case(pred, label, ISO, [1.0, 1.0])
    assert (whole.dice, core.dice) == (1.0, 0.5)  # 2 * 4 / (8 + 8)


def test_means_are_monai_s() -> None:
    """Over the targets of a case that its label has, then over the cases that have any."""
    dice = [[0.5, 1.0, math.nan], [0.25, math.nan, math.nan], [math.nan, math.nan, math.nan]]
    results = [
        CaseResult(str(case), {str(target): TargetScore(each, each / 2, 0, 0) for target, each in enumerate(row)})
        for case, row in enumerate(dice)
    ]
    assert [result.dice for result in results[:2]] == [0.75, 0.25] and math.isnan(results[2].dice)
    assert [result.nsd for result in results[:2]] == [0.375, 0.125]
    assert mean_row(results)["dice"] == (0.75 + 0.25) / 2
    assert float(do_metric_reduction(torch.tensor(dice), "mean")[0]) == (0.75 + 0.25) / 2
