"""What the values of a label file mean: raw values, classes and regions, in one place for all workflows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monai.transforms import Identityd, MapLabelValued, MapTransform

BACKGROUND = "background"

# Each is as far as can be from those before it in CIELAB, light and saturated enough to be seen on a grey scan.
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
    """Classes of a segmentation and how the values of the dataset's files become them.

    Attributes:
        names: name of every class; the index is the class, 0 is the background.
        values: raw value of the files to class; empty = value i is class i.
        regions: name to the classes that it unites, for networks with one sigmoid channel per region; empty = the
            classes exclude each other.
        name: of the label set, for messages.

    Raises:
        ValueError: no class but the background, a class or region refers to a class that is not there.
    """

    names: tuple[str, ...]
    values: Mapping[int, int]
    regions: Mapping[str, tuple[int, ...]]
    name: str = "default"

    def __post_init__(self) -> None:
        if len(self.names) < 2 or self.names[0] != BACKGROUND:
            raise ValueError(
                f"label set {self.name!r}: names must begin with {BACKGROUND!r} and hold one class more, "
                f"got {list(self.names)}."
            )
        used = {*self.values.values(), *(each for classes in self.regions.values() for each in classes)}
        if unknown := sorted(used - set(range(len(self.names)))):
            raise ValueError(
                f"label set {self.name!r}: classes {unknown} are not there, its classes are 0 to {len(self.names) - 1}."
            )

    @classmethod
    def from_metadata(cls, label_sets: Mapping[str, Mapping[str, Any]], name: str = "default") -> LabelSet:
        """Read one of the label sets of a bundle's metadata.

        Args:
            label_sets: section `dataset.label_sets`: name to `names`, and optionally `values` and `regions`.
            name: which one.

        Raises:
            ValueError: there is no such label set; names those that are there.

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
        """What is scored: the regions, or the classes without the background."""
        return tuple(self.regions) if self.regions else self.names[1:]

    @property
    def out_channels(self) -> int:
        """Channels of the network: one per region, or one per class with the background."""
        return len(self.regions) or len(self.names)

    @property
    def raw_values(self) -> tuple[int, ...]:
        """Values that a label file may hold, ascending."""
        return tuple(sorted({0, *(self.values or range(len(self.names)))}))

    @property
    def colours(self) -> tuple[tuple[int, int, int], ...]:
        """RGB of every class, 0 to 255; the background is black. After 20 classes they repeat."""
        return ((0, 0, 0), *(COLOURS[number % len(COLOURS)] for number in range(len(self.names) - 1)))


def select_labels(
    label_sets: Mapping[str, Mapping[str, Any]], label_set: str | None = None, found: Any = None
) -> LabelSet:
    """The label set that is asked for, else the one that the found layout of the dataset needs, else "default".

    Args:
        label_sets: section `dataset.label_sets` of a bundle's metadata.
        label_set: name, or None.
        found: `FoundCases`, or None where there is no dataset (inference).

    Raises:
        ValueError: there is no such label set.
    """
    return LabelSet.from_metadata(label_sets, label_set or getattr(found, "label_set", None) or "default")


def label_conversion(labels: LabelSet, keys: str | Sequence[str] = "label") -> MapTransform:
    """MONAI's transform from raw values to classes; does nothing where every value stands for itself.

    Values that are not listed are refused when the dataset is prepared, not here. Missing keys are passed over, so that
    one list of transforms serves labelled and unlabelled scans.
    """
    pairs = {raw: value for raw, value in labels.values.items() if raw != value}
    if not pairs:
        return Identityd(keys, allow_missing_keys=True)
    return MapLabelValued(keys, list(pairs), list(pairs.values()), allow_missing_keys=True)
