"""From mean scores to the figures of a report, and from those to text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mim_components.engines.evaluation import mean_scores
from mim_components.utils.text import csv_table, markdown_table

PREDICTORS = {"mse": "", "mse_visible_mean": "visible_mean_", "mse_token_mean": "token_mean_"}
PAIR_FIGURES = ("accuracy", "overlap_accuracy", "overlap_chance", "infonce")


def error_figures(mse: float, hu_width: float) -> dict[str, float | None]:
    """MSE of intensities in [0, 1], RMSE in HU, and PSNR in dB with peak 1, that is, `hu_width`; no PSNR at error 0.

    Example:
        >>> error_figures(0.01, 2000.0)
        {'mse': 0.01, 'rmse_hu': 200.0, 'psnr_db': 20.0}
    """
    return {"mse": mse, "rmse_hu": math.sqrt(mse) * hu_width, "psnr_db": -10 * math.log10(mse) if mse > 0 else None}


def level_rows(means: Mapping[str, float], num_levels: int, hu_width: float) -> list[dict[str, Any]]:
    """One row per level: the figures of the prediction and, with a prefix, of the trivial predictors.

    From level 2 also `empty_children`, the share of the volumes whose parent token has no content, and `content`, the
    figures of the others, None where there are none.
    """
    rows = []
    for level in range(1, num_levels + 1):
        row: dict[str, Any] = {"level": level, **_level_figures(means, f"level{level}", hu_width)}
        if level > 1:
            row["empty_children"] = means[f"empty_children_level{level}"]
            row["content"] = _level_figures(means, f"content_level{level}", hu_width) or None
        rows.append(row)
    return rows


def _level_figures(means: Mapping[str, float], place: str, hu_width: float) -> dict[str, float | None]:
    return {
        f"{prefix}{key}": value
        for name, prefix in PREDICTORS.items()
        if f"{name}_{place}" in means
        for key, value in error_figures(means[f"{name}_{place}"], hu_width).items()
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


def volume_table(rows: Sequence[Mapping[str, Any]], num_levels: int, hu_width: float) -> str:
    """CSV with one line per volume, means over its crops."""
    lines = []
    for volume in dict.fromkeys(row["volume"] for row in rows):
        crops = [dict(row) for row in rows if row["volume"] == volume]
        means = mean_scores(crops)
        line: dict[str, Any] = {"volume": volume, "crops": len(crops)}
        for row in level_rows(means, num_levels, hu_width):
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
    """Table of the reconstruction in Markdown; a second line of a level is about the volumes with content."""
    standardized = "token_mean_mse" in report["levels"][0]
    head = ["level", "native size", "volumes per crop", "MSE", "RMSE (HU)", "PSNR (dB)", "visible mean: RMSE (HU)"]
    head += ["visible mean: PSNR (dB)", *(["token mean: RMSE (HU)"] if standardized else [])]

    def cells(figures: Mapping[str, Any] | None) -> list[str]:
        if figures is None:
            return ["-"] * (len(head) - 3)
        return [
            f"{figures['mse']:.5f}",
            f"{figures['rmse_hu']:.1f}",
            _decibel(figures["psnr_db"]),
            f"{figures['visible_mean_rmse_hu']:.1f}",
            _decibel(figures["visible_mean_psnr_db"]),
            *([f"{figures['token_mean_rmse_hu']:.1f}"] if standardized else []),
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
    """Mean number of volumes with content, of so many."""
    return f"{volumes * (1 - row['empty_children']):.1f}"


def _decibel(value: float | None) -> str:
    return "no error" if value is None else f"{value:.2f}"
