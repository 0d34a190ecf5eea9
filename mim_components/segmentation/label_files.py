"""Names and colours of classes for programs that show label maps."""

from __future__ import annotations

import re
from pathlib import Path

from mim_components.labels import LabelSet
from mim_components.utils.files import write_text_safely

_SNAP_HEAD = """\
################################################
# ITK-SnAP Label Description File
# File format:
# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL
################################################
"""


def write_label_files(folder: str | Path, labels: LabelSet) -> list[Path]:
    """Write `labels.txt` for ITK-SNAP and `labels.ctbl` for 3D Slicer.

    Args:
        folder: made when missing.
        labels: the classes.

    Returns:
        The two files.
    """
    folder = Path(folder)
    return [
        write_text_safely(folder / "labels.txt", snap_labels(labels)),
        write_text_safely(folder / "labels.ctbl", slicer_colours(labels)),
    ]


def snap_labels(labels: LabelSet) -> str:
    r"""Label descriptions of ITK-SNAP: number, RGB, opacity, shown in slices, shown in 3D, name.

    Example:
        >>> print(snap_labels(LabelSet(("background", "left atrium"), {}, {})).split("#\n")[-1], end="")
            0     0    0    0        0  0  0    "background"
            1   255    0  105        1  1  1    "left atrium"
    """
    lines = []
    for number, (name, (r, g, b)) in enumerate(zip(labels.names, labels.colours, strict=True)):
        shown = int(number > 0)
        name = name.replace('"', "'")
        lines.append(f'{number:5d} {r:5d} {g:4d} {b:4d} {shown:8d} {shown:2d} {shown:2d}    "{name}"\n')
    return _SNAP_HEAD + "".join(lines)


def slicer_colours(labels: LabelSet) -> str:
    r"""Colour table of 3D Slicer: number, name without blanks, RGB, opacity.

    Example:
        >>> slicer_colours(LabelSet(("background", "left atrium"), {}, {})).splitlines()[1:]
        ['0 background 0 0 0 0', '1 left_atrium 255 0 105 255']
    """
    lines = [f"# Color table of {len(labels.names)} classes\n"]
    for number, (name, (r, g, b)) in enumerate(zip(labels.names, labels.colours, strict=True)):
        lines.append(f"{number} {re.sub(r'[^!-~]+', '_', name)} {r} {g} {b} {255 if number else 0}\n")
    return "".join(lines)
