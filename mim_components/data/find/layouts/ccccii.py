"""CC-CCII: one folder per class, patient and scan, `{CP,NCP,Normal}/<patient>/<scan>/0000.png`.

The zips unpack with or without a folder of their own (`NCP-1`, `COVID19-1`), so the class of a scan is given by the
last folder above it that is named after a class.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

from mim_components.data.cases import Case, FoundCases
from mim_components.data.find.layouts.base import Folder
from mim_components.data.find.scan_lists import ListedScan, read_scan_list
from mim_components.data.names import natural_key
from mim_components.data.read.slices import is_slice
from mim_components.data.volumes import NoVolumesError
from mim_components.utils.text import counted, shorten

CLASS_NAMES = ("Normal", "CP", "NCP")
OTHER_NAMES = {"covid19": "ncp", "covid-19": "ncp"}  # the server's names for the zips of NCP
SCAN_LIST = "unzip_filenames.csv"


@dataclass(frozen=True)
class CcCcii:
    """The scans of CC-CCII; see `Layout`.

    Attributes:
        class_names: the label of a scan is the index of its class here.
        min_slices: scans with fewer slices are left out, as in the published list of 4,178 scans.
    """

    class_names: Sequence[str] = CLASS_NAMES
    min_slices: int = 16

    dataset = "CC-CCII"
    bundle = "mim_ccccii_classification"
    expected = "{CP,NCP,Normal}/<patient>/<scan>/*.png (or .jpg), with or without a folder per zip"

    def recognises(self, folder: Folder) -> bool:
        """Whether slices lie two folders below one that is named after a class."""
        return any(self._scan_of(path) is not None for path in _slice_counts(folder))

    def find(self, folder: Folder) -> FoundCases:
        """All scans with enough slices, by class, patient and scan."""
        found = FoundCases(folder.path, "ccccii", [])
        scans: dict[Scan, int] = {}
        for path, count in sorted(_slice_counts(folder).items(), key=lambda item: natural_key(item[0])):
            scan = self._scan_of(path)
            if scan is None:
                found.notes.append(f"{path}: {counted(count, 'picture')} of no scan, expected {self.expected}")
            elif scan in scans:
                found.notes.append(f"{path}: a scan of this class, patient and name lies elsewhere too; left out")
            else:
                scans[scan] = count
                if count >= self.min_slices:
                    name = f"{self.class_names[scan.label]}_{scan.patient}_{scan.name}"
                    found.cases.append(Case(name, (folder.path / path,), scan.label, group=scan.patient))
        if short := len(scans) - len(found.cases):
            found.notes.append(f"{counted(short, 'scan')} with fewer than {self.min_slices} slices left out")
        if not found.cases:
            raise NoVolumesError(f"{folder.path}: none of {len(scans)} scans has {self.min_slices} slices or more.")
        found.notes += _patients_of_two_classes(found.cases, self.class_names)
        for file in folder.files:
            if PurePosixPath(file).name == SCAN_LIST:
                found.notes += compare_with_list(scans, read_scan_list(folder.path / file), file)
        return found

    def _scan_of(self, path: str) -> Scan | None:
        """The scan given by the folders above some slices; None if these are not two folders below a class."""
        folders = PurePosixPath(path).parts
        for folder in reversed(folders[:-2]):
            label = self._class_of(folder)
            if label is not None:
                return Scan(label, folders[-2], folders[-1])
        return None

    def _class_of(self, folder: str) -> int | None:
        """The class that a folder is named after, possibly followed by the number of a zip."""
        known = {name.casefold(): number for number, name in enumerate(self.class_names)}
        for name in (folder.casefold(), re.sub(r"-\d+$", "", folder.casefold())):
            if (number := known.get(OTHER_NAMES.get(name, name))) is not None:
                return number
        return None


class Scan(NamedTuple):
    """Identifiers of a scan: class number, patient, name of its folder."""

    label: int
    patient: str
    name: str


def _slice_counts(folder: Folder) -> Counter[str]:
    """Number of slices in every folder with slices."""
    parts = (file.rpartition("/") for file in folder.files)
    return Counter(path for path, _, name in parts if is_slice(name))


def _patients_of_two_classes(cases: Sequence[Case], class_names: Sequence[str]) -> list[str]:
    labels: dict[str, set[int]] = defaultdict(set)
    for case in cases:
        assert isinstance(case.label, int)
        labels[case.group].add(case.label)
    return [
        f"patient {group} has scans of {', '.join(class_names[label] for label in sorted(found))}; they stay together"
        for group, found in labels.items()
        if len(found) > 1
    ]


def compare_with_list(scans: Mapping[Scan, int], listed: Sequence[ListedScan], source: str) -> list[str]:
    """Notes about differences between the dataset's own list and the disk: scans, and numbers of slices.

    Args:
        scans: number of slices on the disk.
        listed: lines of the list.
        source: name of the list for the notes.
    """
    on_disk = {(scan.patient, scan.name): count for scan, count in scans.items()}
    expected = {(each.patient, each.scan): each.num_slices for each in listed}
    absent = [key for key in expected if key not in on_disk]
    unknown = [key for key in on_disk if key not in expected]
    differing = [
        f"{'/'.join(key)} ({on_disk[key]} instead of {count})"
        for key, count in expected.items()
        if key in on_disk and count is not None and count != on_disk[key]
    ]
    groups = {
        "of the list not on the disk": ["/".join(key) for key in absent],
        "on the disk not in the list": ["/".join(key) for key in unknown],
        "with a different number of slices from the list": differing,
    }
    return [
        f"{source}: {counted(len(items), 'scan')} {what}: {shorten(items)}" for what, items in groups.items() if items
    ]
