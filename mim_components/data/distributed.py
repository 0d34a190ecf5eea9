"""Prepare once per machine, with the same result, or the same error, in all processes of a run."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch.distributed as dist

from mim_components.data.prepare import prepare_volumes
from mim_components.data.volumes import DataError, FoundVolumes, PreparedDataset

PREPARE_TIMEOUT = timedelta(days=7)  # other processes wait while the first decodes thousands of scans


def prepare_on_nodes(
    found: FoundVolumes,
    cache_dir: str | Path,
    on_bad: str = "stop",
    num_workers: int = 0,
    max_voxels: int = 2**31,
    verify: str = "full",
) -> PreparedDataset:
    """`prepare_volumes`, in a run of several processes by the first of each machine while the others wait.

    Args:
        found: the volumes; the same in all processes.
        cache_dir: cache folder, on this machine or shared.
        on_bad: "stop" or "exclude".
        num_workers: processes that decode.
        max_voxels: larger headers are refused.
        verify: "full" compares the checksum of cached voxels, "quick" only sizes.

    Raises:
        DataError: in all processes alike, when one failed or they found different volumes.
    """

    def prepare(**how: Any) -> PreparedDataset:
        return prepare_volumes(found, cache_dir, on_bad=on_bad, max_voxels=max_voxels, **how)

    if idist.get_world_size() == 1:
        return prepare(num_workers=num_workers, verify=verify)
    group = dist.new_group(backend="gloo", timeout=PREPARE_TIMEOUT)
    first = int(os.environ.get("LOCAL_RANK", idist.get_rank())) == 0
    prepared, error = None, None
    for turn in (True, False):  # the first of each machine decodes, then the others open what it wrote
        if first == turn:
            how: dict[str, Any] = {"num_workers": num_workers, "verify": verify} if first else {"verify": "quick"}
            try:
                prepared = prepare(**how, progress=idist.get_rank() == 0)
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
