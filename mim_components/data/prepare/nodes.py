"""Prepare once per machine, with the same result, or the same error, in all processes of a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar

import ignite.distributed as idist
import torch.distributed as dist

from mim_components.data.names import is_anonymous, name_sources
from mim_components.data.prepare.quarantine import MAX_BAD_FRACTION
from mim_components.data.prepare.volumes import prepare_volumes
from mim_components.data.volumes import DataError, FoundVolumes, PreparedDataset

PREPARE_TIMEOUT = timedelta(days=7)  # other processes wait while the first decodes thousands of scans


class _Prepared(Protocol):
    @property
    def digest(self) -> str:
        """Equal for equal data."""


P = TypeVar("P", bound=_Prepared)


def prepare_on_nodes(
    found: FoundVolumes,
    cache_dir: str | Path,
    on_bad: str = "stop",
    max_bad_fraction: float = MAX_BAD_FRACTION,
    num_workers: int = 0,
    max_voxels: int = 2**31,
    verify: str = "full",
    output_dir: str | Path | None = None,
    anonymous_paths: bool = False,
    spacing: Sequence[float] | None = None,
) -> PreparedDataset:
    """`prepare_volumes`, in a run of several processes by the first of each machine while the others wait.

    Args:
        found: the volumes; the same in all processes.
        cache_dir: cache folder, on this machine or shared.
        on_bad: "stop" or "exclude".
        max_bad_fraction: share of the volumes that "exclude" may leave out.
        num_workers: processes that decode.
        max_voxels: larger headers are refused.
        verify: "full" compares the checksum of cached voxels, "quick" only sizes.
        output_dir: where the first process of all lists bad volumes, see `write_quarantine`.
        anonymous_paths: name volumes by digests, see `mim_components.data.names`.
        spacing: that every volume is resampled to, mm along R, A and S; None = native voxels.

    Raises:
        DataError: in all processes alike, when one failed or they found different volumes.
    """
    named = name_sources(found) if is_anonymous(anonymous_paths) else found

    def prepare(first: bool) -> PreparedDataset:
        how: dict[str, Any] = {"num_workers": num_workers, "verify": verify} if first else {"verify": "quick"}
        how |= {"on_bad": on_bad, "max_bad_fraction": max_bad_fraction, "max_voxels": max_voxels}
        how |= {"spacing": spacing}
        if idist.get_rank() == 0:
            return prepare_volumes(named, cache_dir, output_dir=output_dir, **how)
        return prepare_volumes(named, cache_dir, progress=False, **how)

    return first_on_each_node(prepare)


def first_on_each_node(prepare: Callable[[bool], P]) -> P:
    """Let the first process of each machine prepare, then the others with what it left on the disk.

    Args:
        prepare: called with True in the first process of a machine and in a run of one process, else with False.

    Raises:
        DataError: in all processes alike, when one failed or they prepared different data.
    """
    if idist.get_world_size() == 1:
        return prepare(True)
    group = dist.new_group(backend="gloo", timeout=PREPARE_TIMEOUT)
    first = int(os.environ.get("LOCAL_RANK", idist.get_rank())) == 0
    prepared, error = None, None
    for turn in (True, False):
        if first == turn:
            try:
                prepared = prepare(first)
            except (DataError, OSError) as caught:
                error = caught
        _agree(error, group)
    assert prepared is not None
    digests: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(digests, prepared.digest, group=group)
    if len(set(digests)) > 1:
        raise DataError(f"processes of this run found different volumes: {', '.join(d[:12] for d in digests)}.")
    return prepared


def _agree(error: Exception | None, group: Any) -> None:
    """Raise in all processes when one has an error: its own where it happened, its text elsewhere."""
    texts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(texts, None if error is None else str(error), group=group)
    if error is not None:
        raise error
    for rank, text in enumerate(texts):
        if text is not None:
            raise DataError(f"process {rank} could not prepare the volumes: {text}")
