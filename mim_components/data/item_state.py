"""Signs by which a scan that has changed since it was checked is noticed, as a text in its item."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mim_components.data.prepare.memory import files_in, state_of_files

STATE = "state"


def state_text(state: Mapping[str, int] | None) -> str:
    """State of files as a text; empty where one is missing."""
    return "" if state is None else " ".join(f"{name}={value}" for name, value in state.items())


def is_unchanged(item: Mapping[str, Any]) -> bool:
    """Whether the files of an item are those that were checked; true of an item that was not."""
    if STATE not in item:
        return True
    try:
        return state_text(state_of_files(files_in(_paths_of(item)))) == item[STATE]
    except OSError:
        return False


def _paths_of(item: Mapping[str, Any]) -> Iterator[Path]:
    """Files and folders of image and label."""
    for name in ("image", "label"):
        value = item.get(name)
        for each in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(each, str):
                yield Path(each)
