"""Checkpoints of a run: the last few are kept, and a damaged one gives way to the one before."""

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
        directory: where they lie; made when the first is written.
        keep: how many of the newest are kept, at least 2, so that a damaged one costs one interval only.
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
        """Write the checkpoint of a step, then delete what is older than the last `keep`."""
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
        """The newest checkpoint that is whole; names in the log what it passed over. None when there is none at all.

        Args:
            parts: names that a whole checkpoint has.

        Raises:
            DamagedCheckpointError: there are checkpoints, and all are damaged.
        """
        paths = self.paths()
        causes: list[str] = []
        for path in reversed(paths):
            try:
                state = read_checkpoint(path, parts)
            except DamagedCheckpointError as error:
                logger.warning("Checkpoint passed over: %s", error)
                causes.append(str(error))
                self._damaged.add(path)
            else:
                if not digest_file(path).exists():
                    logger.info("%s has no digest (%s) to compare it with.", path, digest_file(path).name)
                return state
        if paths:
            raise DamagedCheckpointError(
                f"all {len(paths)} checkpoints in {self.directory} are damaged, use --resume never for a new run; "
                f"{'; '.join(causes)}"
            )
        return None
