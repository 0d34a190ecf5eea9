"""The meaning of label values: raw values, classes and regions; masks of a segmentation, target by target.

Masks are integers `(C, H, W, D)`, or `(C, a, b)` of a plane. C = 1 is a class map whose value i + 1 is target i;
otherwise channel i is target i as 0 and 1. Box: one slice per spatial axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import find_objects

BACKGROUND = "background"

# Each is as far as possible from those before it in CIELAB, and light and saturated enough to show on a grey scan.
COLOURS = (
    (255, 0, 105),
    (0, 195, 255),
    (0, 255, 0),
    (195, 150, 0),
    (195, 0, 255),
    (30, 255, 195),
    (255, 165, 255),
    (60, 150, 0),
    (0, 120, 255),
    (255, 75, 0),
    (255, 165, 150),
    (225, 240, 165),
    (210, 240, 0),
    (15, 135, 105),
    (255, 15, 195),
    (120, 255, 120),
    (195, 90, 135),
    (120, 255, 255),
    (120, 135, 60),
    (135, 135, 210),
)


@dataclass(frozen=True)
class LabelSet:
    """Classes of a segmentation, and the mapping of a dataset's label values to them.

    Attributes:
        names: name of every class; the index is the class, 0 is the background.
        values: raw value in the files to class; empty = value i is class i.
        regions: name to the classes that it combines, for networks with one sigmoid channel per region; empty = the
            classes exclude each other.
        name: name of the label set, for messages.

    Raises:
        ValueError: there is no class but the background, or `values` or `regions` refer to a class that does not exist.
    """

    names: tuple[str, ...]
    values: Mapping[int, int]
    regions: Mapping[str, tuple[int, ...]]
    name: str = "default"

    def __post_init__(self) -> None:
        if len(self.names) < 2 or self.names[0] != BACKGROUND:
            raise ValueError(
                f"label set {self.name!r}: names must begin with {BACKGROUND!r} and hold at least one class, "
                f"got {list(self.names)}."
            )
        used = {*self.values.values(), *(each for classes in self.regions.values() for each in classes)}
        if unknown := sorted(used - set(range(len(self.names)))):
            raise ValueError(
                f"label set {self.name!r}: classes {unknown} do not exist; its classes are 0 to {len(self.names) - 1}."
            )

    @classmethod
    def from_metadata(cls, label_sets: Mapping[str, Mapping[str, Any]], name: str = "default") -> LabelSet:
        """Read a label set from a bundle's metadata.

        Args:
            label_sets: section `dataset.label_sets`: by name, `names` and optionally `values` and `regions`.
            name: name of the label set.

        Raises:
            ValueError: there is no such label set; names those there are.

        Example:
            >>> heart = {"names": ["background", "myocardium", "left atrium"], "values": {"205": 1, "420": 2}}
            >>> labels = LabelSet.from_metadata({"default": heart})
            >>> labels.out_channels, labels.targets, labels.raw_values
            (3, ('myocardium', 'left atrium'), (0, 205, 420))
        """
        if name not in label_sets:
            raise ValueError(f"label_set must be one of {', '.join(map(repr, label_sets))}, got {name!r}.")
        entry = label_sets[name]
        return cls(
            names=tuple(entry["names"]),
            values={int(raw): int(value) for raw, value in entry.get("values", {}).items()},
            regions={str(region): tuple(classes) for region, classes in entry.get("regions", {}).items()},
            name=name,
        )

    @property
    def is_regions(self) -> bool:
        """Whether the network predicts overlapping regions instead of classes."""
        return bool(self.regions)

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of what is scored: the regions, or the classes without the background."""
        return tuple(self.regions) if self.regions else self.names[1:]

    @property
    def out_channels(self) -> int:
        """Output channels of the network: one per region, or one per class including the background."""
        return len(self.regions) or len(self.names)

    @property
    def raw_values(self) -> tuple[int, ...]:
        """Values that a label file may hold, ascending."""
        return tuple(sorted({0, *(self.values or range(len(self.names)))}))

    @property
    def colours(self) -> tuple[tuple[int, int, int], ...]:
        """RGB colour of every class, 0 to 255; the background is black. Colours repeat after 20 classes."""
        return ((0, 0, 0), *(COLOURS[number % len(COLOURS)] for number in range(len(self.names) - 1)))


def select_labels(
    label_sets: Mapping[str, Mapping[str, Any]], label_set: str | None = None, found: Any = None
) -> LabelSet:
    """The label set that is requested, else the one that the dataset's layout needs, else "default".

    Args:
        label_sets: section `dataset.label_sets` of a bundle's metadata.
        label_set: name of the requested label set, or None.
        found: `FoundCases`, or None without a dataset (inference).

    Raises:
        ValueError: there is no such label set.

    Example:
        >>> sets = {"default": {"names": ["background", "lung"]}, "sides": {"names": ["background", "left", "right"]}}
        >>> select_labels(sets).targets, select_labels(sets, "sides").targets
        (('lung',), ('left', 'right'))
    """
    return LabelSet.from_metadata(label_sets, label_set or getattr(found, "label_set", None) or "default")


Box = tuple[slice, ...]


def target_boxes(masks: np.ndarray) -> dict[int, Box]:
    """The smallest box around every target present, by target index.

    Example:
        >>> target_boxes(np.array([0, 2, 2, 0]).reshape(1, 4, 1, 1))
        {1: (slice(1, 3, None), slice(0, 1, None), slice(0, 1, None))}
    """
    if len(masks) == 1:
        boxes = find_objects(masks[0])
    else:
        boxes = [next(iter(find_objects(mask)), None) for mask in masks]
    return {target: box for target, box in enumerate(boxes) if box is not None}


def target_mask(masks: np.ndarray, target: int, box: Box) -> np.ndarray:
    """Bool mask of a target inside a box."""
    return masks[0][box] == target + 1 if len(masks) == 1 else masks[target][box] == 1


def union_box(boxes: list[Box]) -> Box:
    """The smallest box around one or more boxes.

    Example:
        >>> union_box([(slice(2, 5), slice(0, 4)), (slice(1, 3), slice(2, 9))])
        (slice(1, 5, None), slice(0, 9, None))
    """
    axes = zip(*boxes, strict=True)
    return tuple(slice(min(part.start for part in axis), max(part.stop for part in axis)) for axis in axes)
