"""One optimizer step of pre-training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mim_components.data.load.loader import StepLoader
from mim_components.engines.nonfinite import NonFiniteError
from mim_components.engines.step import OptimizerStep
from mim_components.handlers.collapse import ContextSpread
from mim_components.run.folder import RunFolder
from mim_components.transforms.levels import LevelBatch, LevelPart, level_batch, split_levels

__all__ = ["NonFiniteError", "PretrainStep"]


class PretrainStep(OptimizerStep):
    """Reconstruct and align the volumes of all levels; see `OptimizerStep` for what it does with the loss.

    Args:
        num_levels: number of levels L.
        loader: loader of the trainer; its sampler knows the steps, which schedules of the loss use too.
        num_visible: visible tokens per volume, if known; saves a device synchronisation.
        folder: run folder, whose checkpoints keep the spread of the context vectors; None = none.
        max_norm: gradients are clipped to this norm; 0 = only measured.
        amp: run the network in autocast; the losses stay in float32.
        on_nonfinite: action for a non-finite loss or gradient, see `NonFiniteGuard`.
        max_skipped: maximum number of consecutive skipped steps.
        max_volumes_per_pass: volumes of all levels that go through the network at once; the gradients of several passes
            add up to those of a single pass, which keeps the activations of all volumes. None = no limit.
        amp_dtype: data type of autocast, see `autocast_dtype`.

    Raises:
        ValueError: `max_volumes_per_pass` is less than 1; when called with it, the network has `stop_gradient=False`.

    Example:
        >>> from types import SimpleNamespace
        >>> from mim_components.losses import MiMLoss
        >>> from mim_components.networks import MiM
        >>> network = MiM(input_size=(16, 16, 16), preset="nano", num_levels=1)
        >>> engine = SimpleNamespace(network=network, optimizer=torch.optim.AdamW(network.parameters()))
        >>> engine.loss_function = MiMLoss(patch_size=8, reconstruction_weights=(1.0,), alignment_weights=())
        >>> engine.state = SimpleNamespace(device=torch.device("cpu"), iteration=1)
        >>> masked = (torch.arange(8) > 2).view(1, 1, 8)  # 3 of 8 tokens are visible
        >>> batch = {"name": ["ct"], "image_level1": torch.rand(1, 1, 1, 16, 16, 16), "masked_level1": masked}
        >>> step = PretrainStep(num_levels=1, loader=StepLoader([0], num_steps=10, global_batch_size=2))
        >>> numbers = step(engine, [batch, batch])  # two micro-batches
        >>> list(numbers), numbers["names"], torch.equal(numbers["loss"], numbers["reconstruction_level1"])
        (['loss', 'reconstruction_level1', 'gradient_norm', 'names'], ['ct', 'ct'], True)
    """

    def __init__(
        self,
        num_levels: int,
        loader: StepLoader,
        num_visible: int | None = None,
        folder: RunFolder | None = None,
        max_norm: float = 0.0,
        amp: bool = False,
        on_nonfinite: str = "stop",
        max_skipped: int = 5,
        max_volumes_per_pass: int | None = None,
        amp_dtype: str = "auto",
    ) -> None:
        super().__init__(loader, folder, max_norm, amp, on_nonfinite, max_skipped, amp_dtype)
        if max_volumes_per_pass is not None and max_volumes_per_pass < 1:
            raise ValueError(
                f"max_volumes_per_pass must be at least 1, or null for no limit, got {max_volumes_per_pass}."
            )
        self.num_levels = num_levels
        self.num_visible = num_visible
        self.num_steps = loader.sampler.num_steps
        self.max_volumes_per_pass = max_volumes_per_pass
        self.spread = ContextSpread()
        if folder is not None:
            folder.keep("spread", self.spread, since_version=True)

    def measured(self) -> dict[str, Tensor]:
        """Spread of the context vectors of the step's volumes, `context_std_level1_2` ..."""
        return self.spread.take()

    def rehearse(self, engine: Any, batch: Mapping[str, Any]) -> None:
        """See `OptimizerStep`; the spread of the context vectors is not measured."""
        spread, self.spread = self.spread, ContextSpread()
        try:
            super().rehearse(engine, batch)
        finally:
            self.spread = spread

    def terms(self, engine: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Every term of the loss for one micro-batch, and the share of children without content."""
        device = engine.state.device
        levels = level_batch(batch, self.num_levels, device)
        with self.autocast(device):
            output = engine.network(levels.images, levels.masked, self.num_visible)
        self.spread.add(output.context, levels.content)
        return {**engine.loss_function(output, levels, self._progress(engine)), **levels.empty_children()}

    def passes(self, engine: Any, batch: Mapping[str, Any]) -> Sequence[Callable[[], dict[str, Tensor]]]:
        """One pass, or as many as `max_volumes_per_pass` requires, parents before their children."""
        if self.max_volumes_per_pass is None:
            return super().passes(engine, batch)
        levels = level_batch(batch, self.num_levels, engine.state.device)
        parts = split_levels(levels.sizes, self.max_volumes_per_pass)
        latent: list[list[Tensor]] = [[] for _ in levels.sizes]  # latent features of each level's volumes so far
        return [partial(self._pass, engine, levels, part, latent) for part in parts]

    def _pass(self, engine: Any, levels: LevelBatch, part: LevelPart, latent: list[list[Tensor]]) -> dict[str, Tensor]:
        """Contribution of one part to every term."""
        volumes = levels.take(part)
        parents: list[Tensor | None] = [None] * (self.num_levels - 1)
        if part.level > 0:
            parents[part.level - 1] = torch.cat(latent[part.level - 1])[part.parents]
        with self.autocast(engine.state.device):
            output = engine.network(volumes.images, volumes.masked, self.num_visible, parents)
        self.spread.add(output.context, volumes.content)
        latent[part.level].append(output.latent[part.level].clone())  # CUDA graphs overwrite their outputs
        terms = engine.loss_function(output, volumes, self._progress(engine), levels.sizes)
        return {**terms, **volumes.empty_children(levels.sizes)}

    def _progress(self, engine: Any) -> float:
        return (engine.state.iteration - 1) / self.num_steps
