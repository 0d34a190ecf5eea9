"""Images and labels that are paired by their file names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mim_components.data.cases import Case, FoundCases
from mim_components.data.find.layouts.base import Folder
from mim_components.data.names import natural_key
from mim_components.data.volumes import DataError
from mim_components.utils.text import counted, shorten

_TOP = r"^(?P<top>(?:[^/]+/){0,2}?)"
_END = r"\.nii(?:\.gz)?$"


@dataclass
class _Files:
    """Files below one top folder, by id: images by channel, labels, unlabelled images by channel."""

    images: dict[str, dict[str, str]] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    unlabelled: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class PairedFiles:
    """Layout given by patterns of paths below the dataset's folder, without the extension `.nii` or `.nii.gz`.

    Attributes:
        dataset: name for messages.
        bundle: bundle for the dataset.
        expected: the patterns in words.
        image: pattern with the group `id`, and the group `channel` if each channel is a file.
        label: pattern with the group `id`.
        unlabelled: pattern of images without labels, like `image`; it is matched first. "" = there are none.
        channels: values of the group `channel` in the order of the network's channels.
    """

    dataset: str
    bundle: str
    expected: str
    image: str
    label: str
    unlabelled: str = ""
    channels: tuple[str, ...] = ()

    def recognises(self, folder: Folder) -> bool:
        """Whether the folder holds any label of the dataset."""
        pattern = self._pattern(self.label)
        return any(pattern.match(path) for path in folder.files)

    def tops(self, folder: Folder) -> list[str]:
        """Relative folders with a label of the dataset, ending in "/" unless ""."""
        pattern = self._pattern(self.label)
        return sorted({match["top"] for path in folder.files if (match := pattern.match(path))})

    def find(self, folder: Folder) -> FoundCases:
        """Pair the files of the only top folder with labels.

        Raises:
            DataError: the dataset lies in the folder twice, or no image has a label.
        """
        return self.find_below(folder, self.tops(folder))

    def find_below(self, folder: Folder, tops: list[str]) -> FoundCases:
        """`find` with known top folders.

        Raises:
            DataError: there is more than one, or no image has a label.
        """
        if len(tops) > 1:
            raise DataError(
                f"{folder.path}: holds {self.dataset} {len(tops)} times: {_listed(top or '.' for top in tops)}; "
                "give one of these folders as dataset_dir."
            )
        files, notes = self._sorted(folder.files, tops[0])
        cases = [
            Case(name, self._image(folder.path, channels), folder.path / files.labels[name])
            for name, channels in files.images.items()
            if name in files.labels and self._complete(channels)
        ]
        if not cases:
            raise DataError(f"{folder.path}: no image of {self.dataset} has a label; expected {self.expected}.")
        unlabelled = [
            Case(name, self._image(folder.path, channels))
            for name, channels in files.unlabelled.items()
            if self._complete(channels)
        ]
        for group in (cases, unlabelled):
            group.sort(key=lambda case: natural_key(case.name))
        return FoundCases(folder.path, "", cases, unlabelled, [*notes, *self._orphans(files)])

    def _pattern(self, pattern: str) -> re.Pattern[str]:
        return re.compile(_TOP + pattern + _END, re.IGNORECASE)

    def _sorted(self, paths: Iterable[str], top: str) -> tuple[_Files, list[str]]:
        files, notes = _Files(), []
        kinds = [("unlabelled", self.unlabelled), ("images", self.image), ("labels", self.label)]
        patterns = [(kind, self._pattern(text)) for kind, text in kinds if text]
        for path in sorted(paths):
            kind, match = next(((kind, m) for kind, p in patterns if (m := p.match(path))), ("", None))
            if match is None or match["top"] != top:
                continue
            name, channel = match["id"], match.groupdict().get("channel", "").lower()
            table = files.labels if kind == "labels" else getattr(files, kind).setdefault(name, {})
            other = table.get(key := name if kind == "labels" else channel)
            # of x.nii and x.nii.gz the first in order is used
            if other is None:
                table[key] = path
            else:
                notes.append(f"{path} is skipped: {other} exists too")
        return files, notes

    def _image(self, root: Path, channels: dict[str, str]) -> tuple[Path, ...]:
        return tuple(root / channels[channel] for channel in self.channels or ("",))

    def _complete(self, channels: dict[str, str]) -> bool:
        return all(channel in channels for channel in self.channels)

    def _orphans(self, files: _Files) -> Iterator[str]:
        no_label = [name for name in files.images if name not in files.labels]
        no_image = [name for name in files.labels if name not in files.images]
        if no_label:
            yield f"{counted(len(no_label), 'image')} without label left out: {_listed(no_label)}"
        if no_image:
            yield f"{counted(len(no_image), 'label')} without image left out: {_listed(no_image)}"
        for name, channels in {**files.unlabelled, **files.images}.items():
            if missing := [channel for channel in self.channels if channel not in channels]:
                yield f"{name} is left out: no file for {', '.join(missing)}"


def _listed(names: Iterable[str]) -> str:
    return shorten(sorted(names, key=natural_key), 10)
