"""The frame of every report: a page of sections and notes, figures as JSON, tables as CSV."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mim_components.data.prepare.cases import PreparedCases
from mim_components.utils.files import write_text_safely
from mim_components.utils.text import shorten
from mim_components.weights.trained import TrainedNetwork

logger = logging.getLogger(__name__)


def page(title: str, sections: Mapping[str, Iterable[str]], notes: Iterable[str]) -> str:
    r"""A report in Markdown; a section without text is left out, and its heading with it.

    Args:
        title: heading of the page.
        sections: paragraphs by heading; those of "" follow the title.
        notes: how to read the figures.

    Example:
        >>> page("Evaluation", {"": ["10 cases."], "Pictures": []}, ["Read on."])
        '# Evaluation\n\n10 cases.\n\n## Notes\n\n- Read on.\n'
    """
    parts = [f"# {title}"]
    for heading, texts in {**sections, "Notes": ["\n".join(f"- {note}" for note in notes)]}.items():
        if texts := [text for text in texts if text]:
            parts += [*([f"## {heading}"] if heading else []), *texts]
    return "\n\n".join(parts) + "\n"


def write_report(
    folder: Path, figures: Mapping[str, Any], text: str, tables: Mapping[str, str], log: str
) -> list[Path]:
    """Write `metrics.json`, `report.md` and the tables, and log the main tables.

    Args:
        folder: folder of the report; created if missing.
        figures: content of `metrics.json`; undefined values are None, not NaN.
        text: content of `report.md`.
        tables: CSV by file name.
        log: tables for the log.

    Returns:
        The files.
    """
    texts = {
        **tables,
        "metrics.json": json.dumps(figures, indent=1, allow_nan=False, default=str) + "\n",
        "report.md": text,
    }
    logger.info("%s", log)
    for name, content in texts.items():
        write_text_safely(folder / name, content)
    logger.info("Report: %s", folder / "report.md")
    return [folder / name for name in texts]


def training_facts(trained: TrainedNetwork | None) -> dict[str, Any]:
    """What the file beside the weights of a fine-tuning says about its training: the share of the labels."""
    facts: Mapping[str, Any] = {} if trained is None else trained.facts.get("training", {})
    return {name: facts[name] for name in ("label_ratio",) if name in facts}


def scans_of_training(trained: TrainedNetwork | None, prepared: PreparedCases | None) -> list[str]:
    """Names of the evaluated scans whose images the network was trained on, by content; empty if unknown."""
    if trained is None or prepared is None:
        return []
    seen = trained.training_volumes
    names = (str(item["name"]) for item in prepared.validation)
    return [name for name in names if prepared.images.get(name) in seen]


def training_notes(seen: Sequence[str], count: int) -> list[str]:
    """A warning that names scans that were in the training; none if there are none.

    Args:
        seen: names of these scans.
        count: number of evaluated scans.

    Example:
        >>> training_notes(["liver_0"], 2)[0].partition(";")[0]
        '1 of 2 scans were in the training, with the same image'
    """
    if not seen:
        return []
    return [
        f"{len(seen)} of {count} scans were in the training, with the same image; their figures show how well the "
        f"network fits what it has seen: {shorten(seen, 20)}. To validate, give the --fold of the training."
    ]


def why_not_comparable(
    published: Mapping[str, Any],
    facts: Mapping[str, Any],
    seen: Sequence[str] = (),
    label_set: str = "default",
    space: str = "resampled",
) -> list[str]:
    """Differences from the measurement of the paper's figures; none = they are comparable with ours.

    Args:
        published: the paper's figures, see metadata.json.
        facts: facts about the evaluation: `fold`, `label_ratio`, `datalist`.
        seen: names of evaluated scans that were in the training.
        label_set: name of the label set.
        space: grid of the scores.
    """
    wanted = published.get("label_set", label_set)
    fold, ratio = facts.get("fold", 0), facts.get("label_ratio", 1.0)
    reasons = {
        f"the label set is {label_set!r}, theirs {wanted!r}": wanted != label_set,
        f"the scores are in {space} space, theirs in resampled space": space != "resampled",
        f"the fold is {fold}, theirs 0": fold != 0,
        f"the training used {ratio} of the labels, theirs all": float(ratio) != 1.0,
        "the cases are those of a list of your own": bool(facts.get("datalist")),
        "scans of the training are among the evaluated": bool(seen),
    }
    return [reason for reason, holds in reasons.items() if holds]


def known(value: float) -> float | None:
    """The value, or None for NaN, which JSON lacks."""
    return None if math.isnan(value) else value


def percent(value: float | None, digits: int = 2, absent: str = "-") -> str:
    """A share as a cell of a table.

    Example:
        >>> percent(0.5), percent(0.12345, digits=1), percent(None), percent(math.nan)
        ('50.00', '12.3', '-', '-')
    """
    return absent if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"
