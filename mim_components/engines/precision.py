"""The type in which a network runs under autocast, and the scale that float16 needs for its gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

AMP_DTYPES = ("auto", "bfloat16", "float16")


def autocast_dtype(amp_dtype: str = "auto") -> torch.dtype:
    """The type of autocast.

    Args:
        amp_dtype: "bfloat16", "float16", or "auto": bfloat16 but on a GPU that only emulates it (before Ampere), which
            is slower than float32 and lacks some operators.

    Raises:
        ValueError: it is none of these.

    Example:
        >>> autocast_dtype("float16")
        torch.float16
    """
    if amp_dtype not in AMP_DTYPES:
        raise ValueError(f"amp_dtype must be one of {', '.join(AMP_DTYPES)}, got {amp_dtype!r}.")
    if amp_dtype == "auto":
        emulated = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.float16 if emulated else torch.bfloat16
    dtype: torch.dtype = getattr(torch, amp_dtype)
    return dtype


class LossScale:
    """PyTorch's `GradScaler`, without its waiting for the device: a step waits once, for the guard.

    Args:
        enabled: False = a scale of 1 that never changes.

    Attributes:
        overflows: steps of the whole run that were passed over because a scaled gradient left the range of float16.
    """

    def __init__(self, enabled: bool) -> None:
        self.scaler = torch.amp.GradScaler("cuda" if torch.cuda.is_available() else "cpu", enabled=enabled)
        self.overflows = 0

    @property
    def enabled(self) -> bool:
        """Whether gradients are scaled."""
        return self.scaler.is_enabled()

    def scale(self, loss: Tensor) -> Tensor:
        """The loss whose gradient is taken."""
        return self.scaler.scale(loss)

    def unscale(self, optimizer: Optimizer) -> None:
        """Divide the gradients of a step by the scale, once, and set the scale of the next step."""
        self.scaler.unscale_(optimizer)
        self.scaler.update()

    def is_to_blame(self) -> bool:
        """Whether a gradient that is not finite may be due to the scale; counts the step then.

        The loss itself must be finite, which the caller knows. At a scale below 1 the gradient is to blame.
        """
        if not self.enabled or self.scaler.get_scale() < 1:
            return False
        self.overflows += 1
        return True

    def state_dict(self) -> dict[str, Any]:
        """Scale and count."""
        return {"scaler": self.scaler.state_dict(), "overflows": self.overflows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue; the state of a run without a scale leaves this one at its beginning."""
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.overflows = int(state["overflows"])
