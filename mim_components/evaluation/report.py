"""From mean scores to the figures of a report, and from those to text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mim_components.evaluation.step import mean_scores
from mim_components.tables import csv_table, markdown_table

PREDICTORS = {"mse": "", "mse_visible_mean": "visible_mean_", "mse_token_mean": "token_mean_"}


def error_figures(mse: float, hu_width: float) -> dict[str, float | None]:
    """MSE of intensities in [0, 1], RMSE in HU, and PSNR in dB with peak 1, that is, `hu_width`; no PSNR at error 0.

    Example:
        >>> error_figures(0.01, 2000.0)
        {'mse': 0.01, 'rmse_hu': 200.0, 'psnr_db': 20.0}
    """
    return {"mse": mse, "rmse_hu": math.sqrt(mse) * hu_width, "psnr_db": -10 * math.log10(mse) if mse > 0 else None}


def level_rows(means: Mapping[str, float], num_levels: int, hu_width: float) -> list[dict[str, Any]]:
    """One row per level: the figures of the prediction and, with a prefix, of the trivial predictors."""
    rows = []
    for level in range(1, num_levels + 1):
        row: dict[str, Any] = {"level": level}
        for name, prefix in PREDICTORS.items():
            if f"{name}_level{level}" in means:
                figures = error_figures(means[f"{name}_level{level}"], hu_width)
                row.update({f"{prefix}{key}": value for key, value in figures.items()})
        rows.append(row)
    return rows


def pair_rows(means: Mapping[str, float], num_levels: int) -> list[dict[str, Any]]:
    """One row per pair of adjacent levels: accuracies, what guessing gives, and the mean InfoNCE."""
    names = ("accuracy", "overlap_accuracy", "overlap_chance", "infonce")
    return [
        {"parent_level": level, **{name: means[f"{name}_level{level}_{level + 1}"] for name in names}}
        for level in range(1, num_levels)
    ]


def volume_table(rows: Sequence[Mapping[str, Any]], num_levels: int, hu_width: float) -> str:
    """CSV with one line per volume, means over its crops."""
    lines = []
    for volume in dict.fromkeys(row["volume"] for row in rows):
        crops = [dict(row) for row in rows if row["volume"] == volume]
        means = mean_scores(crops)
        line: dict[str, Any] = {"volume": volume, "crops": len(crops)}
        for row in level_rows(means, num_levels, hu_width):
            line.update({f"{name}_level{row['level']}": value for name, value in row.items() if name != "level"})
        line.update({name: value for name, value in means.items() if not name.startswith("mse")})
        lines.append(line)
    return csv_table(lines)


def markdown(report: Mapping[str, Any]) -> str:
    """The report as a page: what was evaluated on what, both tables, and how to read them."""
    data = report["data"]
    parts = [
        "# Evaluation of a MiM pre-training",
        f"Weights: {report['weights']}. Data: {data['origin']}, {data['volumes']} volumes, "
        f"{report['crops_per_volume']} crops each, seed {report['seed']}.",
        "## Reconstruction of masked voxels",
        level_table(report),
    ]
    if report["pairs"]:
        parts += ["## Alignment", pair_table(report)]
    return "\n\n".join([*parts, "## Notes", "\n".join(f"- {note}" for note in report["notes"])]) + "\n"


def level_table(report: Mapping[str, Any]) -> str:
    """Table of the reconstruction in Markdown."""
    standardized = "token_mean_mse" in report["levels"][0]
    head = ["level", "native size", "volumes per crop", "MSE", "RMSE (HU)", "PSNR (dB)", "visible mean: RMSE (HU)"]
    rows = [
        [
            str(row["level"]),
            "x".join(str(side) for side in row["native_size"]),
            str(row["volumes_per_crop"]),
            f"{row['mse']:.5f}",
            f"{row['rmse_hu']:.1f}",
            _decibel(row["psnr_db"]),
            f"{row['visible_mean_rmse_hu']:.1f}",
            _decibel(row["visible_mean_psnr_db"]),
            *([f"{row['token_mean_rmse_hu']:.1f}"] if standardized else []),
        ]
        for row in report["levels"]
    ]
    head += ["visible mean: PSNR (dB)", *(["token mean: RMSE (HU)"] if standardized else [])]
    return markdown_table(head, rows)


def pair_table(report: Mapping[str, Any]) -> str:
    """Table of the alignment in Markdown."""
    head = ["levels", "children per crop", "parent token found", "chance", "chance among candidates"]
    head += ["overlapping token found", "chance", "mean InfoNCE"]
    rows = [
        [
            f"{row['parent_level']}, {row['parent_level'] + 1}",
            str(row["children_per_crop"]),
            f"{row['accuracy']:.1%}",
            f"{row['chance']:.1%}",
            f"{row['candidate_chance']:.1%}",
            f"{row['overlap_accuracy']:.1%}",
            f"{row['overlap_chance']:.1%}",
            f"{row['infonce']:.3f}",
        ]
        for row in report["pairs"]
    ]
    return markdown_table(head, rows)


def _decibel(value: float | None) -> str:
    return "no error" if value is None else f"{value:.2f}"
