"""Find the cases of a dataset as it unpacks from its archive, or as a user's list names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .cases import FoundCases


def find_cases(
    dataset_dir: str | Path | None,
    datalist: str | Path | None = None,
    layouts: Sequence[Mapping[str, Any]] = (),
) -> FoundCases:
    """Find the cases."""
    raise NotImplementedError
