"""The phase before fine-tuning: check every case, list everything that is bad at once, split, and write it down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mim_components.data.volumes import BadVolume

from .cases import CaseChecker, FoundCases


@dataclass
class PreparedCases:
    """Cases that are fit, divided.

    Args:
        training: items `image` (path, or a list of one per channel), `label` (path or class), `name`, `source`.
        validation: the same.
        unlabelled: items without `label`.
        bad: what was left out.
        notes: lines for log and report.
        digest: one sha256 over the content of all cases used and the split.
    """

    training: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    unlabelled: list[dict[str, Any]] = field(default_factory=list)
    bad: list[BadVolume] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    digest: str = ""

    def __len__(self) -> int:
        return len(self.training)

    def summary(self) -> str:
        """Text of a few lines: number of cases of each part, what was left out."""
        raise NotImplementedError


def prepare_cases(
    found: FoundCases,
    checker: CaseChecker,
    split: Mapping[str, Any],
    fold: int = 0,
    label_ratio: float = 1.0,
    num_cases: int | None = None,
    *,
    cache_dir: str | Path,
    on_bad: str = "stop",
    num_workers: int = 0,
    output_dir: str | Path | None = None,
    name: str = "dataset",
) -> PreparedCases:
    """Check, split and write down the cases."""
    raise NotImplementedError
