"""Assignment of samples to optimizer steps and devices.

All samples of a run form one stream: sample k belongs to epoch k // n (one pass over n volumes, in an order of its own)
and to step k // global_batch_size. The stream does not depend on how a step is divided into devices and micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator

import ignite.distributed as idist
import numpy as np
from torch.utils.data import Sampler

from mim_components.randomness import keyed_seed

MOST_DEVICES = 64  # listed in a message


def accumulation_steps(global_batch_size: int, batch_size: int, num_devices: int | None = None) -> int:
    """Micro-batches per optimizer step: global_batch_size / (batch_size * num_devices).

    Args:
        global_batch_size: samples (level-1 volumes) per optimizer step.
        batch_size: samples per device and micro-batch.
        num_devices: number of processes; None = those of this run.

    Raises:
        ValueError: it does not divide; names the nearest valid values, and numbers of devices that divide it.
    """
    num_devices = idist.get_world_size() if num_devices is None else num_devices
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    together = batch_size * num_devices
    if global_batch_size < 1 or global_batch_size % together:
        below = max(global_batch_size, 0) // together * together
        nearest = [str(each) for each in (below, below + together) if each > 0]
        share = max(global_batch_size, 0) // batch_size if global_batch_size % batch_size == 0 else 0
        fitting = [str(each) for each in range(1, min(share, MOST_DEVICES) + 1) if share % each == 0]
        raise ValueError(
            f"global_batch_size must be a multiple of batch_size x devices = {batch_size} x {num_devices}, got "
            f"{global_batch_size}; nearest valid values: {', '.join(nearest)}. Set --global_batch_size."
            + (f" A run that is continued keeps it: use {' or '.join(fitting)} devices." if fitting else "")
        )
    return global_batch_size // together


class StepSampler(Sampler[tuple[int, int]]):
    """Yield (epoch, index) for the samples of this process, step by step, micro-batch by micro-batch.

    Args:
        num_items: number of volumes n.
        num_steps: optimizer steps of the whole run.
        global_batch_size: samples per optimizer step, over all processes and micro-batches.
        batch_size: samples per process and micro-batch.
        seed: seed of the order.
        rank: rank of this process; None = that of this run.
        num_devices: number of processes; None = those of this run.

    Attributes:
        start_step: first step to yield; set it to continue a run.
    """

    def __init__(
        self,
        num_items: int,
        num_steps: int,
        global_batch_size: int,
        batch_size: int = 1,
        seed: int = 0,
        rank: int | None = None,
        num_devices: int | None = None,
    ) -> None:
        if num_items < 1:
            raise ValueError(f"num_items must be at least 1, got {num_items}.")
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
        self.num_items = num_items
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.global_batch_size = global_batch_size
        self.rank = idist.get_rank() if rank is None else rank
        self.num_devices = idist.get_world_size() if num_devices is None else num_devices
        self.accumulation = accumulation_steps(global_batch_size, batch_size, self.num_devices)
        self.seed = seed
        self.start_step = 0
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, dtype=np.int64))

    def set_batch_size(self, batch_size: int) -> None:
        """Change the size of the micro-batches; steps keep their samples.

        Raises:
            ValueError: `batch_size` does not divide the global batch.
        """
        self.accumulation = accumulation_steps(self.global_batch_size, batch_size, self.num_devices)
        self.batch_size = batch_size

    @property
    def epochs(self) -> float:
        """Number of passes over the items in all steps."""
        return self.num_steps * self.global_batch_size / self.num_items

    def __len__(self) -> int:
        """Number of samples left for this process."""
        return (self.num_steps - self.start_step) * self.accumulation * self.batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield (epoch, index)."""
        for step in range(self.start_step, self.num_steps):
            for micro_batch in self.samples_of(step):
                yield from micro_batch

    def samples_of(self, step: int) -> list[list[tuple[int, int]]]:
        """(epoch, index) of every sample of this process in a step, counted from 0, by micro-batch."""
        together = self.batch_size * self.num_devices
        starts = range(self.accumulation)
        firsts = [step * self.global_batch_size + each * together + self.rank * self.batch_size for each in starts]
        return [[self.item(sample) for sample in range(first, first + self.batch_size)] for first in firsts]

    def item(self, sample: int) -> tuple[int, int]:
        """Epoch and volume of a sample of the stream."""
        epoch, position = divmod(sample, self.num_items)
        if self._order[0] != epoch:
            random = np.random.RandomState(keyed_seed(self.seed, "order", epoch))
            self._order = (epoch, random.permutation(self.num_items))
        return epoch, int(self._order[1][position])
