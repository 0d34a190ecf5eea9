"""Files with names and colours of the classes for ITK-SNAP and 3D Slicer."""

import re

from mim_components.handlers.saving.label_maps import write_label_files
from mim_components.labels import LabelSet

LABELS = LabelSet(("background", "left atrium", 'the "aorta"'), {}, {})


def test_both_files_list_every_class(tmp_path):
    snap, slicer = write_label_files(tmp_path / "new", LABELS)
    assert (snap.name, slicer.name) == ("labels.txt", "labels.ctbl")
    # the pattern by which ITK-SNAP reads a line: seven numbers, and a name in quotes
    lines = [line for line in snap.read_text().splitlines() if not line.startswith("#")]
    parsed = [re.fullmatch(r"\s*(\d+)" + r"\s+(\d+)" * 6 + r'\s+"([^"]*)"', line) for line in lines]
    assert [match[8] for match in parsed] == ["background", "left atrium", "the 'aorta'"]
    assert [tuple(map(int, match.groups()[:7])) for match in parsed] == [
        (0, 0, 0, 0, 0, 0, 0),
        (1, *LABELS.colours[1], 1, 1, 1),
        (2, *LABELS.colours[2], 1, 1, 1),
    ]
    rows = [line.split() for line in slicer.read_text().splitlines() if not line.startswith("#")]
    assert rows == [
        ["0", "background", "0", "0", "0", "0"],
        ["1", "left_atrium", *map(str, LABELS.colours[1]), "255"],
        ["2", 'the_"aorta"', *map(str, LABELS.colours[2]), "255"],
    ]
