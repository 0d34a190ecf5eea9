"""Slice folders of a few pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIZE = (24, 20)  # rows, columns


@pytest.fixture
def write_scan(tmp_path: Path) -> Callable[..., Path]:
    """Write a scan of noise below `tmp_path`, `0000.png` and so on; returns its folder."""

    def write(
        folder: str,
        count: int = 4,
        suffix: str = ".png",
        size: tuple[int, int] = SIZE,
        level: int = 0,
        seed: int = 0,
    ) -> Path:
        path = tmp_path / folder
        path.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([seed, count, *folder.encode()])
        for number in range(count):
            pixels = np.clip(rng.integers(0, 60, size) + level, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(path / f"{number:04d}{suffix}")
        return path

    return write
