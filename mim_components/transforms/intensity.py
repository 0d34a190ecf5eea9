"""Conversions between Hounsfield units, the [0, 1] range that the network sees, and grey values."""

import numpy as np

HU_RANGE = (-1000.0, 1000.0)  # default window
AIR_HU = -950.0  # above the noise in air and padding, below lung
SOFT_TISSUE = (-160.0, 240.0)


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


def window_text(window: tuple[float, float]) -> str:
    """The window as radiologists write it, width and level.

    Example:
        >>> window_text((-160, 240))
        'W 400 L 40 HU'
    """
    low, high = _checked(window, "window")
    return f"W {high - low:g} L {(low + high) / 2:g} HU"


def _checked(hu_range: tuple[float, float], name: str) -> tuple[float, float]:
    low, high = hu_range
    if not low < high:
        raise ValueError(f"{name} must go from low to high HU, got ({low}, {high}).")
    return low, high
