"""The trunk's outline and the surfaces that many organs touch: skin, muscle wall, rib cage, cavity, diaphragm.

Cross-sections are rounded ellipses whose width, front and back follow tables over the height z, in mm; z = 0 is the
first lumbar vertebra, x = 0 the midline, y = 0 the middle between front and back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from mim_tools.synthetic.grid import stream
from mim_tools.synthetic.shapes import Array, Points, smooth_max, smooth_min

_LOWEST, _HIGHEST, _STEP = -700.0, 700.0, 0.5

# z: half width, front, back, roundness (2 is an ellipse, 0 nearly a rectangle)
_WALL = [
    (-420, 3, 2, -2, 2), (-340, 6, 4, -4, 2), (-318, 95, 55, -60, 1.4), (-295, 150, 82, -96, 1.0),
    (-240, 165, 92, -106, 0.9), (-180, 154, 92, -100, 0.8), (-120, 138, 92, -88, 0.7), (-60, 134, 95, -85, 0.8),
    (0, 138, 99, -88, 0.9), (60, 146, 102, -92, 1.0), (120, 153, 104, -98, 1.0), (180, 160, 99, -103, 0.9),
    (230, 170, 88, -105, 0.9), (268, 178, 70, -100, 1.2), (298, 160, 52, -92, 1.6), (322, 96, 45, -80, 2),
    (345, 62, 44, -66, 2), (420, 56, 46, -58, 2), (700, 56, 46, -58, 2),
]  # fmt: skip
_CAGE = [
    (-700, 122, 80, -70, 1.2), (-80, 123, 80, -72, 1.2), (0, 129, 88, -79, 1.2), (60, 134, 92, -83, 1.2),
    (120, 138, 92, -86, 1.2), (180, 131, 84, -88, 1.3), (220, 117, 73, -86, 1.5), (255, 93, 56, -80, 1.7),
    (285, 64, 32, -70, 2), (305, 43, 10, -60, 2), (320, 24, -2, -46, 2), (340, 16, -4, -36, 2), (700, 14, -6, -30, 2),
]  # fmt: skip
_BELLY = [  # inner surface of the abdominal wall and of the true pelvis
    (-700, 2, 1, -1, 2), (-330, 3, 12, 6, 2), (-300, 28, 45, -40, 1.6), (-270, 48, 66, -60, 1.4),
    (-235, 64, 76, -66, 1.2), (-200, 88, 82, -62, 1.0), (-165, 112, 83, -58, 0.9), (-120, 121, 82, -58, 0.8),
    (-60, 120, 85, -60, 0.9), (0, 122, 88, -68, 1.0), (40, 126, 87, -75, 1.1),
]  # fmt: skip
_FAT = [  # relative thickness of the fat under the skin: at the side, in front, behind
    (-700, 1, 1, 1, 0), (-330, 1.0, 0.9, 1.0, 0), (-230, 1.2, 1.0, 1.3, 0), (-120, 1.0, 1.0, 1.1, 0),
    (0, 0.8, 0.9, 0.8, 0), (100, 0.6, 0.5, 0.6, 0), (200, 0.55, 0.5, 0.5, 0), (280, 0.4, 0.35, 0.5, 0),
    (340, 0.3, 0.3, 0.35, 0), (700, 0.3, 0.3, 0.3, 0),
]  # fmt: skip
_SPINE_Y = [
    (-700, -60), (-270, -66), (-222, -62), (-182, -40), (-148, -27), (-111, -20), (-74, -18), (-37, -19), (0, -22),
    (60, -30), (120, -37), (190, -43), (240, -44), (280, -40), (303, -36), (322, -31), (400, -24), (700, -24),
]  # fmt: skip


def heights() -> NDArray[np.float64]:
    """Heights z in mm at which the tables of the trunk are sampled."""
    return np.arange(_LOWEST, _HIGHEST + _STEP / 2, _STEP)


def smooth_table(knots: Sequence[Sequence[float]], width: float = 24.0) -> NDArray[np.float32]:
    """Return a table `(columns, heights)` through knots (z, value, ...), its kinks rounded over about `width` mm."""
    values = np.array(knots, dtype=float)
    z = heights()
    count = int(width / 2 / _STEP)
    kernel = np.convolve(np.full(count, 1 / count), np.full(count, 1 / count))
    pad = len(kernel) // 2
    rows = [np.interp(z, values[:, 0], column) for column in values[:, 1:].T]
    return np.stack([np.convolve(np.pad(row, pad, mode="edge"), kernel, "valid") for row in rows]).astype(np.float32)


class Trunk:
    """Surfaces of one person's trunk, as fields over points in the body frame.

    Args:
        seed: determines the amount of fat, the girth and the height of the diaphragm.
    """

    def __init__(self, seed: int) -> None:
        rng = stream(seed, "trunk")
        girth = rng.uniform(-4, 10)
        belly = rng.uniform(-10, 26)
        fatness = rng.beta(1.6, 2.6)
        self.fat = (6 + 44 * fatness) * rng.uniform(0.75, 1.2, 3)  # at the side, in front, behind
        self.dome_height = rng.uniform(-12, 8)
        self.wall_table = smooth_table(_WALL)
        self.cage_table = smooth_table(_CAGE)
        chest = self.cage_table - np.array([[6], [6], [-6], [0]], dtype=np.float32)
        low = smooth_table(_BELLY)
        share = np.clip((heights() - 5) / 70, 0, 1).astype(np.float32)
        self.cavity_table = low * (1 - share) + chest * share
        swell = np.exp(-(((heights() + 70) / 105) ** 2)).astype(np.float32)
        for table in (self.wall_table, self.cavity_table):
            table[0] += girth * swell
            table[1] += belly * swell
        self.skin_table = self._skin_table()
        self.spine_y = smooth_table(_SPINE_Y, 30.0)[0]
        self.legs = rng.uniform(70, 80)

    def _skin_table(self) -> NDArray[np.float32]:
        table = self.wall_table.copy()
        side, front, back = smooth_table(_FAT)[:3] * self.fat[:, None].astype(np.float32) + 2.5
        present = np.clip((table[0] - 6) / 40, 0, 1)  # the tables end where the legs begin
        table[0] += side * present
        table[1] += front * present
        table[2] -= back * present
        return table

    def functions(self) -> dict[str, Callable[[Points], NDArray]]:
        """Return the shared fields by name; each maps points to an array of their shape."""
        return {
            "row": lambda points: np.clip((points.z - _LOWEST) * (1 / _STEP), 0, self.spine_y.size - 1).astype(
                np.int32
            ),
            "skin": lambda points: self._outline(points, self.skin_table, self.legs + 0.6 * float(self.fat.mean())),
            "wall": lambda points: self._outline(points, self.wall_table, self.legs),
            "cavity": lambda points: cross_section(points, self.cavity_table),
            "cage": lambda points: cross_section(points, self.cage_table),
            "dome": self._dome,
            "spine": lambda points: points.y - self.spine_y[points.field("row")],
            "height": lambda points: points.y,
            "noise": lambda points: np.zeros_like(points.x),
        }

    def _outline(self, points: Points, table: NDArray[np.float32], leg: float) -> Array:
        trunk = cross_section(points, table)
        if float(points.z.min()) > -200:
            return trunk
        x, y = np.abs(points.x) - (leg + 3), points.y + 4
        thigh = np.sqrt(x * x + y * y * 0.85) - leg
        thigh = np.maximum(thigh, points.z + 270)
        return smooth_min(trunk, thigh, 20.0)

    def _dome(self, points: Points) -> Array:
        """Distance to the diaphragm, negative below it: two domes and the central tendon under the heart."""
        top = self.dome_height
        domes = []
        for center, height in ((68, 112 + top), (-68, 100 + top)):
            u, v = (points.x - center) * (1 / 72), (points.y - 6) * (1 / 86)
            spread = u * u + v * v
            domes.append(height - 30 * spread - 50 * np.minimum(spread * spread, 4))
        u, v = (points.x + 10) * (1 / 50), (points.y - 18) * (1 / 62)
        tendon = (90 + top) - 20 * u * u - 18 * v * v
        surface = smooth_max(smooth_max(domes[0], domes[1], 25.0), tendon, 25.0)
        return (points.z - surface) * 0.8


def cross_section(points: Points, table: NDArray[np.float32]) -> Array:
    """Distance along the ray from the axis to a rounded elliptic cross-section, given by a table over z."""
    row = points.field("row")
    width, front, back, roundness = (column[row] for column in table)
    y = points.y - (front + back) * 0.5
    depth = (front - back) * 0.5
    u, v = points.x / width, y / depth
    u *= u
    v *= v
    ratio = np.sqrt(np.sqrt(u * u + v * v + roundness * (u * v)))
    np.maximum(ratio, 1e-3, out=ratio)
    radius = np.sqrt(points.x * points.x + y * y)
    return radius - radius / ratio
