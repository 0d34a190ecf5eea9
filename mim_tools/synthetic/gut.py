"""Hollow organs of the abdomen: stomach, duodenum, small bowel, colon, bladder."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mim_tools.synthetic.parts import Part, confined, moved, path, stream
from mim_tools.synthetic.shapes import Array, Piece, Points, capsule, curve, ellipsoid, tube

# courses of tubes: x, y, z and radius in mm
_STOMACH = [
    (-58, -16, 84, 31), (-62, 6, 54, 34), (-58, 34, 18, 27), (-38, 52, -14, 21), (-4, 52, -22, 17), (22, 42, -12, 14),
]  # fmt: skip
_DUODENUM = [(46, 30, -14, 13), (54, 10, -40, 12), (48, 4, -72, 12), (12, 20, -80, 11), (-26, 26, -62, 11)]
_COLON = [
    (88, 22, -165, 22), (94, 12, -125, 23), (96, 4, -85, 21), (92, 16, -55, 20), (66, 56, -66, 18),
    (30, 70, -84, 17), (-12, 72, -90, 17), (-56, 62, -66, 16), (-86, 34, -14, 15), (-100, 4, 0, 15),
    (-103, -10, -40, 13), (-104, -8, -90, 12), (-102, 0, -140, 12), (-78, 14, -182, 12), (-44, 6, -205, 13),
    (-14, -12, -196, 13), (4, -38, -212, 14), (2, -46, -245, 16), (0, -46, -280, 12),
]  # fmt: skip


def stomach(seed: int) -> list[Part]:
    """Stomach with a level of gas over fluid, and the duodenum that goes on from it."""
    rng = stream(seed, "stomach")
    axis = path(rng, _STOMACH, 3.0)
    axis[:, 3] *= rng.uniform(0.75, 1.05)
    pieces = tuple(confined(piece, 5, 6) for piece in tube(axis, 16.0))
    gas = tuple(confined(piece, 9, 10) for piece in _gas(axis, rng.uniform(-0.2, 1.2)))
    duodenum = tube([(*axis[-1, :3], 13), *_DUODENUM])
    wall = (0.0, "gut_wall")
    return [
        Part("duodenum", duodenum, (wall, (2.5, "bowel_content")), ("body",), roughness=1.5),
        Part("stomach", pieces, (wall, (3.5, "stomach_content")), ("body", "bowel", "muscle"), roughness=2.0),
        Part("stomach", gas, ((0.0, "air"),), ("stomach",)),
    ]


def _gas(axis: NDArray[np.float64], level: float) -> tuple[Piece, ...]:
    """Gas that collects at the front of a tube lying on its back, above a level given in radii from its middle."""
    height = float(axis[:, 1].mean() + level * axis[:, 3].mean())

    def bubble(shape: Piece) -> Piece:
        def distance(points: Points) -> Array:
            return np.maximum(shape.distance(points), height - points.field("height"))

        return Piece(shape.bounds, distance)

    shrunk = axis.copy()
    shrunk[:, 3] = np.maximum(shrunk[:, 3] - 4, 2)
    return tuple(bubble(shape) for shape in tube(shrunk, 16.0))


def colon_line(rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw the course of the colon: points `(N, 4)`, about 9 mm apart, position and mean radius in mm."""
    return curve(path(rng, _COLON, 3.0), 9.0)


def colon(seed: int) -> list[Part]:
    """Colon from caecum to rectum: haustra swell and narrow it, stretches of it hold gas."""
    rng = stream(seed, "colon")
    line = colon_line(rng)
    line[:, 3] *= 1 + 0.13 * np.cos(np.arange(len(line)) * 2.1) + 0.04 * rng.standard_normal(len(line))
    parts = []
    for start in range(0, len(line) - 1, 6):
        stretch = line[start : start + 7]
        tubes = [capsule(a[:3], b[:3], a[3], b[3]) for a, b in zip(stretch, stretch[1:], strict=False)]
        pieces = tuple(confined(piece, 3, 4) for piece in tubes)
        parts.append(Part("bowel", pieces, ((0.0, "gut_wall"), (2.2, "stool")), ("body",), roughness=2.5))
        level = rng.uniform(-0.4, 0.8)
        if rng.random() < 0.6:
            gas = tuple(confined(piece, 6, 6) for piece in _gas(stretch, level))
            parts.append(Part("bowel", gas, ((0.0, "air"),), ("bowel",), roughness=3.0))
    return parts


def small_bowel(seed: int) -> list[Part]:
    """Coils of small bowel: a wandering tube that stays in the middle of the belly, painted loop over loop."""
    rng = stream(seed, "small bowel")
    center, reach = np.array((-2, 32, -130)), np.array((92, 50, 88))
    position, heading = center + np.array((-40.0, 0, 40)), np.array((1.0, 0, 0))
    radius = rng.uniform(10.5, 13.5)
    parts = []
    for _ in range(95):
        line = [position]
        for _ in range(3):
            heading = heading + 0.75 * rng.standard_normal(3) - 0.55 * ((position - center) / reach) ** 3
            heading /= np.linalg.norm(heading)
            position = position + 13 * heading
            line.append(position)
        axis = np.column_stack([line, np.full(4, radius * rng.uniform(0.8, 1.1))])
        content = "air" if rng.random() < 0.07 else "bowel_content"
        pieces = tuple(confined(piece, 4, 6) for piece in tube(axis))
        parts.append(Part("bowel", pieces, ((0.0, "gut_wall"), (2.4, content)), ("body", "bowel"), roughness=2.0))
    return parts


def bladder(seed: int) -> Part:
    """Bladder, more or less full."""
    rng = stream(seed, "bladder")
    fill = rng.uniform(0.65, 1.15)
    shape = ellipsoid(moved(rng, (0, 30, -246), 3), np.array((42, 32, 34)) * fill, (-12, 0, 0))
    return Part("bladder", (shape,), ((0.0, "gut_wall"), (3.0, "bladder_urine")), ("body", "bowel"), roughness=1.5)
