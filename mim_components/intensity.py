"""From HU to the unit interval, with one new array."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform


class ScaleWindowd(MapTransform):
    """Clip tensors to a window and scale it to [0, 1], float32; the same numbers as MONAI's `ScaleIntensityRanged`.

    That one makes a new array for each of its five operations, and a level-1 crop has 28 million voxels.

    Args:
        keys: tensors of any real type and shape; they are not changed.
        window: values that become 0 and 1.
        allow_missing_keys: do not raise when a key is missing.

    Raises:
        ValueError: the window is empty.

    Example:
        >>> ScaleWindowd("image", [-1000, 1000])({"image": torch.tensor([-2000, 0, 500], dtype=torch.int16)})
        {'image': tensor([0.0000, 0.5000, 0.7500])}
    """

    def __init__(self, keys: KeysCollection, window: Sequence[float], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.low, self.high = window
        if not self.low < self.high:
            raise ValueError(f"window must be (low, high) with low < high, got {tuple(window)}.")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Scale the tensors."""
        out = dict(data)
        for key in self.key_iterator(out):
            image = out[key].to(torch.float32, copy=True)
            out[key] = image.sub_(self.low).div_(self.high - self.low).clamp_(0, 1)
        return out
