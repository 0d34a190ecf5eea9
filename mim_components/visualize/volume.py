"""A volume of a level to be shown, with its checks; base of the reconstruction and box figures.

Axes: image (H, W, D); mask (h, w, d) on its token grid.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from mim_components.transforms.intensity import CT, IntensityScale
from mim_components.visualize.sheet import Plane, slice_text, title_panel


@dataclass(eq=False, kw_only=True)
class ShownVolume:
    """A volume of a level on its resized grid, as the network saw it, and its position in the prepared scan, in RAS.

    Attributes:
        level: 1 is the outermost.
        image: `(H, W, D)`, prepared values, such as HU.
        spacing: mm per voxel of `image`, that is, after the resize.
        native_size: size that it covers, native voxels.
        start: index of its first native voxel in the prepared scan.
        scan_size: size of the prepared scan, voxels; slices beyond it are padding. None = unknown.
        scale: meaning of the values, and the window that they were clipped to.
        masked: bool `(h, w, d)` on the token grid, which divides `(H, W, D)`: True where the network did not see the
            input. None = no mask.

    Raises:
        ValueError: shapes do not match, or spacing or size is not positive.
    """

    level: int = 1
    image: np.ndarray
    spacing: tuple[float, float, float]
    native_size: tuple[int, int, int]
    start: tuple[int, int, int]
    scan_size: tuple[int, int, int] | None = None
    scale: IntensityScale = CT
    masked: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Check that shapes match and sizes are positive."""
        name = f"level {self.level}"
        self.image = checked_volume(self.image, f"image of {name}")
        if self.masked is not None:
            self.masked = checked_mask(self.masked, self.image.shape, name)
        check_triple(self.spacing, f"spacing of {name} in mm", positive=True)
        check_triple(self.start, f"start of {name} in voxels", positive=False)
        check_triple(self.native_size, f"native_size of {name} in voxels", positive=True)

    @property
    def size_mm(self) -> np.ndarray:
        """Size of the volume in mm, `(3,)`."""
        return np.array(self.image.shape) * np.array(self.spacing)

    @property
    def token_size(self) -> np.ndarray:
        """Size of a token in voxels of the image, `(3,)`; the whole image without a mask."""
        return np.array(self.image.shape) // (1 if self.masked is None else self.masked.shape)

    def cover_masked(self, axes: Axes, plane: Plane, index: int, **style: Any) -> None:
        """Cover the masked tokens of a slice with rectangles of the given style."""
        if self.masked is None:
            return
        edge = self.token_size * np.array(self.spacing)
        width, height = edge[plane.across], edge[plane.up]
        hidden = self.masked.take(index // self.token_size[plane.axis], axis=plane.axis)  # (across, up)
        for across, up in np.argwhere(hidden):
            axes.add_patch(Rectangle((across * width, up * height), width, height, **style))

    def title_panel(self, axes: Axes, plane: Plane, number: int) -> None:
        """Title a panel with the slice of the prepared scan that it shows, or as padding."""
        text = slice_text(number, self.scan_size[plane.axis] if self.scan_size else None)
        title_panel(axes, f"{plane.name}, {text}")


def checked_volume(volume: np.ndarray, name: str) -> np.ndarray:
    """The volume as float32 `(H, W, D)`; ValueError if it is empty or not 3D."""
    volume = np.asarray(volume, dtype=np.float32)
    if volume.ndim != 3 or 0 in volume.shape:
        raise ValueError(f"{name} must be (H, W, D) and not empty, got shape {volume.shape}.")
    return volume


def checked_mask(masked: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
    """The mask as bool `(h, w, d)`; ValueError if its grid does not divide `shape`."""
    masked = np.asarray(masked)
    if masked.dtype != bool:
        raise ValueError(f"masked of {name} must be bool, True is hidden, got {masked.dtype}.")
    if masked.ndim != 3 or 0 in masked.shape or any(n % grid for n, grid in zip(shape, masked.shape, strict=True)):
        raise ValueError(f"masked of {name} must be a grid (h, w, d) that divides {shape}, got {masked.shape}.")
    return masked


def check_triple(values: tuple[float, float, float], name: str, *, positive: bool) -> None:
    """Raise ValueError unless there are three finite numbers, above zero if `positive`."""
    if len(values) != 3 or not np.isfinite(values).all() or (positive and min(values) <= 0):
        raise ValueError(f"{name} must be three {'positive' if positive else 'finite'} numbers, got {values}.")
