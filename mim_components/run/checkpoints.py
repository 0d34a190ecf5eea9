"""Checkpoints of a run: the newest few are kept, and a damaged one falls back to the one before."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mim_components.utils.files import PARTIAL, digest_file
from mim_components.utils.tensor_files import DamagedCheckpointError, read_checkpoint, save_safely

logger = logging.getLogger(__name__)


class CheckpointStore:
    """The checkpoints of a run in one folder, named by step.

    Args:
        directory: folder of the checkpoints; created with the first.
        keep: number of checkpoints to keep, at least 2, so that a damaged one costs only one interval.
    """

    def __init__(self, directory: str | Path, keep: int = 2) -> None:
        if keep < 2:
            raise ValueError(f"keep must be at least 2, got {keep}.")
        self.directory = Path(directory)
        self.keep = keep
        self._damaged: set[Path] = set()  # seen by `newest`; they do not count as kept

    def paths(self) -> list[Path]:
        """All checkpoints, oldest first."""
        return sorted(path for path in self.directory.glob("step_*.pt") if re.fullmatch(r"step_\d{8}\.pt", path.name))

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the checkpoint of a step, then delete all but the last `keep`."""
        path = save_safely(self.directory / f"step_{step:08d}.pt", state)
        self._damaged.discard(path)
        whole = [each for each in self.paths() if each not in self._damaged]
        killed_saves = self.directory.glob(f".*{PARTIAL}")
        for old in [*whole[: -self.keep], *self._damaged, *killed_saves]:
            old.unlink(missing_ok=True)
            digest_file(old).unlink(missing_ok=True)
        return path

    def newest_named(self) -> str:
        """A sentence that names the newest checkpoint."""
        paths = self.paths()
        return f"Newest checkpoint: {paths[-1]}." if paths else "There is no checkpoint yet."

    def newest(self, parts: Sequence[str] = ()) -> dict[str, Any] | None:
        """The newest intact checkpoint; logs those it skipped. None if there is no checkpoint at all.

        Args:
            parts: keys that an intact checkpoint has.

        Raises:
            DamagedCheckpointError: there are checkpoints, and all are damaged.
        """
        paths = self.paths()
        causes: list[str] = []
        for path in reversed(paths):
            try:
                state = read_checkpoint(path, parts)
            except DamagedCheckpointError as error:
                logger.warning("Checkpoint skipped: %s", error)
                causes.append(str(error))
                self._damaged.add(path)
            else:
                if not digest_file(path).exists():
                    logger.info("%s has no digest (%s) to compare with.", path, digest_file(path).name)
                return state
        if paths:
            raise DamagedCheckpointError(
                f"all {len(paths)} checkpoints in {self.directory} are damaged, use --resume never for a new run; "
                f"{'; '.join(causes)}"
            )
        return None
