"""Check whether a scan of slices is fit for training: every slice is decoded completely."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mim_components.data.cases import Case, CheckResult
from mim_components.data.find.sources import as_source
from mim_components.data.read.slices import HU_ADVICE, decode_slice, holds_slices, read_bytes, slice_files, slice_number
from mim_components.data.read.volume import decode_volume, inspect_source
from mim_components.data.volumes import VolumeError
from mim_components.utils.files import text_digest
from mim_components.utils.text import counted, shorten

SHOWN = 3


@dataclass(frozen=True)
class SliceFolderChecker:
    """Check of one scan, see `CaseChecker`: a folder of slices or, with `hu_window`, a CT volume.

    A scan is unfit if a slice cannot be decoded, it has fewer than two, or all pixels are equal. Slices of
    different sizes, with equal numbers or equal pictures give notes.

    Attributes:
        class_names: labels are indices into it; empty = labels are not checked.
        hu_window: HU that become black and white; None = only folders of slices are accepted.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from PIL import Image
        >>> checker = SliceFolderChecker(class_names=["Normal", "CP"])
        >>> with TemporaryDirectory() as folder:
        ...     for number in range(3):
        ...         Image.linear_gradient("L").save(Path(folder, f"{number}.png"))
        ...     checker(Case("1", (Path(folder),), label=1)).notes
        ('2 slices identical to another slice of the scan',)
    """

    class_names: Sequence[str] = ()
    hu_window: Sequence[float] | None = None

    def datalist_facts(self) -> dict[str, Any]:
        """Modality and classes in the form of a datalist."""
        return {"modality": {"0": "CT"}, "labels": {str(number): name for number, name in enumerate(self.class_names)}}

    def __call__(self, case: Case) -> CheckResult:
        """Check one scan.

        Raises:
            VolumeError: the scan is unfit; gives the cause and names the slices.
        """
        if len(case.image) != 1:
            raise VolumeError(f"{len(case.image)} images, expected one folder of slices")
        if self.class_names and case.label not in range(len(self.class_names)):
            known = ", ".join(f"{number} {name}" for number, name in enumerate(self.class_names))
            raise VolumeError(f"the label is {case.label!r}, expected one of {known}")
        path = case.image[0]
        if self.hu_window is not None and not holds_slices(path):
            source = as_source(path)
            decoded = decode_volume(source, inspect_source(source))
            return CheckResult(decoded.digest, decoded.notes)
        if path.is_file():
            raise VolumeError(f"is a file, expected a folder of slices; {HU_ADVICE}")
        return _check_slices(slice_files(path))


def _check_slices(files: Sequence[Path]) -> CheckResult:
    """Decode all slices, keeping only sizes, hashes and the range of grey values."""
    digests: list[str] = []
    sizes: Counter[tuple[int, ...]] = Counter()
    low, high = 255, 0
    bad: list[str] = []
    for path in files:
        try:
            content = read_bytes(path)
            pixels = decode_slice(content)
        except VolumeError as error:
            bad.append(f"{path.name}: {error}")
            continue
        digests.append(hashlib.sha256(content).hexdigest())
        sizes[pixels.shape] += 1
        low, high = min(low, int(pixels.min())), max(high, int(pixels.max()))
    if bad:
        raise VolumeError(f"{len(bad)} of {len(files)} slices cannot be used: {shorten(bad, SHOWN, '; ')}")
    if len(files) < 2:
        raise VolumeError("holds a single slice, expected a volume")
    if low == high:
        raise VolumeError(f"every pixel of all {len(files)} slices is {low}")
    digest = text_digest("\n".join(digests))
    return CheckResult(digest, (*_note_sizes(sizes), *_note_order(files), *_note_repeats(digests)))


def _note_sizes(sizes: Counter[tuple[int, ...]]) -> list[str]:
    if len(sizes) == 1:
        return []
    shown = ", ".join(f"{count} of {rows} x {columns}" for (rows, columns), count in sizes.most_common(SHOWN))
    return [f"slices of {len(sizes)} sizes (rows x columns): {shown}; the smaller are padded around their centre"]


def _note_order(files: Sequence[Path]) -> list[str]:
    numbers = Counter(slice_number(path) for path in files)
    notes = []
    if without := numbers.pop(None, 0):
        notes.append(f"{counted(without, 'slice')} without a number in the name placed last")
    if repeated := [number for number, count in numbers.items() if count > 1]:
        shown = ", ".join(map(str, repeated[:SHOWN]))
        notes.append(f"{counted(len(repeated), 'slice number')} used more than once ({shown}): ordered by name")
    return notes


def _note_repeats(digests: Sequence[str]) -> list[str]:
    repeats = len(digests) - len(set(digests))
    return [f"{counted(repeats, 'slice')} identical to another slice of the scan"] if repeats else []
