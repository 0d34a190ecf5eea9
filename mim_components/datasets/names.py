"""Order of names that hold numbers."""

from __future__ import annotations

import re


def natural_key(name: str) -> list[str | int]:
    """Sort key by which numbers count as numbers.

    Example:
        >>> sorted(["spleen_10", "spleen_9", "A-0047_1", "A-0047"], key=natural_key)
        ['A-0047', 'A-0047_1', 'spleen_9', 'spleen_10']
    """
    # text and numbers take turns, so that keys compare position by position
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"([0-9]+)", name))]
