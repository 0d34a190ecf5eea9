"""Keyed randomness: every draw depends on what it is for, not on earlier draws.

Crops and masks derive from (seed, epoch, sample), the order of samples from (seed, epoch), and PyTorch's generator from
(seed, step). So neither the number of workers nor a restart changes anything, and there is no state to save.
"""

from __future__ import annotations

import hashlib

import torch
from ignite.engine import Engine, Events
from monai.utils import set_determinism as monai_determinism


def keyed_seed(*key: int | str) -> int:
    """A 32-bit seed from a key of integers and strings; equal keys give equal seeds on every machine.

    Example:
        >>> keyed_seed(0, "crop", 3) == keyed_seed(0, "crop", 3), keyed_seed(0, "crop", 3) == keyed_seed(0, "crop", 4)
        (True, False)
    """
    plain = tuple(part if isinstance(part, str) else int(part) for part in key)  # NumPy integers print otherwise
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def set_determinism(seed: int, deterministic: bool = True) -> None:
    """MONAI's `set_determinism`, which also makes cuDNN deterministic, with a way to switch the latter off.

    Args:
        seed: seed of all random numbers.
        deterministic: False = cuDNN benchmarks its algorithms for every new shape and uses the fastest.

    Example:
        >>> set_determinism(seed=0)
        >>> first = torch.rand(3)
        >>> set_determinism(seed=0)
        >>> torch.equal(first, torch.rand(3))
        True
    """
    monai_determinism(seed=seed)
    if not deterministic:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = False, True


class SeedSteps:
    """Handler that seeds PyTorch before every step with (seed, step).

    Args:
        seed: the run's seed.

    Example:
        >>> draws = []
        >>> trainer = Engine(lambda engine, batch: draws.append(torch.rand(1).item()))
        >>> SeedSteps(seed=0).attach(trainer)
        >>> _ = trainer.run([0, 1]), trainer.run([0, 1], max_epochs=1)  # the same two steps twice
        >>> draws[0] != draws[1], draws[:2] == draws[2:]
        (True, True)
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed PyTorch for the step that begins."""
        torch.manual_seed(keyed_seed(self.seed, "step", engine.state.iteration))
