"""Find CT volumes below a folder: NIfTI, MetaImage and NRRD by extension, DICOM by the first bytes.

What only looks like a volume (a folder called `x.nii`, a dangling link, a FIFO) is included: the checks refuse
it together with everything else that is bad, so that one run reports all of it.
"""

from __future__ import annotations

import logging
import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from mim_components.data.read.dicom import MIN_SLICES, find_series, is_dicom
from mim_components.data.volumes import FoundVolumes, NoVolumesError, VolumeSource, suffix_of
from mim_components.utils.text import counted

logger = logging.getLogger(__name__)

# written beside the real files by macOS when packing an archive, and by the file system
HIDDEN_FOLDERS = ("__MACOSX", "lost+found")
# other formats of scans, which are not read, and remains of broken downloads
_OTHER_FORMATS = (".hdr", ".img", ".mgh", ".mgz", ".mnc", ".bz2", ".xz", ".zst", ".part", ".crdownload")
_DICOM_SUFFIXES = (".dcm", ".ima")


@dataclass
class Tree:
    """Content of a folder tree, in a fixed order.

    Attributes:
        root: the folder.
        files: everything that is not a folder, including links and special files.
        named_folders: folders that carry the extension of a volume.
        hidden: number of hidden files and folders skipped.
        locked: folders that could not be read.
    """

    root: Path
    files: list[Path] = field(default_factory=list)
    named_folders: list[Path] = field(default_factory=list)
    hidden: int = 0
    locked: list[Path] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """One line per folder that could not be read."""
        return [f"{folder}: folder cannot be read" for folder in self.locked]


def walk(directory: str | Path, max_depth: int | None = None) -> Tree:
    """Walk through a folder, following links, and visit each folder once.

    Args:
        directory: folder to start from.
        max_depth: levels of folders below it to visit; None = all.

    Returns:
        The tree, sorted by name within each folder.

    Raises:
        NoVolumesError: `directory` is missing or is not a folder.
    """
    directory = Path(directory)
    if not directory.exists():
        raise NoVolumesError(f"{directory}: there is no such folder, expected a folder with CT volumes.")
    if not directory.is_dir():
        raise NoVolumesError(f"{directory}: is a file, expected a folder with CT volumes (or a list as `datalist`).")
    tree = Tree(directory)
    _walk_into(directory, tree, set(), max_depth)
    logger.debug("%s: %s, %d hidden skipped", directory, counted(len(tree.files), "file"), tree.hidden)
    return tree


def find_volumes(directory: str | Path, modality: str = "ct") -> FoundVolumes:
    """Find every volume below a folder.

    Args:
        directory: folder to search recursively.
        modality: modality of the DICOM series to find, "ct" or "mr"; other formats do not tell.

    Returns:
        The volumes sorted by path, label maps among them; the notes name DICOM series that are not volumes of the
        modality, with the reason.

    Raises:
        NoVolumesError: the folder is missing, empty or without volumes; says which files were found.
    """
    tree = walk(directory)
    sources = [VolumeSource(path, (path,)) for path in tree.files if suffix_of(path)]
    found = FoundVolumes(sources, root=tree.root, searched=True)
    others = [path for path in tree.files if not suffix_of(path)]
    slices = [path for path in others if is_regular(path) and is_dicom(path)]
    series = find_series(slices, min_slices=MIN_SLICES, modality=modality)
    found.sources.extend(series.sources)
    found.notes.extend(series.notes)
    found.passed.extend(series.passed)
    broken = set(others).difference(slices)
    found.sources.extend(VolumeSource(path, (path,)) for path in broken if path.suffix.lower() in _DICOM_SUFFIXES)
    if passed := [path for path in others if path.suffix.lower() in _OTHER_FORMATS]:
        found.notes.append(f"{directory}: unsupported formats are skipped: {describe_files(passed)}")
    parents = {parent for source in found.sources for parent in source.files[0].parents}
    # a folder called x.nii is an ordinary folder if volumes lie in it, else a damaged copy of a file
    odd = [path for path in tree.named_folders if path not in parents]
    found.sources.extend(VolumeSource(path, (path,)) for path in dict.fromkeys([*odd, *tree.locked]))
    if not found.sources:
        reasons = "".join(f"\n  {note}" for note in (*found.notes, *found.passed))
        raise NoVolumesError(
            f"{directory}: no {modality.upper()} volume found in {describe_files(tree.files)}; expected "
            f".nii, .nii.gz, .mha, .mhd, .nrrd, .nhdr or folders with DICOM series.{reasons}"
        )
    found.sources.sort(key=str)
    return found


def is_regular(path: Path) -> bool:
    """Whether a file can be opened without blocking: not a folder, FIFO, device or dangling link."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def describe_files(files: list[Path]) -> str:
    """Count files by extension.

    Example:
        >>> describe_files([Path("a.png"), Path("b.png"), Path("c.txt"), Path("d")])
        '4 files: 2 .png, 1 .txt, 1 without extension'
    """
    if not files:
        return "0 files: the folder is empty"
    counts = Counter((suffix_of(path) or path.suffix).lower() or "without extension" for path in files)
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(8))
    return f"{counted(len(files), 'file')}: {kinds}"


def _walk_into(folder: Path, tree: Tree, seen: set[tuple[int, int]], levels: int | None) -> None:
    try:
        info = os.stat(folder)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        tree.locked.append(folder)
        return
    # device and inode, not the name: a link to a parent folder would loop forever
    if (info.st_dev, info.st_ino) in seen:
        return
    seen.add((info.st_dev, info.st_ino))
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith(".") or entry.name in HIDDEN_FOLDERS:
            tree.hidden += 1
        elif not path.is_dir():
            tree.files.append(path)
        else:
            if suffix_of(path):
                tree.named_folders.append(path)
            if levels != 0:
                _walk_into(path, tree, seen, None if levels is None else levels - 1)
