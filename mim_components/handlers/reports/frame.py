"""The frame of every report: a page of sections and notes, figures as JSON, tables as CSV."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mim_components.utils.files import write_text_safely

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
