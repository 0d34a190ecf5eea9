"""Write what an evaluation found when it is complete."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine, Events

from mim_components import __version__
from mim_components.data.volumes import PreparedDataset, per_axis
from mim_components.engines.evaluation import CropScores
from mim_components.handlers.reports.pretraining import (
    level_rows,
    level_table,
    markdown,
    pair_rows,
    pair_table,
    volume_table,
)
from mim_components.transforms.crop import MultiLevelCropMask
from mim_components.utils.files import write_text_safely
from mim_components.weights.trained import TrainedNetwork

logger = logging.getLogger(__name__)


class ReportHandler:
    """At the end, write `metrics.json`, `metrics.csv` (one line per volume) and `report.md`, and log the tables.

    Args:
        scores: of all crops.
        trained: the network that was evaluated.
        prepared: the volumes.
        crop: that cut the levels.
        output_dir: folder for the files; made when missing.
        validation: folder or list of the validation volumes; None = the volumes are the training's.
        hu_window: intensities that were scaled to 0 and 1, HU.
        num_crops: crops per volume.
        seed: of the crops.
        standardized: the network was trained on standardised tokens.
        alignment_weights: of the training; the heads of a pair with weight 0 were never trained.
    """

    def __init__(
        self,
        scores: CropScores,
        trained: TrainedNetwork,
        prepared: PreparedDataset,
        crop: MultiLevelCropMask,
        output_dir: str | Path,
        validation: str | Path | None = None,
        hu_window: Sequence[float] = (-1000.0, 1000.0),
        num_crops: int = 4,
        seed: int = 0,
        standardized: bool = False,
        alignment_weights: Sequence[float] = (),
    ) -> None:
        self.scores = scores
        self.trained = trained
        self.prepared = prepared
        self.crop = crop
        self.output_dir = Path(output_dir)
        self.validation = validation
        self.hu_window = (float(hu_window[0]), float(hu_window[1]))
        self.num_crops = num_crops
        self.seed = seed
        self.standardized = standardized
        self.alignment_weights = tuple(alignment_weights)

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the files; the first process does."""
        if idist.get_rank() != 0:
            return
        report = self.report()
        files = {
            "metrics.json": json.dumps(report, indent=1, allow_nan=False) + "\n",
            "metrics.csv": volume_table(self.scores.rows, len(self.crop.level_sizes), self._hu_width),
            "report.md": markdown(report),
        }
        for name, text in files.items():
            write_text_safely(self.output_dir / name, text)
        tables = [level_table(report), *([pair_table(report)] if report["pairs"] else [])]
        notes = [f"Note: {note}" for note in report["notes"]]
        logger.info("%s", "\n".join([f"Evaluated {self.trained.origin}", *tables, *notes]))
        logger.info("Report: %s", self.output_dir / "report.md")

    @property
    def _hu_width(self) -> float:
        return self.hu_window[1] - self.hu_window[0]

    def report(self) -> dict[str, Any]:
        """Everything that `metrics.json` holds."""
        means, num_levels = self.scores.compute(), len(self.crop.level_sizes)
        tokens, visible = int(np.prod(self.crop.grid)), self.crop.num_visible
        levels, pairs = level_rows(means, num_levels, self._hu_width), pair_rows(means, num_levels)
        for number, row in enumerate(levels):
            row |= {
                "native_size": list(self.crop.level_sizes[number]),
                "volumes_per_crop": self.crop.num_children**number,
            }
        candidates = tokens - visible if self.crop.child_source == "masked" else visible
        for row in pairs:
            row |= {"children_per_crop": self.crop.num_children ** row["parent_level"]}
            row |= {"chance": 1 / tokens, "candidate_chance": 1 / candidates}
        return {
            "weights": self.trained.origin,
            "step": self.trained.contract.step if self.trained.contract else None,
            "version": __version__,
            "seed": self.seed,
            "crops_per_volume": self.num_crops,
            "tokens": tokens,
            "masked_tokens": tokens - visible,
            "hu_window": list(self.hu_window),
            "data": {
                "origin": f"validation data {self.validation}" if self.validation else "the training data",
                "volumes": len(self.prepared),
                "excluded": [str(bad) for bad in self.prepared.bad],
                "digest": self.prepared.digest,
                "spacing": self.trained.spacing,
            },
            "levels": levels,
            "pairs": pairs,
            "notes": self._notes(tokens, visible, candidates),
        }

    def _notes(self, tokens: int, visible: int, candidates: int) -> list[str]:
        low, high = self.hu_window
        notes = [
            f"Errors are means over the voxels of the masked tokens ({tokens - visible} of {tokens} per volume), of "
            f"intensities clipped to {low:g} to {high:g} HU and scaled to [0, 1]. PSNR is that of the mean MSE, with "
            f"peak 1 ({high - low:g} HU). Visible mean: every masked voxel is set to the mean of the volume's visible "
            "voxels."
        ]
        if len(self.crop.level_sizes) > 1:
            notes.append(
                f"A parent token is found when it is the most similar of its parent's {tokens} tokens to the child's "
                f"context vector. Children are drawn for {self.crop.child_source} tokens only; a guess that knows "
                f"which these are has 1 in {candidates}. A child may overlap several tokens."
            )
            first = "" if self.crop.child_content == "any" else " Children are drawn from tokens with content first."
            notes.append(
                f"With content: children whose parent token spans more than {self.crop.content_range:g} HU in the "
                "resized parent, means over the crops that have any. Air is easy to reconstruct, and one token of air "
                f"is as good as another.{first}"
            )
        if not self.validation:
            notes.append("These are the training volumes: the figures say how well the network fits what it has seen.")
        if self.trained.spacing is not None:
            notes.append(
                f"Volumes were resampled to {per_axis(self.trained.spacing)} mm, as in the training; native sizes are "
                "voxels of that grid."
            )
        known = self.trained.training_volumes if self.validation else frozenset()
        if seen := [volume.name for volume in self.prepared.volumes if volume.content in known]:
            notes.append(
                f"{len(seen)} of {len(self.prepared)} volumes were in the training, with the same voxels; their "
                f"figures say how well the network fits what it has seen: {', '.join(seen[:20])}"
                + (f" and {len(seen) - 20} more." if len(seen) > 20 else ".")
            )
        if self.standardized:
            notes.append(
                "The network predicts standardised tokens. To compare in HU, each got the mean and the standard "
                "deviation of the true token, which a network cannot know; compare with the token mean, not with the "
                "visible mean."
            )
        padded = self.prepared.count_smaller_than(self.crop.level_sizes[0])
        if padded:
            notes.append(
                f"{padded} of {len(self.prepared)} volumes are smaller than level 1 and were padded with air, which "
                "counts."
            )
        if self.prepared.bad:
            notes.append(f"{len(self.prepared.bad)} volumes cannot be used and were left out; see metrics.json.")
        notes += [
            f"The alignment of levels {pair} and {pair + 1} had weight 0 in the training: its heads were not trained."
            for pair, weight in enumerate(self.alignment_weights, start=1)
            if not weight
        ]
        return notes
