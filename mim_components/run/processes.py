"""Set-up and tear-down of distributed runs; logging on rank 0 only; recognising lost ranks."""

from __future__ import annotations

import logging
import os
from datetime import timedelta

import torch
import torch.distributed as dist

# parts of messages of gloo, NCCL and PyTorch's store; each backend has error classes of its own, gloo has none
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection was likely closed",
        "pair closure", "ncclRemoteError")  # fmt: skip
# the second is gloo's message for all pending operations except the one that timed out
SILENT = (
    "Timed out waiting",
    "Application timeout caused pair closure",
    "timed out in",
    "collective operation timeout",
)


def local_device() -> torch.device:
    """The device of this process: `cuda:LOCAL_RANK`, or the CPU without CUDA.

    Example:
        >>> local_device().type in ("cpu", "cuda")
        True
    """
    return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu")


def start_processes(backend: str | None = None, timeout: float = 1800, worker_timeout: float = 600) -> None:
    """Join the processes started by `torchrun`; all but the first log warnings only.

    Args:
        backend: backend of torch.distributed; None = "nccl" on CUDA, else "gloo".
        timeout: seconds after which a process that does not answer the others ends the run. Must be longer than
            anything that one process does while the others wait; the preparation of the data has its own timeout.
        worker_timeout: seconds after which a data worker counts as hanging; its process must be the first to report it.

    Raises:
        ValueError: not started by `torchrun`, or `timeout` is not longer than `worker_timeout`.

    Example:
        >>> start_processes("gloo", timeout=60, worker_timeout=600)
        Traceback (most recent call last):
        ValueError: multi_gpu_train.json needs torchrun: torchrun --nproc_per_node N -m monai.bundle run ...
    """
    if "RANK" not in os.environ:
        raise ValueError("multi_gpu_train.json needs torchrun: torchrun --nproc_per_node N -m monai.bundle run ...")
    if not timeout > worker_timeout:
        raise ValueError(
            f"process_timeout must be longer than worker_timeout, got {timeout} and {worker_timeout}: a process whose "
            "data worker hangs must have time to report it."
        )
    device = local_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout)))
    backend = backend or ("nccl" if device.type == "cuda" else "gloo")
    dist.init_process_group(
        backend, store=_of_this_start(store), rank=rank, world_size=size, timeout=timedelta(seconds=timeout)
    )
    if "SLURM_JOB_ID" in os.environ and "LOCAL_RANK" in os.environ:
        # Ignite sets LOCAL_RANK to this; SLURM counts its own tasks, of which torchrun is one
        os.environ["SLURM_LOCALID"] = os.environ["LOCAL_RANK"]
    if dist.get_rank() != 0:
        for package in ("mim_components", "mim_tools"):
            logging.getLogger(package).setLevel(logging.WARNING)


def _of_this_start(store: dist.Store) -> dist.Store:
    """A section of the store for this start of the processes.

    `torchrun --standalone` keeps its store over restarts, so a fast process would find the address of a dead one.
    Machines count their own restarts, so with several this is left to torchrun (TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1).
    """
    if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        return store
    return dist.PrefixStore(f"start_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def stop_processes() -> None:
    """Leave the process group.

    Example:
        >>> stop_processes()  # nothing to do in a run of one process
    """
    if dist.is_initialized():
        dist.destroy_process_group()


def is_lost_process(error: BaseException) -> bool:
    """Whether an error says that another process of the run has ended; that process knows why."""
    return _is_of_group(error) and any(text in str(error) for text in LOST) and not is_silent_process(error)


def is_silent_process(error: BaseException) -> bool:
    """Whether an error says that another process of the run does not answer, though it may still be alive."""
    return _is_of_group(error) and any(text in str(error) for text in SILENT)


def _is_of_group(error: BaseException) -> bool:
    gloo = "gloo" in str(error) or "pair closure" in str(error)
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and gloo)
