"""Checks before the first step: disk space, shared memory, open files, the timeout of data workers."""

from __future__ import annotations

import errno
import math
import os
import resource
import shutil
from collections.abc import Sequence
from pathlib import Path

import ignite.distributed as idist
from torch import nn

from mim_components.run.checkpoints import CheckpointStore
from mim_components.run.folder import RunFolder
from mim_components.run.options import OptionsError
from mim_components.utils.files import FullDiskError, as_size, free_bytes, tensor_bytes

ROOM = 3  # checkpoints
SHARED_MEMORY = Path("/dev/shm")
PREFETCH = 2  # batches that each worker prefetches, PyTorch's default
FILES = 64  # open in a process without workers: libraries, logs, the tracking store
FILES_OF_A_BATCH = 32  # every tensor of a batch from a worker is an open file
FILES_OF_A_WORKER = 4


class StartError(RuntimeError):
    """A limit of this machine would stop the run; says which, and what to lower."""


def sample_shapes(
    size: Sequence[int], channels: int, count: int = 1, with_label: bool = False, rotate90_prob: float = 0.0
) -> list[list[int]]:
    """Shapes of the arrays of a training sample, for `check_start`.

    Args:
        size: size of a volume, voxels.
        channels: channels of a volume.
        count: volumes per sample.
        with_label: whether every volume has a label map.
        rotate90_prob: probability of a rotation by 90 degrees, which swaps the first two sides of a volume.

    Raises:
        OptionsError: volumes that are rotated and volumes that are not would differ in shape.

    Example:
        >>> sample_shapes([32, 32, 16], channels=1, count=4, with_label=True)
        [[4, 2, 32, 32, 16]]
    """
    if rotate90_prob > 0 and size[0] != size[1]:
        raise OptionsError(
            [
                f"--roi_size {list(size)}: expected the first two sides to be equal, since rotations by 90 degrees "
                f"swap them with --rotate90_prob {rotate90_prob:g}; set --rotate90_prob 0, or equal sides."
            ]
        )
    return [[count, channels + with_label, *size]]


def check_start(
    folder: RunFolder,
    network: nn.Module,
    sample_shapes: Sequence[Sequence[int]],
    batch_size: int | str,
    num_workers: int,
    ema_decay: float = 0.0,
) -> None:
    """Refuse a run that limits of the machine would stop later; raises the limit of open files if allowed.

    Args:
        folder: run folder, already checked to be writable and unused.
        network: network to train.
        sample_shapes: shapes of the arrays of a sample, counted as float32.
        batch_size: samples per micro-batch; "auto" counts as 1, since `fit_to_device` respects this limit too.
        num_workers: processes that load data; 0 = none.
        ema_decay: decay of an average of the weights, which checkpoints then also contain; 0 = none.

    Raises:
        FullDiskError: the disk of the folder cannot hold three checkpoints.
        StartError: shared memory or open files do not suffice.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as place:
        ...     check_start(RunFolder(place), nn.Linear(1, 1), [[1, 2**14, 2**14, 2**14]], batch_size=1, num_workers=2)
        Traceback (most recent call last):
        mim_components.run.start_checks.StartError: shared memory (/dev/shm) is too small for the batches of ...
    """
    check_open_files(num_workers)
    if num_workers:
        check_shared_memory(_batch_bytes(sample_shapes, batch_size), num_workers)
    if idist.get_rank() == 0 and not folder.finished:
        check_room(folder.path, checkpoint_bytes(network, averaged=ema_decay > 0))


def check_validation_start(
    sample_shapes: Sequence[Sequence[int]], batch_size: int, num_workers: int, scan_shapes: Sequence[Sequence[int]]
) -> None:
    """`check_start` for workers that load validation scans while those of the training hold batches ready.

    Args:
        sample_shapes: shapes of the arrays of a training sample, counted as float32.
        batch_size: samples per micro-batch of the training.
        num_workers: processes that load data for the training, and as many for the validation; 0 = none.
        scan_shapes: shapes of the validation scans, with the channels of image and label together.

    Raises:
        StartError: shared memory or open files do not suffice.
    """
    if num_workers:
        check_open_files(num_workers, loaders=2)
        scans = [4 * math.prod(shape) for shape in scan_shapes]
        check_shared_memory(_batch_bytes(sample_shapes, batch_size), num_workers, scans)


def _batch_bytes(sample_shapes: Sequence[Sequence[int]], batch_size: int | str) -> int:
    samples = 1 if isinstance(batch_size, str) else batch_size
    return 4 * samples * sum(math.prod(shape) for shape in sample_shapes)


def checkpoint_bytes(network: nn.Module, averaged: bool = False) -> int:
    """Bytes of a checkpoint: weights, two moments per trained weight, and the average if there is one."""
    weights = tensor_bytes(network.state_dict())
    trained = sum(4 * each.numel() for each in network.parameters() if each.requires_grad)
    return weights * (2 if averaged else 1) + 2 * trained + 2**16


def check_room(folder: Path, size: int) -> None:
    """Raise FullDiskError unless three checkpoints fit, counting existing ones; one more is always written."""
    there = len(CheckpointStore(folder / "checkpoints").paths())
    needed, free = max(ROOM - there, 1) * size, free_bytes(folder)
    if free < needed:
        raise FullDiskError(
            errno.ENOSPC,
            f"{folder}: no room for {ROOM} checkpoints of {as_size(size)}: {as_size(needed)} needed, {as_size(free)} "
            f"free, {as_size(needed - free)} missing. Make room, or set --output_dir",
        )


def check_shared_memory(batch_bytes: int, num_workers: int, scans: Sequence[int] = ()) -> None:
    """Raise StartError unless the prefetched batches of all workers of this machine fit into shared memory.

    Args:
        batch_bytes: bytes of a micro-batch of the training.
        num_workers: workers of the training, and of the validation.
        scans: bytes of each validation scan.
    """
    if not SHARED_MEMORY.is_dir():
        return
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    ready = (num_workers * PREFETCH + 1) * processes
    needed = ready * batch_bytes + sum(sorted(scans, reverse=True)[:ready])
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < needed:
        raise StartError(
            f"shared memory ({SHARED_MEMORY}) is too small for the batches of num_workers={num_workers}"
            f"{' and the scans of their validation' if scans else ''}: about "
            f"{as_size(needed)} needed, {as_size(free)} free. Lower --num_workers, --batch_size or the size of the "
            "crops, or raise the limit (docker run --shm-size)."
        )


def check_open_files(num_workers: int, loaders: int = 1) -> None:
    """Raise this process's limit of open files as far as needed; StartError if that is not allowed."""
    needed = FILES + loaders * num_workers * (FILES_OF_A_WORKER + PREFETCH * FILES_OF_A_BATCH)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise StartError(
            f"too few open files are allowed (ulimit -n): {hard}, about {needed} needed for num_workers={num_workers}. "
            f"Raise the limit (ulimit -n {needed}), or lower --num_workers."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
