"""Findings in a bundle, one line per place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from mim_components.utils.text import printable


@dataclass(frozen=True)
class Finding:
    """One reason not to run a bundle.

    Attributes:
        file: path inside the bundle; "command line" for an override.
        key: place in the file, such as `train::handlers::2::_target_`; "" = the file itself.
        what: content of that place.
        why: why it is not accepted.
    """

    file: str
    key: str
    what: str
    why: str

    def as_dict(self) -> dict[str, str]:
        """Convert for JSON."""
        return asdict(self)


def table(findings: Sequence[Finding]) -> str:
    """Findings as text with one column per attribute; control characters of a hostile file are escaped.

    Example:
        >>> print(table([Finding("configs/train.json", "x", "$exec('y')", "exec is not allowed")]))
        file                key  what        why
        configs/train.json  x    $exec('y')  exec is not allowed
    """
    rows = [("file", "key", "what", "why")]
    rows += [(shown(each.file), shown(each.key), shown(each.what), shown(each.why, 300)) for each in findings]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    cells = ([text.ljust(width) for text, width in zip(row[:3], widths, strict=True)] + [row[3]] for row in rows)
    return "\n".join("  ".join(row) for row in cells)


def shown(value: object, most: int = 80) -> str:
    """One printable line of at most `most` characters."""
    text = printable(str(value))
    return text if len(text) <= most else text[: most - 3] + "..."
