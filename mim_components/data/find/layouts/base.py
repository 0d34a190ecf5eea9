"""Interface of a layout: the folders and file names of a dataset as unpacked from its archive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from mim_components.data.cases import FoundCases
from mim_components.data.find.walk import Tree, walk
from mim_components.utils.text import counted, shorten

# two folders above the dataset's own (`BTCV/RawData`), and three below it (`CP/patient/scan`)
MAX_DEPTH = 5


@dataclass(frozen=True)
class Folder:
    """The folder that the user gave, listed once for all layouts.

    Attributes:
        path: the folder.
    """

    path: Path

    @cached_property
    def files(self) -> Sequence[str]:
        """Files relative to the folder, with `/` between names; hidden files of macOS archives are skipped."""
        tree = self._tree
        # includes folders called x.nii.gz, so that the check can report them
        return [path.relative_to(self.path).as_posix() for path in (*tree.files, *tree.named_folders)]

    @property
    def unreadable(self) -> str:
        """Which folders in it cannot be read, in words; "" if there are none."""
        locked = [str(path) for path in self._tree.locked]
        return f"{counted(len(locked), 'folder')} cannot be read: {shorten(locked, 10)}" if locked else ""

    @cached_property
    def _tree(self) -> Tree:
        return walk(self.path, max_depth=MAX_DEPTH)


class Layout(Protocol):
    """Recognises a dataset by its files; options of a layout are arguments of its constructor."""

    @property
    def dataset(self) -> str:
        """Name of the dataset for messages, such as "MSD Task09_Spleen"."""

    @property
    def bundle(self) -> str:
        """Bundle for the dataset, "" if there is none."""

    @property
    def expected(self) -> str:
        """The expected files, in words."""

    def recognises(self, folder: Folder) -> bool:
        """Whether the dataset lies in the folder or up to two levels below it; opens no images."""

    def find(self, folder: Folder) -> FoundCases:
        """All cases of a recognised folder; opens no images.

        Raises:
            DataError: the dataset lies in the folder twice, or without any pair of image and label.
        """
