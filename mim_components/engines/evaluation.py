"""The step of a pre-training's evaluation, in the form that MONAI's evaluator calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mim_components.metrics.pretraining import alignment_scores, reconstruction_scores
from mim_components.networks.mim import MiMOutput
from mim_components.transforms.levels import LevelBatch, level_batch

Scores = tuple[str, str, int, Tensor]  # name, level or pair of levels as text, level of the volumes, (volumes,)


class EvaluationStep:
    """`iteration_update` of MONAI's `SupervisedEvaluator`: the scores of every crop of a batch, in float32.

    Args:
        num_levels: number of levels L.
        patch_size: edge of a token, voxels.
        temperature: temperature of InfoNCE.
        standardized: the network was trained on standardised tokens.

    Returns:
        When called: `names` and `crops` (volume and number of each crop) and `scores`, one dictionary per crop with
        `mse_level1` ... and `accuracy_level1_2` ..., means over the crop's volumes of a level, see
        `reconstruction_scores` and `alignment_scores`. `mse_content_level2` ... and `accuracy_content_level1_2` ... are
        the same over the volumes whose parent token has content, None if the crop has none, and
        `empty_children_level2` ... is the share of the others.

    Example:
        >>> from types import SimpleNamespace
        >>> class Zeros(torch.nn.Module):  # predicts 0 for all 5 masked tokens of 8 x 8 x 8 voxels
        ...     def forward(self, images, masked):
        ...         return MiMOutput((torch.zeros(1, 5, 512),), (), ())
        >>> engine = SimpleNamespace(network=Zeros(), state=SimpleNamespace(device="cpu"))
        >>> image, masked = torch.full((1, 1, 1, 16, 16, 16), 0.5), (torch.arange(8) > 2).view(1, 1, 8)
        >>> batch = {"name": ["ct"], "crop": torch.tensor([0]), "image_level1": image, "masked_level1": masked}
        >>> EvaluationStep(num_levels=1, patch_size=8)(engine, batch)["scores"]
        [{'mse_level1': 0.25, 'mse_visible_mean_level1': 0.0}]
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
            tables = [*self._reconstruction(output, levels), *self._alignment(output, levels)]
        columns = {
            f"empty_children_level{level}": _means(~content, samples)
            for level, content in enumerate(levels.content, start=2)
        }
        for name, place, level, values in tables:
            columns[f"{name}_level{place}"] = _means(values, samples)
            if level > 1:
                columns[f"{name}_content_level{place}"] = _means(values, samples, levels.content[level - 2])
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return {"names": list(batch["name"]), "crops": [int(each) for each in batch["crop"]], "scores": rows}

    def _reconstruction(self, output: MiMOutput, levels: LevelBatch) -> Iterator[Scores]:
        for level, everything in enumerate(zip(output.prediction, levels.images, levels.masked, strict=True), start=1):
            scores = reconstruction_scores(*everything, self.patch_size, self.standardized)
            yield from ((name, f"{level}", level, values) for name, values in scores.items())

    def _alignment(self, output: MiMOutput, levels: LevelBatch) -> Iterator[Scores]:
        for pair, everything in enumerate(
            zip(output.context, output.patches, levels.parent_token, levels.parent_overlap, strict=True), start=1
        ):
            scores = alignment_scores(*everything, self.temperature)
            yield from ((name, f"{pair}_{pair + 1}", pair + 1, values) for name, values in scores.items())


def _means(values: Tensor, samples: int, content: Tensor | None = None) -> list[float | None]:
    """Mean of every sample over its volumes, or over those with content; None if there are none."""
    rows = values.cpu().double().view(samples, -1)
    chosen = torch.ones_like(rows, dtype=torch.bool) if content is None else content.cpu().view(samples, -1)
    return [float(row[each].mean()) if each.any() else None for row, each in zip(rows, chosen, strict=True)]
