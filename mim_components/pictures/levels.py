"""What one level shows: an input, its mask and its reconstruction, with the numbers written above the pictures."""

import math
from dataclasses import dataclass

import numpy as np

from mim_components.pictures.planes import nearest_to_centre
from mim_components.transforms.intensity import AIR_HU, HU_RANGE


@dataclass(eq=False)
class LevelPicture:
    """One volume of one level, as the network saw it, in RAS.

    Args:
        level: 1 is the outermost.
        image: input `(H, W, D)`, HU.
        reconstruction: prediction at masked tokens and the input elsewhere, `(H, W, D)`, HU.
        masked: bool `(h, w, d)` on the token grid, True where the network did not see the input; divides `(H, W, D)`.
        spacing: mm per voxel of these arrays, that is, after the resize.
        start: index of the volume's first voxel in the prepared scan, native voxels.
        native_size: native voxels that the volume covers.
        scan_size: voxels of the prepared scan; slices beyond it are padding. None = not known.

    Raises:
        ValueError: shapes that do not fit together, no masked token, spacing or size not positive.
    """

    level: int
    image: np.ndarray
    reconstruction: np.ndarray
    masked: np.ndarray
    spacing: tuple[float, float, float]
    start: tuple[int, int, int]
    native_size: tuple[int, int, int]
    scan_size: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        """Check that everything fits together."""
        name = f"level {self.level}"
        self.image = checked_volume(self.image, f"image of {name}")
        self.reconstruction = checked_volume(self.reconstruction, f"reconstruction of {name}")
        if self.reconstruction.shape != self.image.shape:
            raise ValueError(
                f"image and reconstruction of {name} must have one shape, got image {self.image.shape} and "
                f"reconstruction {self.reconstruction.shape}."
            )
        self.masked = checked_mask(self.masked, self.image.shape, name)
        if not self.masked.any():
            raise ValueError(f"masked of {name} must hide at least one token, got none of {self.masked.size}.")
        check_triple(self.spacing, f"spacing of {name} in mm", positive=True)
        check_triple(self.start, f"start of {name} in voxels", positive=False)
        check_triple(self.native_size, f"native_size of {name} in voxels", positive=True)

    @property
    def token_size(self) -> np.ndarray:
        """Edges of a token in voxels of the arrays, `(3,)`."""
        return np.array(self.image.shape) // np.array(self.masked.shape)

    @property
    def size_mm(self) -> np.ndarray:
        """Edges of the volume in mm, `(3,)`."""
        return np.array(self.image.shape) * np.array(self.spacing)

    def masked_voxels(self) -> np.ndarray:
        """The mask on the voxel grid, bool `(H, W, D)`."""
        return np.kron(self.masked, np.ones(self.token_size, dtype=bool))

    def masked_rmse(self) -> float:
        """Root mean squared error over masked voxels, HU; NaN or infinite when the reconstruction is."""
        error = (self.reconstruction - self.image)[self.masked_voxels()].astype(np.float64)
        return math.sqrt(np.square(error).mean())

    def masked_psnr(self) -> float:
        """Peak signal-to-noise ratio over masked voxels, dB; the peak is the width of `HU_RANGE`, 2000 HU."""
        rmse = self.masked_rmse()
        if not math.isfinite(rmse):
            return math.nan
        return math.inf if rmse == 0 else 20 * math.log10((HU_RANGE[1] - HU_RANGE[0]) / rmse)

    def central_masked_token(self) -> tuple[int, int, int]:
        """Masked token nearest to the centre of the volume in mm, of those that hold tissue if any does.

        Air and padding look the same however good the network is, so a token with a mean under `AIR_HU` comes last.
        """
        tokens = np.argwhere(self.masked)
        edge = self.token_size
        grid = self.masked.shape
        blocks = self.image.reshape(grid[0], edge[0], grid[1], edge[1], grid[2], edge[2])
        tissue = blocks.mean(axis=(1, 3, 5))[self.masked] > AIR_HU
        centres = (tokens + 0.5) * edge * np.array(self.spacing)
        x, y, z = tokens[nearest_to_centre(centres, self.size_mm / 2, tissue)].tolist()
        return x, y, z


def checked_volume(volume: np.ndarray, name: str) -> np.ndarray:
    """The volume as float32 `(H, W, D)`; ValueError when it is empty or has another number of axes."""
    volume = np.asarray(volume, dtype=np.float32)
    if volume.ndim != 3 or 0 in volume.shape:
        raise ValueError(f"{name} must be (H, W, D) and not empty, got shape {volume.shape}.")
    return volume


def checked_mask(masked: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
    """The mask as bool `(h, w, d)`; ValueError when its grid does not divide `shape`."""
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
