"""Fit a training to its device before the first step: the micro-batch size, and whether to compile the network.

Both are determined by rehearsal: a forward and backward pass on training samples, without any effect on the training.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import ignite.distributed as idist
import torch
from monai.data import list_data_collate
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mim_components.data.load.loader import StepLoader
from mim_components.engines.step import OptimizerStep
from mim_components.networks.training_modes import compile_network, leave_eager
from mim_components.run.folder import RunFolder
from mim_components.run.start_checks import StartError, check_shared_memory
from mim_components.utils.files import as_size, tensor_bytes

logger = logging.getLogger(__name__)

AUTO = "auto"
ROOM = 0.9  # share of the free memory to use: the allocator's blocks leave gaps
OPTIMIZER = 2  # numbers that AdamW keeps per weight, created in the first step


def fit_to_device(trainer: Any, step: OptimizerStep, folder: RunFolder, compile: bool | str = False) -> None:
    """Choose what is left to "auto" and log it in one line; on CUDA also log the computation types.

    `batch_size`: as many samples as fit into the free memory of every device without changing the global batch;
    1 without CUDA. `compile`: with one process on CUDA, where it succeeds.

    Args:
        trainer: trainer of the run; its `StepLoader` gets the number of samples.
        step: step of the trainer.
        folder: folder of the run, which records the number of micro-batches per step.
        compile: "auto"; any other value has been applied already.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from mim_components.engines import FinetuneStep
        >>> loader = StepLoader([0], num_steps=10, global_batch_size=4, batch_size="auto")
        >>> step = FinetuneStep(loader)
        >>> trainer = SimpleNamespace(network=nn.Linear(1, 1), data_loader=loader, loss_function=None, inferer=None)
        >>> trainer.state = SimpleNamespace(device="cpu")
        >>> with TemporaryDirectory() as place:
        ...     fit_to_device(trainer, step, RunFolder(place))
        >>> loader.sampler.batch_size, step.accumulation  # without CUDA: one sample at a time
        (1, 4)
    """
    device, said = torch.device(trainer.state.device), []
    if folder.finished:
        return
    loader: StepLoader = trainer.data_loader
    network = trainer.network.module if isinstance(trainer.network, DistributedDataParallel) else trainer.network
    engine = SimpleNamespace(network=network, loss_function=trainer.loss_function, inferer=trainer.inferer)
    engine.state = SimpleNamespace(device=device, iteration=1)

    def batch_of(samples: int) -> dict[str, Any]:
        keys = [(0, number % loader.sampler.num_items) for number in range(samples)]
        batch: dict[str, Any] = list_data_collate([loader.data_loader.dataset[key] for key in keys])
        return batch

    def rehearse(samples: int) -> None:
        step.rehearse(engine, batch_of(samples))

    if loader.batch_size == AUTO:
        chosen, why = 1, "batch_size auto: without CUDA"
        if on_cuda(device):
            size = tensor_bytes(batch_of(1))
            chosen, why = samples_that_fit(rehearse, network, loader, device, size)
        loader.set_batch_size(chosen)
        step.accumulation = folder.facts["accumulation"] = loader.sampler.accumulation
        said.append(f"micro-batches of {chosen}, {loader.sampler.accumulation} accumulated ({why})")
    if compile == AUTO:
        said.append(compile_where_it_succeeds(rehearse, network, loader.sampler.batch_size, device))
    if on_cuda(device):
        said.append(types_of(step))
    if said and idist.get_rank() == 0:
        logger.info("%s", "; ".join(said))


def samples_that_fit(
    rehearse: Callable[[int], None], network: nn.Module, loader: StepLoader, device: torch.device, sample_bytes: int
) -> tuple[int, str]:
    """Largest micro-batch that divides a device's share of the global batch and fits in all processes; and why.

    Args:
        rehearse: runs a forward and backward pass of a number of samples.
        network: network to train.
        loader: loader of the training.
        device: device whose memory is measured.
        sample_bytes: bytes of a sample in shared memory, which must suffice too.
    """
    share = loader.sampler.accumulation * loader.sampler.batch_size
    most, why = 1, "batch_size auto"
    free = free_bytes(device) * ROOM - OPTIMIZER * sum(4 * p.numel() for p in network.parameters() if p.requires_grad)
    if share > 1:
        try:
            one, two = (peak_bytes(lambda n=n: rehearse(n), device) for n in (1, 2))  # type: ignore[misc]
            most = min(max(1, 1 + int((free - one) // max(two - one, 1))), share)
            why += f": {as_size(max(two - one, 0))} each, {as_size(max(int(free), 0))} free"
        except torch.OutOfMemoryError:
            why += ": two do not fit"
    while most > 1 and not shared_memory_takes(most * sample_bytes, loader.num_workers):
        most -= 1
    if idist.get_world_size() > 1:
        most = int(idist.all_reduce(most, op="MIN"))
    return max(each for each in range(1, share + 1) if share % each == 0 and each <= most), why


def on_cuda(device: torch.device) -> bool:
    """Whether a device is CUDA: its memory can be measured, and compiling pays off."""
    return device.type == "cuda"


def shared_memory_takes(batch_bytes: int, num_workers: int) -> bool:
    """Whether the prefetched batches of all workers fit into shared memory."""
    try:
        check_shared_memory(batch_bytes, num_workers)
    except StartError:
        return num_workers == 0
    return True


def free_bytes(device: torch.device) -> int:
    """Bytes of the device that PyTorch can still allocate, or has reserved and does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def peak_bytes(case: Callable[[], object], device: torch.device) -> int:
    """Peak bytes that a case needs in addition to those in use."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    case()
    return torch.cuda.max_memory_allocated(device) - before


def compile_where_it_succeeds(
    rehearse: Callable[[int], None], network: nn.Module, samples: int, device: torch.device
) -> str:
    """Compile a network and try it; undo that if it fails. Returns the outcome as text."""
    if not on_cuda(device) or idist.get_world_size() > 1:
        return "not compiled (compile auto: only with one process on CUDA)"
    start = perf_counter()
    try:
        compile_network(network)
        rehearse(samples)
    except Exception as error:  # whatever fails, such as a missing compiler: the network runs without
        leave_eager(network)
        return (
            f"not compiled (compile auto: {type(error).__name__}: {(str(error).strip() or '-').splitlines()[0][:120]})"
        )
    return f"compiled in {perf_counter() - start:.0f} s (compile auto)"


def types_of(step: OptimizerStep) -> str:
    """Data types of a step on CUDA, as text."""
    network = f"{str(step.dtype).removeprefix('torch.')} autocast" if step.amp else "no autocast"
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    names = {True: "TF32", False: "float32"}
    return f"{network}, else {names[convolutions]} in convolutions and {names[products]} in matrix products"
