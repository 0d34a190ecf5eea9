"""One batch of an evaluation, as MONAI's evaluator calls it, and the mean over all batches, as Ignite keeps it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from operator import itemgetter
from typing import Any

import torch
from ignite.metrics import Metric, MetricsLambda
from torch import Tensor

from mim_components.evaluation.scores import alignment_scores, reconstruction_scores
from mim_components.levels import LevelBatch, level_batch
from mim_components.networks.mim import MiMOutput


class EvaluationStep:
    """`iteration_update` of MONAI's `SupervisedEvaluator`: the scores of every crop of a batch, in float32.

    Args:
        num_levels: number of levels L.
        patch_size: edge of a token, voxels.
        temperature: of InfoNCE.
        standardized: the network was trained on standardised tokens.

    Returns:
        When called, `names` and `crops` (volume and number of each crop) and `scores`: one dictionary per crop with
        `mse_level1` ... and `accuracy_level1_2` ..., means over the crop's volumes of a level, see
        `reconstruction_scores` and `alignment_scores`.
    """

    def __init__(self, num_levels: int, patch_size: int, temperature: float = 0.1, standardized: bool = False) -> None:
        self.num_levels = num_levels
        self.patch_size = patch_size
        self.temperature = temperature
        self.standardized = standardized

    def __call__(self, engine: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Score one batch."""
        levels = level_batch(batch, self.num_levels, engine.state.device)
        engine.network.eval()
        with torch.no_grad():
            output = engine.network(levels.images, levels.masked)
            samples = len(batch["name"])
            scores = self._reconstruction(output, levels, samples)
            for sample, row in enumerate(scores):
                row.update(self._alignment(output, levels, sample, samples))
        return {"names": list(batch["name"]), "crops": [int(each) for each in batch["crop"]], "scores": scores}

    def _reconstruction(self, output: MiMOutput, levels: LevelBatch, samples: int) -> list[dict[str, float]]:
        rows: list[dict[str, float]] = [{} for _ in range(samples)]
        for level, (prediction, image, masked) in enumerate(
            zip(output.prediction, levels.images, levels.masked, strict=True), start=1
        ):
            scores = reconstruction_scores(prediction, image, masked, self.patch_size, self.standardized)
            for name, values in scores.items():
                for row, value in zip(rows, values.view(samples, -1).mean(1).tolist(), strict=True):
                    row[f"{name}_level{level}"] = value
        return rows

    def _alignment(self, output: MiMOutput, levels: LevelBatch, sample: int, samples: int) -> dict[str, float]:
        row: dict[str, float] = {}
        for pair, everything in enumerate(
            zip(output.context, output.patches, levels.parent_token, levels.parent_overlap, strict=True), start=1
        ):
            context, patches, token, overlap = (_of_sample(each, sample, samples) for each in everything)
            scores = alignment_scores(context, patches, token, overlap, self.temperature)
            row.update({f"{name}_level{pair}_{pair + 1}": float(value) for name, value in scores.items()})
        return row


def _of_sample(values: Tensor, sample: int, samples: int) -> Tensor:
    return values.view(samples, -1, *values.shape[1:])[sample]


class CropScores(Metric):
    """Collect the scores of all crops; the result is their mean by name, over crops.

    Attributes:
        rows: for every crop `volume`, `crop` and its scores.

    Raises:
        ValueError: a score is not finite; names the volume.
    """

    required_output_keys = ("names", "crops", "scores")
    _skip_unrolling = True

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        super().__init__()

    def reset(self) -> None:
        """Forget everything."""
        self.rows = []

    def update(self, output: Any) -> None:
        """Take the scores of a batch."""
        for name, crop, scores in zip(*output, strict=True):
            bad = [key for key, value in scores.items() if not math.isfinite(value)]
            if bad:
                raise ValueError(f"{name}, crop {crop}: {bad[0]} is not finite.")
            self.rows.append({"volume": name, "crop": crop, **scores})

    def compute(self) -> dict[str, float]:
        """Mean of every score over all crops; `mse` is the mean of the levels'."""
        means = mean_scores(self.rows)
        levels = [value for name, value in means.items() if name.startswith("mse_level")]
        return {**means, "mse": math.fsum(levels) / len(levels)}


def mean_scores(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean of every score of the rows, by name."""
    names = [name for name in rows[0] if name not in ("volume", "crop")]
    return {name: math.fsum(row[name] for row in rows) / len(rows) for name in names}


def mean_error(scores: CropScores) -> MetricsLambda:
    """The key metric: mean squared error on masked voxels, mean of the levels; smaller is better."""
    return MetricsLambda(itemgetter("mse"), scores)
