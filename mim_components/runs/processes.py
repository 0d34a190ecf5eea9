"""Several processes, one per device: begin, end, and only one that talks."""

from __future__ import annotations

import logging
import os

import torch
import torch.distributed as dist


def local_device() -> torch.device:
    """The device of this process: `cuda:LOCAL_RANK`, or the CPU where there is no CUDA."""
    return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu")


def start_processes(backend: str | None = None) -> None:
    """Join the processes that `torchrun` started; all but the first log warnings only.

    Args:
        backend: of torch.distributed; None = "nccl" on CUDA, else "gloo".

    Raises:
        ValueError: not started by `torchrun`.
    """
    if "RANK" not in os.environ:
        raise ValueError("multi_gpu_train.json needs torchrun: torchrun --nproc_per_node N -m monai.bundle run ...")
    device = local_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend or ("nccl" if device.type == "cuda" else "gloo"))
    if dist.get_rank() != 0:
        logging.getLogger("mim_components").setLevel(logging.WARNING)


def stop_processes() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()
