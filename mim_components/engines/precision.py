"""The data type of autocast, and the loss scale that float16 gradients need."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

AMP_DTYPES = ("auto", "bfloat16", "float16")


def autocast_dtype(amp_dtype: str = "auto") -> torch.dtype:
    """The data type of autocast.

    Args:
        amp_dtype: "bfloat16", "float16", or "auto": bfloat16, except on a GPU that only emulates it (before Ampere),
            which is slower than float32 and lacks some operators.

    Raises:
        ValueError: `amp_dtype` is none of these.

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
    """PyTorch's `GradScaler` without its device synchronisation: a step synchronises once, for the guard.

    Args:
        enabled: False = a constant scale of 1.

    Attributes:
        overflows: number of steps skipped in the whole run because a scaled gradient left the range of float16.
    """

    def __init__(self, enabled: bool) -> None:
        self.scaler = torch.amp.GradScaler("cuda" if torch.cuda.is_available() else "cpu", enabled=enabled)
        self.overflows = 0

    @property
    def enabled(self) -> bool:
        """Whether gradients are scaled."""
        return self.scaler.is_enabled()

    def scale(self, loss: Tensor) -> Tensor:
        """Scale a loss before its backward pass."""
        return self.scaler.scale(loss)

    def unscale(self, optimizer: Optimizer) -> None:
        """Divide the gradients of a step by the scale, and set the scale of the next step."""
        self.scaler.unscale_(optimizer)
        self.scaler.update()

    def is_to_blame(self) -> bool:
        """Whether a non-finite gradient may be due to the scale; if so, counts the step.

        The caller must know that the loss itself is finite. At a scale below 1 the gradient is to blame.
        """
        if not self.enabled or self.scaler.get_scale() < 1:
            return False
        self.overflows += 1
        return True

    def state_dict(self) -> dict[str, Any]:
        """The scale and the count of overflows."""
        return {"scaler": self.scaler.state_dict(), "overflows": self.overflows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore; the state of a run without a scale leaves the initial scale."""
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.overflows = int(state["overflows"])
