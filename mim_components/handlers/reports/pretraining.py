"""Files of a pre-training's evaluation: from mean scores to figures, text and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine, Events

from mim_components import __version__
from mim_components.data.prepare.label_maps import summary_of
from mim_components.data.volumes import PreparedDataset, per_axis
from mim_components.handlers.reports.frame import page, write_report
from mim_components.losses import MiMLoss
from mim_components.metrics.pretraining import CropScores, mean_scores
from mim_components.transforms.crop import MultiLevelCropMask
from mim_components.transforms.intensity import CT, PERCENTILES, IntensityScale
from mim_components.utils.text import counted, csv_table, markdown_table, shorten
from mim_components.weights.trained import TrainedNetwork

PREDICTORS = {"mse": "", "mse_visible_mean": "visible_mean_", "mse_token_mean": "token_mean_"}
PAIR_FIGURES = ("accuracy", "overlap_accuracy", "overlap_chance", "infonce")


def error_figures(mse: float, scale: IntensityScale = CT) -> dict[str, float | None]:
    """MSE of intensities in [0, 1], RMSE in the unit, and PSNR in dB with peak 1, the width of the window.

    There is no PSNR at error 0.

    Example:
        >>> error_figures(0.01), error_figures(0.01, IntensityScale("mr"))["rmse_permille"]
        ({'mse': 0.01, 'rmse_hu': 200.0, 'psnr_db': 20.0}, 100.0)
    """
    rmse, psnr = math.sqrt(mse) * scale.width, -10 * math.log10(mse) if mse > 0 else None
    return {"mse": mse, f"rmse_{scale.key}": rmse, "psnr_db": psnr}


def level_rows(means: Mapping[str, float], num_levels: int, scale: IntensityScale = CT) -> list[dict[str, Any]]:
    """One row per level: the figures of the prediction and, with a prefix, of the trivial predictors.

    From level 2 also `empty_children`, the share of the volumes whose parent token has no content, and `content`, the
    figures of the others, None where there are none.
    """
    rows = []
    for level in range(1, num_levels + 1):
        row: dict[str, Any] = {"level": level, **_level_figures(means, f"level{level}", scale)}
        if level > 1:
            row["empty_children"] = means[f"empty_children_level{level}"]
            row["content"] = _level_figures(means, f"content_level{level}", scale) or None
        rows.append(row)
    return rows


def _level_figures(means: Mapping[str, float], place: str, scale: IntensityScale) -> dict[str, float | None]:
    return {
        f"{prefix}{key}": value
        for name, prefix in PREDICTORS.items()
        if f"{name}_{place}" in means
        for key, value in error_figures(means[f"{name}_{place}"], scale).items()
    }


def pair_rows(means: Mapping[str, float], num_levels: int) -> list[dict[str, Any]]:
    """One row per pair of adjacent levels: accuracies, what guessing gives, and the mean InfoNCE.

    `empty_children` and `content` as in `level_rows`.
    """

    def figures(place: str) -> dict[str, float]:
        return {name: means[f"{name}_{place}"] for name in PAIR_FIGURES if f"{name}_{place}" in means}

    return [
        {
            "parent_level": level,
            **figures(f"level{level}_{level + 1}"),
            "empty_children": means[f"empty_children_level{level + 1}"],
            "content": figures(f"content_level{level}_{level + 1}") or None,
        }
        for level in range(1, num_levels)
    ]


def volume_table(rows: Sequence[Mapping[str, Any]], num_levels: int, scale: IntensityScale = CT) -> str:
    """CSV with one line per volume, means over its crops."""
    lines = []
    for volume in dict.fromkeys(row["volume"] for row in rows):
        crops = [dict(row) for row in rows if row["volume"] == volume]
        means = mean_scores(crops)
        line: dict[str, Any] = {"volume": volume, "crops": len(crops)}
        for row in level_rows(means, num_levels, scale):
            content = row.pop("content", None) or {}
            line.update({f"{name}_level{row['level']}": value for name, value in row.items() if name != "level"})
            line.update({f"content_{name}_level{row['level']}": value for name, value in content.items()})
        line.update({name: value for name, value in means.items() if not name.startswith(("mse", "empty"))})
        lines.append(line)
    names = dict.fromkeys(name for line in lines for name in line)  # a volume without content lacks some
    lines = [{name: line.get(name) for name in names} for line in lines]
    return csv_table(lines)


def markdown(report: Mapping[str, Any]) -> str:
    """The report as a page: what was evaluated on what, both tables, and how to read them."""
    data = report["data"]
    intro = (
        f"Weights: {report['weights']}. Data: {data['origin']}, {counted(data['volumes'], 'volume')}, "
        f"{counted(report['crops_per_volume'], 'crop')} each, seed {report['seed']}."
    )
    sections = {
        "": [intro],
        "Reconstruction of masked voxels": [level_table(report)],
        "Alignment": [pair_table(report)] if report["pairs"] else [],
    }
    return page("Evaluation of a MiM pre-training", sections, report["notes"])


def level_table(report: Mapping[str, Any]) -> str:
    """Table of the reconstruction in Markdown; a second line of a level is about the volumes with content."""
    standardized = "token_mean_mse" in report["levels"][0]
    scale = IntensityScale(report["modality"])
    unit, rmse = scale.unit, f"rmse_{scale.key}"
    head = ["level", "native size", "volumes per crop", "MSE", f"RMSE ({unit})", "PSNR (dB)"]
    head += [f"visible mean: RMSE ({unit})", "visible mean: PSNR (dB)"]
    head += [f"token mean: RMSE ({unit})"] if standardized else []

    def cells(figures: Mapping[str, Any] | None) -> list[str]:
        if figures is None:
            return ["-"] * (len(head) - 3)
        return [
            f"{figures['mse']:.5f}",
            f"{figures[rmse]:.1f}",
            _decibel(figures["psnr_db"]),
            f"{figures[f'visible_mean_{rmse}']:.1f}",
            _decibel(figures["visible_mean_psnr_db"]),
            *([f"{figures[f'token_mean_{rmse}']:.1f}"] if standardized else []),
        ]

    rows = []
    for row in report["levels"]:
        size, volumes = "x".join(str(side) for side in row["native_size"]), row["volumes_per_crop"]
        rows.append([str(row["level"]), size, str(volumes), *cells(row)])
        if "content" in row:
            rows.append([f"{row['level']}, with content", size, _filled(volumes, row), *cells(row["content"])])
    return markdown_table(head, rows)


def pair_table(report: Mapping[str, Any]) -> str:
    """Table of the alignment in Markdown; the second line of a pair is about the children with content."""
    head = ["levels", "children per crop", "parent token found", "chance", "chance among candidates"]
    head += ["overlapping token found", "chance", "mean InfoNCE"]

    def cells(figures: Mapping[str, Any] | None, row: Mapping[str, Any]) -> list[str]:
        if figures is None:
            return ["-"] * (len(head) - 2)
        return [
            f"{figures['accuracy']:.1%}",
            f"{row['chance']:.1%}",
            f"{row['candidate_chance']:.1%}",
            f"{figures['overlap_accuracy']:.1%}",
            f"{figures['overlap_chance']:.1%}",
            f"{figures['infonce']:.3f}",
        ]

    rows = []
    for row in report["pairs"]:
        levels, children = f"{row['parent_level']}, {row['parent_level'] + 1}", row["children_per_crop"]
        rows.append([levels, str(children), *cells(row, row)])
        rows.append([f"{levels}, with content", _filled(children, row), *cells(row["content"], row)])
    return markdown_table(head, rows)


def _filled(volumes: int, row: Mapping[str, Any]) -> str:
    """Mean number of volumes with content."""
    return f"{volumes * (1 - row['empty_children']):.1f}"


def _decibel(value: float | None) -> str:
    return "no error" if value is None else f"{value:.2f}"


class ReportHandler:
    """At the end, write `metrics.json`, `metrics.csv` (one line per volume) and `report.md`, and log the tables.

    Args:
        scores: scores of all crops.
        trained: network that was evaluated.
        prepared: volumes of the evaluation.
        crop: transform that cut the levels.
        output_dir: folder for the files; created if missing.
        validation: folder or list of the validation volumes; None = the volumes are the training's.
        scale: meaning of the prepared values, and the window that was scaled to 0 and 1.
        num_crops: crops per volume.
        seed: seed of the crops.
        standardized: the network was trained on standardised tokens.
        loss: loss of the training; heads of a pair with weight 0 were never trained. None = all were.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from torch.nn import Identity
        >>> scores = CropScores()
        >>> scores.update((["ct"], [0], [{"mse_level1": 0.01, "mse_visible_mean_level1": 0.04}]))
        >>> trained = TrainedNetwork(Identity(), Path("model.pt"))
        >>> crop = MultiLevelCropMask([(16, 16, 16)], (16, 16, 16), patch_size=8)
        >>> with TemporaryDirectory() as folder:
        ...     ReportHandler(scores, trained, PreparedDataset([]), crop, folder)(Engine(lambda engine, batch: None))
        ...     table = Path(folder, "metrics.csv").read_text().splitlines()
        >>> [row.split(",")[:5] for row in table]  # 0.1 of 2000 HU, 10 * log10(1 / 0.01) dB
        [['volume', 'crops', 'mse_level1', 'rmse_hu_level1', 'psnr_db_level1'], ['ct', '1', '0.01', '200.0', '20.0']]
    """

    def __init__(
        self,
        scores: CropScores,
        trained: TrainedNetwork,
        prepared: PreparedDataset,
        crop: MultiLevelCropMask,
        output_dir: str | Path,
        validation: str | Path | None = None,
        scale: IntensityScale = CT,
        num_crops: int = 4,
        seed: int = 0,
        standardized: bool = False,
        loss: MiMLoss | None = None,
    ) -> None:
        self.scores = scores
        self.trained = trained
        self.prepared = prepared
        self.crop = crop
        self.output_dir = Path(output_dir)
        self.validation = validation
        self.scale = scale
        self.num_crops = num_crops
        self.seed = seed
        self.standardized = standardized
        self.alignment_weights = [] if loss is None else loss.weights(len(crop.level_sizes))[1]

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the files, in the first process."""
        if idist.get_rank() != 0:
            return
        report = self.report()
        tables = [level_table(report), *([pair_table(report)] if report["pairs"] else [])]
        notes = [f"Note: {note}" for note in report["notes"]]
        csv = {"metrics.csv": volume_table(self.scores.rows, len(self.crop.level_sizes), self.scale)}
        log = "\n".join([f"Evaluated {self.trained.origin}", *tables, *notes])
        write_report(self.output_dir, report, markdown(report), csv, log)

    def report(self) -> dict[str, Any]:
        """Everything that `metrics.json` holds."""
        means, num_levels = self.scores.compute(), len(self.crop.level_sizes)
        tokens, visible = int(np.prod(self.crop.grid)), self.crop.num_visible
        levels, pairs = level_rows(means, num_levels, self.scale), pair_rows(means, num_levels)
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
            "modality": self.scale.modality,
            **({"percentiles": PERCENTILES} if self.scale.is_mr else {"hu_window": list(self.scale.window)}),
            "data": {
                "origin": f"validation data {self.validation}" if self.validation else "the training data",
                "volumes": len(self.prepared),
                "excluded": [str(bad) for bad in self.prepared.bad],
                "passed_over": [str(passed) for passed in self.prepared.passed],
                "digest": self.prepared.digest,
                "spacing": self.trained.spacing,
            },
            "levels": levels,
            "pairs": pairs,
            "notes": self._notes(tokens, visible, candidates),
        }

    def _notes(self, tokens: int, visible: int, candidates: int) -> list[str]:
        low, high = self.scale.window
        unit = self.scale.unit
        span = f"{low:g} to {high:g} HU"
        if self.scale.is_mr:
            span = f"percentiles {PERCENTILES[0]} to {PERCENTILES[1]} of the volume"
        notes = [
            f"Errors are means over the voxels of the masked tokens ({tokens - visible} of {tokens} per volume), of "
            f"intensities clipped to {span} and scaled to [0, 1]. PSNR is that of the mean MSE, with "
            f"peak 1 ({high - low:g} {unit}). Visible mean: every masked voxel is set to the mean of the volume's "
            "visible voxels."
        ]
        if len(self.crop.level_sizes) > 1:
            notes.append(
                f"A parent token is found when it is the most similar of its parent's {tokens} tokens to the child's "
                f"context vector. Children are drawn for {self.crop.child_source} tokens only; a guess that knows "
                f"which these are has 1 in {candidates}. A child may overlap several tokens."
            )
            first = "" if self.crop.child_content == "any" else " Children are drawn from tokens with content first."
            notes.append(
                f"With content: children whose parent token spans more than {self.crop.content_range:g} {unit} in the "
                "resized parent, means over the crops that have any. Air is easy to reconstruct, and one token of air "
                f"is as good as another.{first}"
            )
        if not self.validation:
            notes.append("These are the training volumes: the figures show how well the network fits what it has seen.")
        if self.trained.spacing is not None:
            notes.append(
                f"Volumes were resampled to {per_axis(self.trained.spacing)} mm, as in the training; native sizes are "
                "voxels of that grid."
            )
        known = self.trained.training_volumes if self.validation else frozenset()
        if seen := [volume.name for volume in self.prepared.volumes if volume.content in known]:
            notes.append(
                f"{len(seen)} of {len(self.prepared)} volumes were in the training, with the same voxels; their "
                f"figures show how well the network fits what it has seen: {shorten(seen, 20)}."
            )
        if self.standardized:
            notes.append(
                f"The network predicts standardised tokens. To compare in {unit}, each got the mean and the standard "
                "deviation of the true token, which a network cannot know; compare with the token mean, not with the "
                "visible mean."
            )
        padded = self.prepared.count_smaller_than(self.crop.level_sizes[0])
        if padded:
            notes.append(
                f"{padded} of {len(self.prepared)} volumes are smaller than level 1 and were padded with air, which "
                "enters the figures."
            )
        if self.prepared.bad:
            notes.append(f"{counted(len(self.prepared.bad), 'bad volume')} left out; see metrics.json.")
        if self.prepared.passed:
            notes.append(f"{summary_of(self.prepared.passed)}; see metrics.json.")
        notes += [
            f"The alignment of levels {pair} and {pair + 1} had weight 0 in the training: its heads were not trained."
            for pair, weight in enumerate(self.alignment_weights, start=1)
            if not weight
        ]
        return notes
