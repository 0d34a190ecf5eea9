"""Text: shortened lists, counts, tables in Markdown and CSV, printable names, the root cause of an error."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

LINE_SECONDS = 60.0  # between two progress lines in a log
CONTINUES = "the same command continues"  # of a run, see also `RunFolder.how_to_continue`


def shorten(items: Iterable[Any], most: int = 5, separator: str = ", ") -> str:
    """The first items of a list, and how many more there are.

    Example:
        >>> shorten(["a", "b", "c"]), shorten(["a", "b", "c"], most=1)
        ('a, b, c', 'a and 2 more')
    """
    texts = [str(item) for item in items]
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return separator.join(texts[:most]) + more


def counted(number: int, noun: str) -> str:
    """A number and its noun, in the plural unless it is 1.

    Example:
        >>> counted(1, "scan"), counted(25_000, "step")
        ('1 scan', '25,000 steps')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def sentence(text: str) -> str:
    """Text with a capital letter first.

    Example:
        >>> sentence("the same command continues.")
        'The same command continues.'
    """
    return text[:1].upper() + text[1:]


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    r"""A Markdown table whose columns also line up as plain text; no cell can break its line or column.

    Example:
        >>> print(markdown_table(["class", "Dice"], [["spleen", 96.4], ["a|b", "-"]]))
        | class  | Dice |
        | ------ | ---- |
        | spleen | 96.4 |
        | a\|b   | -    |
    """
    cells = [[" ".join(str(cell).split()).replace("|", "\\|") for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [cells[0], ["-" * width for width in widths], *cells[1:]]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def printable(text: str) -> str:
    r"""Make text printable on one line: line breaks, control characters and undecodable bytes are escaped.

    Example:
        >>> printable("Müller\nERROR: faked")
        'Müller\\nERROR: faked'
    """
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def on_terminal() -> bool:
    """Whether stderr is a terminal, not a log file or that of a batch system."""
    return sys.stderr.isatty()


def bar_options() -> dict[str, Any]:
    """Arguments for a tqdm bar: none on a terminal; elsewhere one line per minute, the first after a minute."""
    return {} if on_terminal() else {"mininterval": LINE_SECONDS, "delay": LINE_SECONDS}


def mask_secrets(text: str) -> str:
    """Mask user names, passwords and tokens of the addresses in a text.

    Example:
        >>> mask_secrets("https://me:secret@host:5000/?token=abc&x=1")
        'https://***@host:5000/?token=***&x=1'
    """
    text = re.sub(r"(?<=://)[^/\s'\"]+@", "***@", text)
    return re.sub(r"(?i)([?&][a-z_-]*(?:token|pass|password|pwd|auth|secret|key|sig)=)[^&\s'\"]+", r"\1***", text)


def csv_table(rows: Sequence[Mapping[str, Any]]) -> str:
    r"""CSV text with the keys of the first row as header.

    Example:
        >>> csv_table([{"case": "0035", "dice": 0.5}, {"case": "0036", "dice": None}])
        'case,dice\n0035,0.5\n0036,\n'
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def root_cause(error: BaseException) -> BaseException:
    """The error at the start of a chain: MONAI wraps errors of a configuration's components."""
    while error.__cause__ is not None and type(error) is RuntimeError:
        error = error.__cause__
    return error
