"""AMOS 2022: training and validation parts together, CT only."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mim_components.data.cases import FoundCases
from mim_components.data.find.layouts.base import Folder
from mim_components.data.find.layouts.pairs import PairedFiles
from mim_components.utils.text import counted

# ids from here on are MR
FIRST_MR = 500


@dataclass(frozen=True)
class Amos22(PairedFiles):
    """300 labelled CTs of `imagesTr` and `imagesVa`, cases "0001" to "0410" with gaps."""

    dataset: str = "AMOS22"
    bundle: str = "mim_amos22_segmentation"
    expected: str = "imagesTr/amos_0001.nii.gz and labelsTr/amos_0001.nii.gz (and imagesVa/, labelsVa/)"
    image: str = r"images(?:Tr|Va)/amos_(?P<id>\d{4})"
    label: str = r"labels(?:Tr|Va)/amos_(?P<id>\d{4})"
    unlabelled: str = r"imagesTs/amos_(?P<id>\d{4})"

    def find(self, folder: Folder) -> FoundCases:
        """All CTs; the number of MR scans left out is noted.

        Raises:
            DataError: as in `PairedFiles.find`.
        """
        found = super().find(folder)
        cases, unlabelled = (
            [case for case in group if int(case.name) < FIRST_MR] for group in (found.cases, found.unlabelled)
        )
        notes = list(found.notes)
        if left_out := len(found.cases) - len(cases):
            notes.append(f"{counted(left_out, 'labelled MR scan')} (ids from {FIRST_MR}) left out, CT only")
        return replace(found, cases=cases, unlabelled=unlabelled, notes=notes)
