"""Divide the preparation among the processes of a run, with the same errors in all of them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import ignite.distributed as idist
import torch.distributed as dist

from mim_components.data.volumes import DataError
from mim_components.run.folder import content_changes
from mim_components.utils.files import PARTIAL, text_digest

PREPARE_TIMEOUT = timedelta(days=7)  # a process may wait while another decodes thousands of scans
T = TypeVar("T")
R = TypeVar("R")


class Team:
    """Processes of a run that divide tasks, because each can use the results of the others.

    Those with equal keys form a team. All processes of a run create their teams and call every method together.

    Args:
        key: key of this process: its tasks, and the files that it can use.
        folder: folder for results; only processes that see the same one form a team. None = results are not
            in files.

    Attributes:
        size: number of processes in this team; 1 in a run of one process.
        place: index of this process among them.
    """

    def __init__(self, key: str = "", folder: Path | None = None) -> None:
        several = idist.get_world_size() > 1
        self._group = dist.new_group(backend="gloo", timeout=PREPARE_TIMEOUT) if several else None
        self._members = [0]
        if several:
            seen = "" if folder is None else self._who_sees(folder)
            keys = self._gather(text_digest(f"{key}\n{seen}"))
            self._members = [rank for rank, each in enumerate(keys) if each == keys[idist.get_rank()]]
        self.size = len(self._members)
        self.place = self._members.index(idist.get_rank()) if several else 0

    def share(self, tasks: Sequence[T]) -> Sequence[T]:
        """The tasks of this process."""
        return tasks[self.place :: self.size]

    def exchange(self, make: Callable[[], R]) -> list[R]:
        """Results of `make` in all processes of the team.

        Raises:
            DataError: `make` raised it, or an OSError, in one; raised in all processes.
        """
        made: list[R] = []
        error: Exception | None = None
        try:
            made.append(make())
        except (DataError, OSError) as caught:
            error = caught
        everywhere = self._gather((None if error is None else str(error), made))
        if error is not None:
            raise error
        for rank, (text, _) in enumerate(everywhere):
            if text is not None:
                raise DataError(f"process {rank} could not prepare the volumes: {text}")
        return [everywhere[rank][1][0] for rank in self._members]

    def divide(self, work: Callable[[Sequence[T]], Sequence[R]], tasks: Sequence[T]) -> list[R]:
        """Results of all tasks in order; `work` computes those of a share.

        Raises:
            DataError: see `exchange`.
        """
        results: list[Any] = [None] * len(tasks)
        for place, part in enumerate(self.exchange(lambda: list(work(self.share(tasks))))):
            results[place :: self.size] = part
        return results

    def check_same(self, digest: str, contents: Mapping[str, str]) -> None:
        """Raise DataError in all processes of the run if their digests differ; names the differences."""
        digests = self._gather(digest)
        if len(set(digests)) > 1:
            found, other = self._gather(contents), next(n for n, each in enumerate(digests) if each != digests[0])
            lines = "; ".join(content_changes(found[0], found[other]))
            raise DataError(f"processes of this run found different volumes; {other} against 0: {lines}")

    def _who_sees(self, folder: Path) -> str:
        """Processes whose mark this process sees in its folder."""
        mark = folder / f".{uuid.uuid4().hex}{PARTIAL}"
        with suppress(OSError):  # the preparation reports a folder that cannot be written
            folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
        marks = self._gather(mark.name)  # new names, so that no file system has cached their absence
        seen = [rank for rank, name in enumerate(marks) if (folder / name).exists()]
        self._gather(None)
        with suppress(OSError):
            mark.unlink()
        return str(seen)

    def _gather(self, value: Any) -> list[Any]:
        if self._group is None:
            return [value]
        values: list[Any] = [None] * idist.get_world_size()
        dist.all_gather_object(values, value, group=self._group)
        return values
