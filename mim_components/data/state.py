"""State of the files of a scan, by which a change is noticed without reading them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mim_components.data.find.walk import Tree, walk

STATE = "state"  # key of an item


@dataclass(frozen=True)
class SourceState:
    """Cheap indicators of a change in a source.

    Attributes:
        files: number of files.
        size: bytes of all files.
        modified_ns: latest time at which content or inode of a file changed, ns. The inode's time changes even if a
            copy keeps the old modification time.
    """

    files: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, files: tuple[Path, ...]) -> SourceState:
        """State of the files now."""
        infos = [path.stat() for path in files]
        latest = max(max(info.st_mtime_ns, info.st_ctime_ns) for info in infos)
        return cls(len(infos), sum(info.st_size for info in infos), latest)


def state_of(paths: Iterable[Path]) -> dict[str, int] | None:
    """Number, size and time of files, including those in folders; None if there are none or one is missing."""
    try:
        return dict(vars(SourceState.of(tuple(files_in(paths)))))
    except (OSError, RuntimeError, ValueError):  # a circular link, or no files
        return None


def files_in(paths: Iterable[Path]) -> list[Path]:
    """The given files, and those at any depth of the given folders, by name; hidden ones are skipped, see `walk`.

    Raises:
        OSError: a folder cannot be read.
    """
    files: list[Path] = []
    for path in paths:
        tree = walk(path) if path.is_dir() else Tree(path, [path])
        if tree.locked:
            raise PermissionError(f"{tree.locked[0]}: folder cannot be read")
        files += tree.files
    return files


def state_text(state: Mapping[str, int] | None) -> str:
    """State of files as text; empty if one is missing."""
    return "" if state is None else " ".join(f"{name}={value}" for name, value in state.items())


def is_unchanged(item: Mapping[str, Any]) -> bool:
    """Whether the files of an item are unchanged since they were checked; True for an unchecked item."""
    return STATE not in item or state_text(state_of(paths_of(item))) == item[STATE]


def paths_of(item: Mapping[str, Any]) -> Iterator[Path]:
    """Files and folders of image and label."""
    for name in ("image", "label"):
        value = item.get(name)
        for each in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(each, (str, Path)):
                yield Path(each)
