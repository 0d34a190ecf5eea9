"""Conversions between the units of CT and MR, the [0, 1] range that the network sees, and grey values."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

HU_RANGE = (-1000.0, 1000.0)  # default window
# hidden voxels; distinguishable: below air and what scanners write outside their field of view (-1024)
MASKED_HU, MASKED_MR = -1500, -500
AIR_HU = -950.0  # above the noise in air and padding, below lung
SOFT_TISSUE = (-160.0, 240.0)
MODALITIES = ("ct", "mr")
# of the voxels of an MR volume, as in MONAI's ScaleIntensityRangePercentiles; they become 0 and 1
PERCENTILES = (0.5, 99.5)
MR_RANGE = (0.0, 1000.0)  # per mille of the range between the two


def check_modality(modality: str) -> None:
    """Raise ValueError unless it is one of `MODALITIES`."""
    if modality not in MODALITIES:
        raise ValueError(f"modality must be one of {', '.join(MODALITIES)}, got {modality!r}.")


@dataclass(frozen=True)
class IntensityScale:
    """The meaning of prepared voxels, and the window of them that the network sees as 0 to 1.

    CT is in HU. MR has no unit: its voxels are per mille of the range between two percentiles of the volume, and are
    clipped to it.

    Attributes:
        modality: "ct" or "mr".
        hu_window: HU of CT that become 0 and 1; None = -1000 to 1000.

    Raises:
        ValueError: unknown modality, empty window, or an HU window for MR.

    Example:
        >>> IntensityScale().window, IntensityScale("mr").window, IntensityScale("mr").percentiles
        ((-1000.0, 1000.0), (0.0, 1000.0), (0.5, 99.5))
    """

    modality: str = "ct"
    hu_window: Sequence[float] | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        check_modality(self.modality)
        if self.is_mr and self.hu_window is not None:
            raise ValueError(
                f"hu_window is {list(self.hu_window)} with modality mr: MR is not in HU, and is scaled by percentiles "
                f"{PERCENTILES[0]} and {PERCENTILES[1]} of each volume; remove --hu_window, or set --modality ct."
            )
        _checked(self.window, "hu_window")

    @property
    def is_mr(self) -> bool:
        """Whether this is MR."""
        return self.modality == "mr"

    @property
    def window(self) -> tuple[float, float]:
        """Prepared values that become 0 and 1; others are clipped."""
        if self.is_mr:
            return MR_RANGE
        low, high = self.hu_window or HU_RANGE
        return float(low), float(high)

    @property
    def hu_range(self) -> tuple[float, float] | None:
        """The window of CT; None for MR."""
        return None if self.is_mr else self.window

    @property
    def percentiles(self) -> tuple[float, float] | None:
        """Percentiles of each MR volume that become 0 and 1; None for CT."""
        return PERCENTILES if self.is_mr else None

    @property
    def unit(self) -> str:
        """Unit of prepared values."""
        return "‰" if self.is_mr else "HU"

    @property
    def key(self) -> str:
        """Unit as in the names of figures, such as `rmse_hu`."""
        return "permille" if self.is_mr else "hu"

    @property
    def low(self) -> float:
        """Prepared value that becomes 0."""
        return self.window[0]

    @property
    def high(self) -> float:
        """Prepared value that becomes 1."""
        return self.window[1]

    @property
    def width(self) -> float:
        """Width of the window."""
        return self.high - self.low

    @property
    def content_range(self) -> float:
        """Range of prepared values that a token with content exceeds, see `MultiLevelCropMask`."""
        return 100.0 if self.is_mr else 50.0

    @property
    def air(self) -> float:
        """Prepared value up to which a voxel counts as air."""
        return 100.0 if self.is_mr else air_hu(self.window)

    @property
    def marker(self) -> int:
        """Value of hidden voxels in written volumes; no visible voxel has it."""
        return MASKED_MR if self.is_mr else MASKED_HU

    @property
    def picture_window(self) -> tuple[float, float]:
        """Values that pictures show as black and white."""
        return MR_RANGE if self.is_mr else SOFT_TISSUE

    @property
    def error_range(self) -> float:
        """Error that pictures show in full colour."""
        return 300.0 if self.is_mr else 200.0

    @property
    def meaning(self) -> str:
        """Explanation of the unit; empty for HU."""
        low, high = PERCENTILES
        return f"1000 ‰ is the range between the percentiles {low} and {high} of the volume." if self.is_mr else ""


def hu_to_unit(image_hu: np.ndarray, hu_range: tuple[float, float] = HU_RANGE) -> np.ndarray:
    """Scale HU linearly so that `hu_range` becomes [0, 1]; values outside are not clipped.

    Args:
        image_hu: HU, any shape.
        hu_range: HU that become 0 and 1.

    Returns:
        float32 of the same shape.

    Raises:
        ValueError: the range is empty or reversed.

    Example:
        >>> hu_to_unit(np.array([-1000, 0, 1000])).tolist()
        [0.0, 0.5, 1.0]
    """
    low, high = _checked(hu_range, "hu_range")
    return (np.asarray(image_hu, dtype=np.float32) - np.float32(low)) / np.float32(high - low)


def unit_to_hu(image: np.ndarray, hu_range: tuple[float, float] = HU_RANGE) -> np.ndarray:
    """Inverse of `hu_to_unit`: 0 and 1 become the ends of `hu_range`; nothing is clipped.

    Args:
        image: intensities as the network sees them, any shape.
        hu_range: HU that 0 and 1 stand for.

    Returns:
        float32 HU of the same shape.

    Raises:
        ValueError: the range is empty or reversed.

    Example:
        >>> unit_to_hu(np.array([0.0, 0.25, 1.0])).tolist()
        [-1000.0, -500.0, 1000.0]
    """
    low, high = _checked(hu_range, "hu_range")
    return np.asarray(image, dtype=np.float32) * np.float32(high - low) + np.float32(low)


def air_hu(hu_window: tuple[float, float] = HU_RANGE) -> float:
    """HU up to which a voxel counts as air after clipping to a window, which may begin above air.

    Example:
        >>> air_hu(), air_hu((-160.0, 240.0))
        (-950.0, -150.0)
    """
    low, high = _checked(hu_window, "hu_window")
    return max(AIR_HU, low + (high - low) / 40)


def window_to_grey(image_hu: np.ndarray, window: tuple[float, float] = SOFT_TISSUE) -> np.ndarray:
    """Grey values as in a viewer: 0 at or below the window's lower end, 1 at or above its upper end.

    Args:
        image_hu: HU, any shape; NaN stays NaN.
        window: lower and upper end in HU.

    Returns:
        float32 in [0, 1], of the same shape.

    Raises:
        ValueError: the window is empty or reversed.

    Example:
        >>> window_to_grey(np.array([-1000, -160, 40, 240, 900])).tolist()
        [0.0, 0.0, 0.5, 1.0, 1.0]
    """
    return np.clip(hu_to_unit(image_hu, _checked(window, "window")), 0.0, 1.0)


def window_text(window: tuple[float, float], unit: str = "HU") -> str:
    """The window as radiologists write it, width and level, in a unit.

    Example:
        >>> window_text((-160, 240))
        'W 400 L 40 HU'
    """
    low, high = _checked(window, "window")
    return f"W {high - low:g} L {(low + high) / 2:g} {unit}"


def _checked(hu_range: tuple[float, float], name: str) -> tuple[float, float]:
    low, high = hu_range
    if not low < high:
        raise ValueError(f"{name} must go from low to high HU, got ({low}, {high}).")
    return low, high


CT = IntensityScale()
