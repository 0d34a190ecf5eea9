"""One optimizer step, as MONAI's trainer calls it: accumulate micro-batches, clip, step; and that of fine-tuning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mim_components.data.load.loader import StepLoader
from mim_components.engines.nonfinite import MicroBatch, NonFiniteError, NonFiniteGuard
from mim_components.engines.precision import LossScale, autocast_dtype
from mim_components.run.folder import RunFolder
from mim_components.utils.tensors import without_meta

__all__ = ["FinetuneStep", "NonFiniteError", "OptimizerStep"]


class OptimizerStep(ABC):
    """`iteration_update` of MONAI's `SupervisedTrainer`; subclasses define the terms of the loss.

    Args:
        loader: loader of the trainer; its sampler knows the steps.
        folder: run folder, for reports of non-finite steps and the guard's counts; None = none.
        max_norm: gradients are clipped to this norm; 0 = only measured.
        amp: run the network in autocast; the losses stay in float32.
        on_nonfinite: action for a non-finite loss or gradient, see `NonFiniteGuard`.
        max_skipped: maximum number of consecutive skipped steps.
        amp_dtype: data type of autocast, see `autocast_dtype`; with float16 the loss is scaled.

    Attributes:
        accumulation: micro-batches per step.
        guard: checks every step.
        loss_scale: loss scale, kept in checkpoints.

    Returns:
        When called: every term of the loss (mean over micro-batches), the numbers of `measured` and `gradient_norm`
        before clipping, as detached scalars on the device; `names` lists the volumes of this process. If the guard may
        skip steps, `skipped_steps` counts them. With float16, `overflow_steps` counts steps skipped to find a smaller
        scale.

    Raises:
        NonFiniteError: when called, instead of updating the weights.
    """

    def __init__(
        self,
        loader: StepLoader,
        folder: RunFolder | None = None,
        max_norm: float = 0.0,
        amp: bool = False,
        on_nonfinite: str = "stop",
        max_skipped: int = 5,
        amp_dtype: str = "auto",
    ) -> None:
        self.accumulation = loader.sampler.accumulation
        self.max_norm = max_norm
        self.amp = amp
        self.dtype = autocast_dtype(amp_dtype)
        self.loss_scale = LossScale(amp and self.dtype == torch.float16)
        self.guard = NonFiniteGuard(on_nonfinite, max_skipped, folder, loader.sampler)
        if folder is not None:
            folder.keep("guard", self.guard)
            folder.keep("loss_scale", self.loss_scale, since_version=True)
            folder.at_end(self.guard)

    @abstractmethod
    def terms(self, engine: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Scalars of one micro-batch by name; `loss` is the one to minimise."""

    def passes(self, engine: Any, batch: Mapping[str, Any]) -> Sequence[Callable[[], dict[str, Tensor]]]:
        """Functions that compute the terms of a micro-batch, one per pass and backward; their terms add up."""
        return [partial(self.terms, engine, batch)]

    def measured(self) -> dict[str, Tensor]:
        """Further numbers of the step, after its passes."""
        return {}

    def __call__(self, engine: Any, batches: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Run one step on its micro-batches."""
        network, optimizer = engine.network, engine.optimizer
        network.train()
        optimizer.zero_grad(set_to_none=True)
        seen: list[MicroBatch] = []
        for number, batch in enumerate(batches, start=1):
            names = dict.fromkeys(batch.get("name", []))  # several crops of a volume name it once
            seen.append(MicroBatch(list(names), {}))
            *others, last = self.passes(engine, batch)
            for make in others:
                self._backward(network, make, seen[-1].terms, is_last=False)
            self._backward(network, last, seen[-1].terms, is_last=number == self.accumulation)
        numbers = {name: sum((each.terms[name] for each in seen[1:]), value) for name, value in seen[0].terms.items()}
        self.loss_scale.unscale(optimizer)
        norm = nn.utils.get_total_norm([each.grad for each in network.parameters() if each.grad is not None])
        engine.state.skipped = not self.guard.accepts(norm, numbers["loss"])
        if engine.state.skipped:
            loss_is_good = self.loss_scale.enabled and self.guard.all_finite(numbers["loss"])
            if not (loss_is_good and self.loss_scale.is_to_blame()):
                self.guard.refuse(engine.state.iteration, network, norm, seen)
            optimizer.zero_grad(set_to_none=True)  # a step without gradients changes neither weights nor momentum
        elif self.max_norm:
            nn.utils.clip_grads_with_norm_(network.parameters(), self.max_norm, norm)
        optimizer.step()
        numbers |= {**self.measured(), "gradient_norm": norm.detach()}
        if self.guard.action == "skip":
            numbers["skipped_steps"] = norm.new_full((), float(self.guard.skipped))
        if self.loss_scale.enabled:
            numbers["overflow_steps"] = norm.new_full((), float(self.loss_scale.overflows))
        return {**numbers, "names": [name for each in seen for name in each.names]}

    def rehearse(self, engine: Any, batch: Mapping[str, Any]) -> None:
        """Forward and backward pass of a micro-batch without effect: no gradient, number or scale is kept.

        Args:
            engine: object with `network` (before DDP), `loss_function`, `inferer` and `state`.
            batch: micro-batch.
        """
        engine.network.train()
        try:
            for make in self.passes(engine, batch):
                (make()["loss"] / self.accumulation).backward()
        finally:
            engine.network.zero_grad(set_to_none=True)

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context in which the network runs."""
        return torch.autocast(device.type, dtype=self.dtype, enabled=self.amp)

    def _backward(
        self, network: nn.Module, make: Callable[[], dict[str, Tensor]], terms: dict[str, Tensor], is_last: bool
    ) -> None:
        """Add a pass to the gradients and to `terms`; DDP exchanges gradients only in the last pass of a step."""
        with network.no_sync() if isinstance(network, DistributedDataParallel) and not is_last else nullcontext():
            made = make()
            self.loss_scale.scale(made["loss"] / self.accumulation).backward()
        for name, value in made.items():
            value = value.detach() / self.accumulation
            terms[name] = terms[name] + value if name in terms else value


class FinetuneStep(OptimizerStep):
    """The step of fine-tuning: the trainer's loss between the network's output for `image` and `label`.

    Segmentation: `image` `(B, C, H, W, D)`, `label` `(B, 1, H, W, D)` classes or `(B, R, H, W, D)` regions.
    Classification: `label` `(B,)` class numbers. Arguments are those of `OptimizerStep`.

    Example:
        >>> from types import SimpleNamespace
        >>> network = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.ones_(network.weight)
        >>> engine = SimpleNamespace(network=network, optimizer=torch.optim.SGD(network.parameters(), lr=0.125))
        >>> engine.inferer, engine.loss_function = lambda image, network: network(image), nn.MSELoss()
        >>> engine.state = SimpleNamespace(device=torch.device("cpu"), iteration=1)
        >>> batch = {"image": torch.tensor([[2.0]]), "label": torch.tensor([[1.0]])}
        >>> numbers = FinetuneStep(StepLoader([0], num_steps=1, global_batch_size=1))(engine, [batch])
        >>> numbers["loss"].item(), numbers["gradient_norm"].item()  # (2 w - 1)^2 and 4 (2 w - 1), w = 1
        (1.0, 4.0)
        >>> network.weight.item()  # 1 - 0.125 * 4
        0.5
    """

    def terms(self, engine: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """`loss` of one micro-batch."""
        device = engine.state.device
        image, label = (without_meta(batch[name]).to(device, non_blocking=True) for name in ("image", "label"))
        with self.autocast(device):
            output = engine.inferer(image, engine.network)
        return {"loss": engine.loss_function(output.float(), label)}
