"""What the search for a labelled dataset hands on: cases, and what is to be said about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from mim_components.data.names import FILE, PATIENT, counted, digest_name, path_name


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
        aliases: what its files are called everywhere where their paths must not be named, in the order of `files`.
    """

    name: str
    image: tuple[Path, ...]
    label: Path | int | None = None
    group: str = ""
    fold: int | None = None
    section: str | None = None
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.group and self.name:
            object.__setattr__(self, "group", self.name)

    @property
    def files(self) -> tuple[Path, ...]:
        """Files and folders of the case: the image, then the label where it is a file."""
        return (*self.image, self.label) if isinstance(self.label, Path) else self.image

    @property
    def title(self) -> str:
        """What logs, reports and files call it: its name, or the alias of its first file."""
        return self.aliases[0] if self.aliases else self.name

    @property
    def source(self) -> str:
        """Where logs, reports and files say that it lies: the path of its first file, or its alias."""
        return self.aliases[0] if self.aliases else str(self.image[0])

    @property
    def patient(self) -> str:
        """What logs, reports and files call its patient: the group, or a digest of it."""
        if not self.aliases:
            return self.group
        return self.title if self.group == self.name else digest_name(self.group, PATIENT)

    @property
    def hidden(self) -> dict[Path, str]:
        """What stands for its files, also those in folders of slices, where they must not be named."""
        names = dict(zip(self.files, self.aliases, strict=False))
        for folder, alias in list(names.items()):
            if folder.is_dir():
                names |= {path: f"{alias}/{number}" for number, path in enumerate(sorted(folder.iterdir()), 1)}
        return names


NO_DATA = "none"  # layout where neither a folder nor a list was given


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

    def named_by_digests(self) -> FoundCases:
        """The same cases with aliases; of the notes, which name files, only their number is left."""

        def named(case: Case) -> Case:
            first, *others = case.files
            names = (path_name(first, self.root), *(path_name(path, self.root, FILE) for path in others))
            return replace(case, aliases=names)

        cases, unlabelled = [named(case) for case in self.cases], [named(case) for case in self.unlabelled]
        return replace(self, cases=cases, unlabelled=unlabelled, notes=counted(self.notes))


@dataclass(frozen=True)
class CheckResult:
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
CaseChecker = Callable[[Case], CheckResult]
