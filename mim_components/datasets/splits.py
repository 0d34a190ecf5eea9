"""Which cases validate and which train."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .cases import Case

# Validation names of each fold, from the labelled cases and the section `dataset.split` of a bundle's metadata.
SplitRule = Callable[[Sequence[Case], Mapping[str, Any]], list[list[str]]]
RULES: dict[str, SplitRule] = {}
