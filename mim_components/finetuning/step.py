"""One optimizer step of fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mim_components.engines.step import OptimizerStep
from mim_components.utils.tensors import without_meta


class FinetuneStep(OptimizerStep):
    """The trainer's loss of the network's output for `image` against `label`; see `OptimizerStep`.

    Segmentation: `image` `(B, C, H, W, D)`, `label` `(B, 1, H, W, D)` classes or `(B, R, H, W, D)` regions.
    Classification: `label` `(B,)` class numbers.
    """

    def terms(self, engine: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """`loss` of one micro-batch."""
        device = engine.state.device
        image, label = (without_meta(batch[name]).to(device, non_blocking=True) for name in ("image", "label"))
        with self.autocast(device):
            output = engine.inferer(image, engine.network)
        return {"loss": engine.loss_function(output.float(), label)}
