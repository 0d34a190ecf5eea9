"""Sliding-window inference over a whole volume that keeps class numbers instead of logits.

Axes: volume (B, C, H, W, D); window (C, h, w, d); K classes or R regions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import Inferer

# private in MONAI, but the windows must be exactly those of its SlidingWindowInferer
from monai.inferers.utils import _get_scan_interval
from monai.utils import ensure_tuple_rep
from torch import Tensor
from torch.nn.functional import pad
from tqdm import tqdm

from mim_components.utils.tensors import without_meta
from mim_components.utils.text import bar_options

MAX_CLASSES = 256  # a class is one byte

Window = tuple[slice, ...]


class ClassMapInferer(Inferer):
    """MONAI's `SlidingWindowInferer` with one byte per voxel as the result, and memory for one row of windows.

    Windows, weights and padding are MONAI's. Its own result, K float32 volumes, is never held: windows advance row by
    row along one axis, weighted logits accumulate in a buffer as deep as one window, and planes that no further window
    reaches become class numbers at once. A voxel's class is that of the largest weighted mean of logits; it lies in a
    region if that region's weighted mean is above 0, which is where the sigmoid is above 0.5.

    The buffer takes `4 * K * roi_size[axis] * A * B` bytes, A and B being the sides of the volume (at least the window)
    along the other two axes; `axis` is chosen to make this smallest. For 512x512x800 voxels, 16 classes and windows
    of 96^3 it is 1.6 GB, where all logits would take 13.4 GB. The network adds
    `4 * K * sw_batch_size` bytes per voxel of a window for its output. Several heads multiply K.

    Args:
        roi_size: size of a window, voxels.
        sw_batch_size: windows that go through the network together.
        overlap: overlap of neighbouring windows as a share of their side, in [0, 1).
        regions: the network's channels are regions, which may overlap, not classes.
        progress: show a progress bar over the windows.
        mode: "gaussian" gives the edges of a window less weight; "constant" weights all voxels equally.
        sw_device: device of windows and network, by default that of the volume.
        device: device of buffer and result, by default that of the volume.
        heads: number of class maps, each with as many of the network's channels; unused with regions.

    Raises:
        ValueError: a size or `heads` below 1, or `overlap` outside [0, 1); when called: the volume does not have the
            dimensions of `roi_size`, or the network's output is not one tensor of the windows' size, has fewer than 2
            or more than 256 classes, or is not finite.

    Example:
        >>> import torch
        >>> inferer = ClassMapInferer(roi_size=(8, 8, 8))
        >>> volume = torch.linspace(-1, 1, 20).expand(1, 1, 9, 7, 20)
        >>> class_map = inferer(volume, lambda window: torch.cat([-window, window], dim=1))
        >>> class_map.shape, class_map.dtype, class_map[0, 0, 0, 0].tolist()
        (torch.Size([1, 1, 9, 7, 20]), torch.uint8, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        sw_batch_size: int = 4,
        overlap: Sequence[float] | float = 0.5,
        regions: bool = False,
        progress: bool = False,
        mode: str = "gaussian",
        sw_device: torch.device | str | None = None,
        device: torch.device | str | None = None,
        heads: int = 1,
    ) -> None:
        self.roi_size = tuple(roi_size)
        self.sw_batch_size = sw_batch_size
        self.overlap = ensure_tuple_rep(overlap, len(self.roi_size))
        self.regions = regions
        self.heads = heads
        self.progress = progress
        self.mode = mode
        self.sw_device = sw_device
        self.device = device
        if min(*self.roi_size, sw_batch_size, heads) < 1:
            raise ValueError(
                f"roi_size, sw_batch_size and heads must be positive, got {self.roi_size}, {sw_batch_size}, {heads}."
            )
        if not all(0 <= share < 1 for share in self.overlap):
            raise ValueError(f"overlap must be in [0, 1), got {overlap}.")

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Predict volumes one after the other.

        Args:
            inputs: `(B, C, H, W, D)`.
            network: `(windows, C, h, w, d)` to logits `(windows, K, h, w, d)` of any floating type.
            args: further arguments of the network.
            kwargs: further arguments of the network.

        Returns:
            uint8 classes `(B, heads, H, W, D)`, or regions `(B, R, H, W, D)` of 0 and 1; a MetaTensor with the metadata
            and applied operations of `inputs` if that is one, so that `Invertd` works on it.
        """
        if inputs.dim() != len(self.roi_size) + 2:
            raise ValueError(f"roi_size {self.roi_size} needs a volume (B, C, H, W, D), got {tuple(inputs.shape)}.")
        plain = without_meta(inputs)
        maps = torch.stack([self._predict(volume, lambda x: network(x, *args, **kwargs)) for volume in plain])
        return MetaTensor(maps).copy_meta_from(inputs) if isinstance(inputs, MetaTensor) else maps

    def _predict(self, volume: Tensor, network: Callable[[Tensor], Any]) -> Tensor:
        size = tuple(volume.shape[1:])
        # as in MONAI: half of the padding before the volume, the rest after it
        missing = [max(roi - side, 0) for side, roi in zip(size, self.roi_size, strict=True)]
        before = [each // 2 for each in missing]
        if any(missing):
            both = [(first, each - first) for first, each in zip(before, missing, strict=True)]
            volume = pad(volume, [width for pair in reversed(both) for width in pair])
        padded = tuple(volume.shape[1:])
        axis = max(range(len(padded)), key=lambda each: padded[each] / self.roi_size[each])
        windows = self._windows(padded, axis)
        weights = compute_importance_map(self.roi_size, mode=self.mode, device=self.device or volume.device)
        planes = _Planes(padded, axis, weights, self.regions, self.heads)
        for window, logits in self._outputs(volume, windows, network):
            planes.add(window, logits)
        planes.reduce(padded[axis])
        assert planes.result is not None
        kept = [slice(first, first + side) for first, side in zip(before, size, strict=True)]
        return planes.result[(slice(None), *kept)]

    def _windows(self, size: tuple[int, ...], axis: int) -> list[Window]:
        interval = _get_scan_interval(size, self.roi_size, len(size), self.overlap)
        return sorted(dense_patch_slices(size, self.roi_size, interval), key=lambda window: window[axis].start)

    def _outputs(
        self, volume: Tensor, windows: list[Window], network: Callable[[Tensor], Any]
    ) -> Iterator[tuple[Window, Tensor]]:
        """Yield every window with its logits `(K, h, w, d)`, in the order of `windows`."""
        with tqdm(total=len(windows), unit="window", disable=not self.progress, **bar_options()) as bar:
            for start in range(0, len(windows), self.sw_batch_size):
                batch = windows[start : start + self.sw_batch_size]
                stacked = torch.stack([volume[(slice(None), *window)] for window in batch])
                logits = network(stacked.to(self.sw_device or volume.device))
                self._check(logits, len(batch))
                yield from zip(batch, logits, strict=True)
                bar.update(len(batch))

    def _check(self, logits: Any, count: int) -> None:
        if not isinstance(logits, Tensor):
            raise ValueError(f"the network must return one tensor of logits, got {type(logits).__name__}.")
        if (logits.shape[0], *logits.shape[2:]) != (count, *self.roi_size):
            raise ValueError(
                f"the network must return logits ({count}, K, {', '.join(map(str, self.roi_size))}), "
                f"got {tuple(logits.shape)}."
            )
        classes, rest = divmod(logits.shape[1], self.heads)
        if not self.regions and (rest or not 2 <= classes <= MAX_CLASSES):
            each = f" for each of {self.heads} heads" if self.heads > 1 else ""
            raise ValueError(
                f"a class map needs a network with 2 to {MAX_CLASSES} classes{each}, got {logits.shape[1]}."
            )


class _Planes:
    """Accumulates logits in the planes that windows still reach, and turns completed planes into classes.

    The buffer holds `roi_size[axis]` planes and keeps the order of the axes, so that rows of windows stay contiguous.
    Windows must be added in the order of their starts along `axis`.

    Args:
        size: size of the volume, voxels.
        axis: axis along which windows advance, 0 to 2.
        weights: weights of the voxels of a window, `(h, w, d)`.
        regions: see `ClassMapInferer`.
        heads: see `ClassMapInferer`.
    """

    def __init__(self, size: tuple[int, ...], axis: int, weights: Tensor, regions: bool, heads: int) -> None:
        self.size = size
        self.axis = axis
        self.weights = weights
        self.regions = regions
        self.heads = heads
        self.start = 0  # plane of the volume at which the buffer begins
        self.buffer = torch.empty(0)  # (K, H, W, D), one side cut to that of a window
        self.result: Tensor | None = None  # (heads or R, H, W, D)

    def add(self, window: Window, logits: Tensor) -> None:
        """Add the logits (K, h, w, d) of one window."""
        if self.result is None:
            self._allocate(len(logits))
        self.reduce(window[self.axis].start)
        where = [slice(None) if axis == self.axis else part for axis, part in enumerate(window)]
        logits = logits.to(self.weights.device, torch.float32)
        self.buffer[(slice(None), *where)].addcmul_(logits, self.weights)

    def reduce(self, stop: int) -> None:
        """Turn the planes before `stop`, which are complete, into classes, and make room for as many."""
        done = stop - self.start
        if not done:
            return
        assert self.result is not None
        along = self.axis + 1
        logits = self.buffer.narrow(along, 0, done)
        if not torch.isfinite(logits.sum()):
            raise ValueError(
                f"the network's output is not finite in planes {self.start} to {stop - 1} of axis {self.axis}: check "
                "the volume for NaN, and the weights; with amp, try without."
            )
        target = self.result.narrow(along, self.start, done)
        rows = 2 if along == 1 else 1  # row by row: argmax needs 8 bytes per voxel
        for row, classes in zip(logits.unbind(rows), target.unbind(rows), strict=True):
            classes.copy_(row > 0 if self.regions else row.unflatten(0, (self.heads, -1)).argmax(1))
        kept = self.buffer.shape[along] - done
        for each in self.buffer:  # class by class: a second buffer would double the memory
            each.narrow(self.axis, 0, kept).copy_(each.narrow(self.axis, done, kept).clone())
        self.buffer.narrow(along, kept, done).zero_()
        self.start = stop

    def _allocate(self, channels: int) -> None:
        size = [
            roi if axis == self.axis else side
            for axis, (side, roi) in enumerate(zip(self.size, self.weights.shape, strict=True))
        ]
        device = self.weights.device
        self.buffer = torch.zeros(channels, *size, device=device)
        self.result = torch.zeros(
            channels if self.regions else self.heads, *self.size, dtype=torch.uint8, device=device
        )
