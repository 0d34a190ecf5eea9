"""The two spaces in which a segmentation can be scored."""

from __future__ import annotations

SPACES = ("resampled", "original")


def is_original(space: str) -> bool:
    """Whether predictions are brought back to the scan's own grid before they are scored.

    Args:
        space: "resampled", the grid that the network sees, in which published figures are measured; or "original".

    Raises:
        ValueError: neither of the two.
    """
    if space not in SPACES:
        raise ValueError(f"space must be one of {', '.join(SPACES)}, got {space!r}.")
    return space == "original"
