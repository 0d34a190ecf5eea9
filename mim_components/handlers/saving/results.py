"""The outcome of every scan of an inference: a list that is always up to date, and an error at the end."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from mim_components.data.volumes import BadVolume, BadVolumesError
from mim_components.utils.files import write_text_safely
from mim_components.utils.text import counted, csv_table, printable

logger = logging.getLogger(__name__)


class Results:
    """Writes `results.csv`: name and source of every scan, its files, or why there are none.

    A name may be shortened, and then ends in a digest: this list maps it to its scan.

    Args:
        output_dir: folder of the files.
        on_bad: "report" raises at the end if there are bad scans.

    Attributes:
        bad: scans without results.
    """

    def __init__(self, output_dir: Path, on_bad: str) -> None:
        self.path = output_dir / "results.csv"
        self.on_bad = on_bad
        self.bad: list[BadVolume] = []
        self._rows: list[dict[str, str]] = []

    @property
    def count(self) -> int:
        """Number of scans with results."""
        return len(self._rows) - len(self.bad)

    def add(self, name: str, source: str, files: Sequence[Path] = (), cause: str = "") -> None:
        """Add a scan that is done, or bad."""
        if cause:
            self.bad.append(BadVolume(source, cause))
            logger.warning("left out: %s", self.bad[-1])
        row = {"name": name, "source": source, "files": " ".join(path.name for path in files), "cause": cause}
        self._rows.append({key: printable(value) for key, value in row.items()})
        write_text_safely(self.path, csv_table(self._rows))

    def finish(self, what: str) -> None:
        """Log how many scans were done, and what was left out.

        Raises:
            BadVolumesError: there are bad scans, and `on_bad` is "report".
        """
        logger.info("%d %s: %s", self.count, what, self.path.parent)
        if not self.bad:
            return
        logger.warning("%s left out:\n%s", counted(len(self.bad), "scan"), "\n".join(f"  {each}" for each in self.bad))
        if self.on_bad == "report":
            raise BadVolumesError(self.bad, len(self._rows))
