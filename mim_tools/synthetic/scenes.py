"""Content and ids of the cases of a dataset: views, classes, groups of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mim_tools.synthetic.tissue import FINE_LABELS, LABEL_NUMBERS


@dataclass(frozen=True)
class View:
    """Where a scanner looks.

    Attributes:
        field: (H, W, D) of a volume in mm if no spacing is given.
        centers: centres of the field of view in RAS mm; the cases use them in turn.
    """

    field: tuple[float, float, float]
    centers: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Scene:
    """Content of the CTs of a dataset.

    Attributes:
        view: where the scanner looks.
        classes: names of `FINE_LABELS` by the value that stands for them in the label files.
        phase: contrast phase; None draws one per case.
        findings: findings of every case; None draws small lesions per case.
    """

    view: View
    classes: Mapping[int, tuple[str, ...]]
    phase: str | None = None
    findings: tuple[str, ...] | None = None

    def label(self, fine: NDArray[np.uint8]) -> NDArray:
        """Return the values of the label file for numbers of `FINE_LABELS`: uint8 if they fit, else int16."""
        table = np.zeros(len(FINE_LABELS), dtype=np.uint8 if max(self.classes) < 256 else np.int16)
        for value, names in self.classes.items():
            table[[LABEL_NUMBERS[name] for name in names]] = value
        return table[fine]


ABDOMEN = View((368.0, 300.0, 336.0), ((0.0, 5.0, 8.0),))
BELLY = View((368.0, 300.0, 416.0), ((0.0, 5.0, -40.0), (0.0, 5.0, -150.0)))  # down to the prostate
CHEST = View((352.0, 288.0, 320.0), ((0.0, 0.0, 160.0),))
HEART = View((200.0, 200.0, 200.0), ((-8.0, 22.0, 150.0),))

LIVER = ("liver", "liver_vessel", "liver_lesion", "liver_tumour")
RIGHT_KIDNEY = ("right_kidney", "right_kidney_lesion")
LEFT_KIDNEY = ("left_kidney", "left_kidney_lesion")
PANCREAS = ("pancreas", "pancreas_tumour")
AORTA = ("aorta", "ascending_aorta")


def numbers(first: Sequence[int], count: int) -> list[int]:
    """Return `count` numbers: first those of the dataset, with its gaps, then consecutive ones."""
    return [*first, *range(first[-1] + 1, first[-1] + 1 + count - len(first))][:count]


def unused(taken: Sequence[int], count: int) -> list[int]:
    """Return the smallest unused numbers above the first used one: ids without labels."""
    free = (number for number in range(taken[0], taken[-1] + count + 1) if number not in taken)
    return [number for number, _ in zip(free, range(count), strict=False)]


def check_count(num_cases: int, most: int, layout: str) -> None:
    """Raise ValueError unless a dataset can have this many labelled cases, one of them for validation."""
    if not 2 <= num_cases <= most:
        raise ValueError(f"num_cases must be 2 to {most} for layout {layout!r}, got {num_cases=}.")


def choose(training: Sequence[str], validation: Sequence[str], num_cases: int) -> list[str]:
    """Choose the first ids of both parts of a listed split, about one in five for validation, at least one of each.

    Args:
        training: ids that train, in order.
        validation: ids that validate, in order.
        num_cases: 2 to the number of all ids.

    Returns:
        The ids in ascending order.

    Example:
        >>> choose(["03", "04", "05", "06", "07", "08", "09", "10"], ["01", "02"], 6)
        ['01', '02', '03', '04', '05', '06']
        >>> choose(["01", "02", "03", "04"], ["08", "09"], 5)
        ['01', '02', '03', '04', '08']
    """
    for_validation = min(-(-num_cases // 5), len(validation))
    for_training = min(num_cases - for_validation, len(training))
    return sorted([*training[:for_training], *validation[: num_cases - for_training]])
