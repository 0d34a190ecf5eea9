"""Results of the search for a labelled dataset: cases, and remarks about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from mim_components.data.names import FILE, PATIENT, digest_name, notes_summary, path_name


@dataclass(frozen=True)
class Case:
    """One scan and its label.

    Attributes:
        name: unique within a dataset, such as "0035" or "liver_0".
        image: one file, or one per channel in the order of the network's channels, or one folder of slices.
        label: file of the label map, class of the whole scan, or None.
        group: patient, whose scans must not be split between training and validation; the name if empty.
        fold: fold in which the case validates, if the user's list says so.
        section: "training" or "validation", if the user's list says so.
        aliases: names that replace its files' paths if these must not be shown, in the order of `files`.
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
        """Files and folders of the case: the image, then the label if it is a file."""
        return (*self.image, self.label) if isinstance(self.label, Path) else self.image

    @property
    def title(self) -> str:
        """Its name in logs, reports and files: the name, or the alias of its first file."""
        return self.aliases[0] if self.aliases else self.name

    @property
    def source(self) -> str:
        """Its path in logs, reports and files: that of its first file, or its alias."""
        return self.aliases[0] if self.aliases else str(self.image[0])

    @property
    def patient(self) -> str:
        """Its patient in logs, reports and files: the group, or a digest of it."""
        if not self.aliases:
            return self.group
        return self.title if self.group == self.name else digest_name(self.group, PATIENT)

    @property
    def hidden(self) -> dict[Path, str]:
        """Aliases by path, including files in folders of slices, if paths must not be shown."""
        names = dict(zip(self.files, self.aliases, strict=False))
        for folder, alias in list(names.items()):
            if folder.is_dir():
                names |= {path: f"{alias}/{number}" for number, path in enumerate(sorted(folder.iterdir()), 1)}
        return names


NO_DATA = "none"  # layout if neither a folder nor a list was given


@dataclass
class FoundCases:
    """Cases of a dataset in a fixed order.

    Attributes:
        root: folder that all paths are named relative to.
        layout: name of the layout, or "datalist".
        cases: labelled cases.
        unlabelled: scans without a label, such as a challenge's test set.
        notes: lines for log and report, such as an image whose label is missing.
        label_set: name of the label set for the files of this layout; None = the default.
        num_cases: number of labelled cases in the complete dataset, if it differs for this layout; None = the bundle's.
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
        """The same cases with aliases; notes, which name files, are reduced to their number."""

        def named(case: Case) -> Case:
            first, *others = case.files
            names = (path_name(first, self.root), *(path_name(path, self.root, FILE) for path in others))
            return replace(case, aliases=names)

        cases, unlabelled = [named(case) for case in self.cases], [named(case) for case in self.unlabelled]
        return replace(self, cases=cases, unlabelled=unlabelled, notes=notes_summary(self.notes))


@dataclass(frozen=True)
class CheckResult:
    """Result of a check that a case has passed.

    Attributes:
        digest: sha256 of the bytes of all its files.
        notes: oddities that do not make the case unfit.
        content: equal for cases with equal images, whatever their labels and file formats; the digest if empty.
    """

    digest: str
    notes: tuple[str, ...] = ()
    content: str = ""


# Reads all of a case and raises `VolumeError` with the cause if it is unfit. It is sent to other processes, and its
# `repr` must include all its settings (as a dataclass's does): a cached result is valid only for an equal one.
CaseChecker = Callable[[Case], CheckResult]
