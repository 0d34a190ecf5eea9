"""One optimizer step of pre-training on random voxels and masks, as the other benchmarks run it.

The step is that of real training, with AdamW and clipping, but without a data path.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import ignite.distributed as idist
import torch
from torch import Tensor, nn

from mim_components.data.load.sampler import StepSampler
from mim_components.engines.pretraining import PretrainStep
from mim_components.losses import MiMLoss
from mim_components.networks import MiM, for_training
from mim_components.networks.hybrid import HybridEncoder
from mim_components.optimizers import weight_decay_groups
from mim_components.tokens import num_visible_tokens

CHILDREN = 4
FORMS = ("dense", "sparse")


@dataclass(frozen=True)
class Settings:
    """Settings of a step.

    Attributes:
        preset: sizes of the network.
        size: edge of a volume, voxels.
        levels: number of levels; a volume has 4 children.
        samples: volumes of level 1.
        mask_ratio: share of masked tokens.
        encoder: "hybrid" or "vit".
        form: "sparse", or "dense" for the hybrid encoder on the whole grid.
        limit: `max_volumes_per_pass`; 0 = no limit.
        checkpoint: `checkpoint_activations`.
        compile: whether to compile the network.
        device: device of network and volumes.
        amp: whether to run the network in bfloat16 autocast.
    """

    preset: str = "base"
    size: int = 96
    levels: int = 3
    samples: int = 1
    mask_ratio: float = 0.6
    encoder: str = "hybrid"
    form: str = "sparse"
    limit: int = 0
    checkpoint: bool = False
    compile: bool = False
    device: str = "cpu"
    amp: bool = False

    @property
    def volumes(self) -> list[int]:
        """Number of volumes per level."""
        return [self.samples * CHILDREN**level for level in range(self.levels)]


class Training:
    """A network with its optimizer and one batch; a call is one step.

    Attributes:
        network: the network itself, before DDP.
        engine: attributes of MONAI's trainer that a step uses; `wrap` may replace its network.
    """

    def __init__(self, settings: Settings) -> None:
        self.network = make_network(settings)
        tokens = math.prod(self.network.grid)
        visible = num_visible_tokens(tokens, settings.mask_ratio)
        self.batch = make_batch(settings, tokens, visible)
        levels = settings.levels
        self.engine = SimpleNamespace(
            network=self.network,
            optimizer=make_optimizer(self.network),
            loss_function=MiMLoss(self.network.patch_size, (1.0,) * levels, (0.1,) * (levels - 1)),
            state=SimpleNamespace(device=torch.device(settings.device), iteration=1),
        )
        limit = settings.limit or None
        loader: Any = SimpleNamespace(sampler=StepSampler(1, 1, idist.get_world_size()))
        self.step = PretrainStep(levels, loader, visible, max_norm=1.0, amp=settings.amp, max_volumes_per_pass=limit)

    def wrap(self, network: nn.Module) -> None:
        """Train through another module, such as DDP."""
        self.engine.network = network

    def __call__(self, batch: dict[str, Any] | None = None) -> dict[str, Any]:
        """One step, on a batch of a loader or on the random batch."""
        return self.step(self.engine, [self.batch if batch is None else batch])


def make_network(settings: Settings) -> MiM:
    torch.manual_seed(0)
    network = MiM(1, (settings.size,) * 3, settings.preset, settings.encoder, settings.levels)
    if isinstance(network.encoder, HybridEncoder):
        network.encoder.sparse = settings.form == "sparse"
    return for_training(network, settings.device, settings.checkpoint, settings.compile)


def make_optimizer(network: nn.Module) -> torch.optim.Optimizer:
    on_cuda = next(network.parameters()).device.type == "cuda"
    groups = weight_decay_groups(network, 0.01)
    return torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=on_cuda or None)


def make_batch(settings: Settings, tokens: int, visible: int) -> dict[str, Any]:
    """A batch on the device, as the data loader collates it."""

    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(settings.device)

    batch: dict[str, Any] = {"name": ["random"]}
    for level in range(settings.levels):
        shape = settings.samples, CHILDREN**level
        batch[f"image_level{level + 1}"] = moved(torch.rand(*shape, 1, *(settings.size,) * 3))
        batch[f"masked_level{level + 1}"] = moved(torch.rand(*shape, tokens).argsort(-1) >= visible)
        batch[f"parent_token_level{level + 1}"] = moved(torch.randint(tokens, shape))
        batch[f"parent_overlap_level{level + 1}"] = moved(torch.zeros(*shape, tokens, dtype=torch.bool))
        batch[f"content_level{level + 1}"] = moved(torch.ones(shape, dtype=torch.bool))
    return batch
