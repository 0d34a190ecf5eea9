"""What the search for a labelled dataset hands on: cases, and what is to be said about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One scan and its label.

    Args:
        name: no two cases of a dataset have the same, such as "0035" or "liver_0".
        image: one file, or one per channel in the order of the network's channels, or one folder of slices.
        label: file of the label map, class of the whole scan, or None.
        group: patient, whose scans must not be divided between training and validation; the name when empty.
        fold: fold that the case validates in, where the user's list says so.
        section: "training" or "validation", where the user's list says so.
    """

    name: str
    image: tuple[Path, ...]
    label: Path | int | None = None
    group: str = ""
    fold: int | None = None
    section: str | None = None

    def __post_init__(self) -> None:
        if not self.group and self.name:
            object.__setattr__(self, "group", self.name)

    @property
    def files(self) -> tuple[Path, ...]:
        """Files and folders of the case: the image, then the label where it is a file."""
        return (*self.image, self.label) if isinstance(self.label, Path) else self.image


@dataclass
class FoundCases:
    """Cases of a dataset in a fixed order.

    Args:
        root: folder that all paths are named relative to.
        layout: name of the layout, or "datalist".
        cases: labelled cases.
        unlabelled: scans without a label, such as a challenge's test set.
        notes: lines for log and report, such as an image whose label is missing.
        label_set: name of the label set that the files of this layout need; None = the default.
        num_cases: labelled cases of the complete dataset where this layout's differ; None = as the bundle says.
    """

    root: Path
    layout: str
    cases: list[Case]
    unlabelled: list[Case] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    label_set: str | None = None
    num_cases: int | None = None

    def __len__(self) -> int:
        return len(self.cases)


@dataclass(frozen=True)
class CaseFacts:
    """What a check found out about a case that is fit.

    Args:
        digest: sha256 of the bytes of all its files.
        notes: what is odd about the case without making it unfit.
        content: equal for cases with equal images, whatever their labels and file formats; the digest when empty.
    """

    digest: str
    notes: tuple[str, ...] = ()
    content: str = ""


# Reads all of a case and raises `VolumeError` with the cause when it is unfit. It is sent to other processes, and its
# `repr` must state all its settings (as a dataclass's does): a remembered result counts only for an equal one.
CaseChecker = Callable[[Case], CaseFacts]
