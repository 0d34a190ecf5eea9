"""Implicit shapes: functions that give the distance in mm from points to a surface, negative inside.

Distances are exact for straight tubes of one radius and first-order near the surface for other shapes, which is what
soft edges need. Shapes are evaluated on `Points`, blocks of coordinates in the body frame: x to the patient's right, y
to anterior, z to superior.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]  # float32
FAR = np.float32(1e3)


class Points:
    """Coordinates in mm in the body frame, with the fields that many organs share.

    Args:
        x, y, z: coordinates, arrays of equal shape.
        functions: functions that compute a shared field from points, by name.
        known: fields already computed, arrays of the same shape.
    """

    def __init__(
        self,
        x: Array,
        y: Array,
        z: Array,
        functions: dict[str, Callable[[Points], NDArray]],
        known: dict[str, NDArray] | None = None,
    ) -> None:
        self.x, self.y, self.z = x, y, z
        self._functions = functions
        self._fields: dict[str, NDArray] = dict(known or {})
        self._parent: tuple[Points, tuple[slice, ...]] | None = None

    def field(self, name: str) -> NDArray:
        """Return a shared field at the points; computed once, for the whole block."""
        if self._parent is not None:
            parent, box = self._parent
            return parent.field(name)[box]
        if name not in self._fields:
            self._fields[name] = self._functions[name](self)
        return self._fields[name]

    def crop(self, box: tuple[slice, ...]) -> Points:
        """Return a view of a part of the points."""
        view = Points(self.x[box], self.y[box], self.z[box], self._functions)
        view._parent = (self, box)
        return view


Distance = Callable[[Points], Array]


@dataclass(frozen=True)
class Piece:
    """A shape with its bounding box `(2, 3)` in mm in the body frame."""

    bounds: NDArray[np.float64]
    distance: Distance


def smooth_max(first: Array, second: Array, width: float) -> Array:
    """Maximum (intersection of two shapes) with the edge rounded over `width` mm."""
    blend = np.maximum(width - np.abs(first - second), 0)
    return np.maximum(first, second) + blend * blend * (0.25 / width)


def smooth_min(first: Array, second: Array, width: float) -> Array:
    """Minimum (union of two shapes) with the groove filled over `width` mm."""
    return -smooth_max(-first, -second, width)


def box_around(center: ArrayLike, half: ArrayLike) -> NDArray[np.float64]:
    """Return the bounds `(2, 3)` of a box from its centre and half size in mm."""
    center, half = np.asarray(center, dtype=float), np.asarray(half, dtype=float)
    return np.stack([center - half, center + half])


def rotation(angles: Sequence[float]) -> NDArray[np.float64]:
    """Return the rotation matrix for angles in degrees about x, then y, then z."""
    cos, sin = np.cos(np.radians(angles)), np.sin(np.radians(angles))
    about_x = np.array([[1, 0, 0], [0, cos[0], -sin[0]], [0, sin[0], cos[0]]])
    about_y = np.array([[cos[1], 0, sin[1]], [0, 1, 0], [-sin[1], 0, cos[1]]])
    about_z = np.array([[cos[2], -sin[2], 0], [sin[2], cos[2], 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def ellipsoid(center: ArrayLike, radii: ArrayLike, angles: Sequence[float] = (0.0, 0.0, 0.0)) -> Piece:
    """Ellipsoid with radii in mm along its own axes, which are rotated by `angles` in degrees.

    Args:
        center: centre in mm.
        radii: three radii in mm.
        angles: rotation about x, then y, then z.

    Returns:
        The shape with its bounds.
    """
    center, radii = np.asarray(center, dtype=float), np.asarray(radii, dtype=float)
    turn = rotation(angles)
    rows = (turn / radii).T.tolist()  # row i: unit axis i divided by its radius
    inverse = (1 / radii).tolist()
    cx, cy, cz = center.tolist()

    def distance(points: Points) -> Array:
        x, y, z = points.x - cx, points.y - cy, points.z - cz
        value = np.full_like(x, 1e-12)
        slope = np.full_like(x, 1e-12)
        for (rx, ry, rz), inv in zip(rows, inverse, strict=True):
            along = x * rx
            along += y * ry
            along += z * rz
            along *= along
            value += along
            slope += along * (inv * inv)
        np.sqrt(value, out=value)
        return value * (value - 1) / np.sqrt(slope)

    half = np.sqrt(((turn * radii) ** 2).sum(1))
    return Piece(box_around(center, half), distance)


def capsule(
    start: Sequence[float] | NDArray, end: Sequence[float] | NDArray, start_radius: float, end_radius: float
) -> Piece:
    """Straight tube with round ends whose radius changes linearly between the ends, all in mm."""
    # plain numbers: a body has thousands of these, and arrays of three are slow
    sx, sy, sz = map(float, start)
    ex, ey, ez = map(float, end)
    vx, vy, vz = ex - sx, ey - sy, ez - sz
    square = max(vx * vx + vy * vy + vz * vz, 1e-9)
    ux, uy, uz = vx / square, vy / square, vz / square
    growth = float(end_radius - start_radius)

    def distance(points: Points) -> Array:
        x, y, z = points.x - sx, points.y - sy, points.z - sz
        along = np.clip(x * ux + y * uy + z * uz, 0, 1)
        x -= along * vx
        y -= along * vy
        z -= along * vz
        return np.sqrt(x * x + y * y + z * z) - (start_radius + growth * along)

    widest = max(start_radius, end_radius)
    corners = ((sx, ex), (sy, ey), (sz, ez))
    bounds = np.array([[min(pair) - widest for pair in corners], [max(pair) + widest for pair in corners]])
    return Piece(bounds, distance)


def curve(points: ArrayLike, step: float = 12.0) -> NDArray[np.float64]:
    """Smooth curve through points (Catmull-Rom), sampled about every `step` mm.

    Args:
        points: `(N, M)`; the first three columns are a position in mm, further columns (a radius) are interpolated too.
        step: distance in mm between the points returned.

    Returns:
        Points on the curve, `(K, M)`; the first and last are those given.
    """
    knots = np.asarray(points, dtype=float)
    padded = np.concatenate([2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]])
    pieces = []
    for p0, p1, p2, p3 in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        count = max(int(np.ceil(np.linalg.norm((p2 - p1)[:3]) / step)), 1)
        t = (np.arange(count) / count)[:, None]
        pieces.append(
            0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3)
        )
    return np.concatenate([*pieces, knots[-1:]])


def tube(points: ArrayLike, step: float = 12.0) -> tuple[Piece, ...]:
    """Curved tube through points `(N, 4)`: position and radius in mm."""
    path = curve(points, step)
    return tuple(capsule(a[:3], b[:3], a[3], b[3]) for a, b in zip(path, path[1:], strict=False))


def union_distance(pieces: Sequence[Piece], points: Points) -> Array:
    """Distance to the union of pieces, evaluated at all points."""
    distance = pieces[0].distance(points)
    for piece in pieces[1:]:
        np.minimum(distance, piece.distance(points), out=distance)
    return distance


def moved(rng: np.random.Generator, point: Sequence[float], sigma: float) -> NDArray[np.float64]:
    """Return a point displaced by a normal random vector of `sigma` mm per axis, at most two sigma."""
    return np.asarray(point, dtype=float) + sigma * np.clip(rng.standard_normal(3), -2, 2)


def path(rng: np.random.Generator, points: Sequence[Sequence[float]], sigma: float) -> NDArray[np.float64]:
    """Return a tube's points `(N, 4)` with positions shifted jointly and individually, and radii scaled jointly."""
    out = np.array(points, dtype=float)
    out[:, :3] += sigma * np.clip(rng.standard_normal(3), -2, 2)
    out[:, :3] += 0.5 * sigma * np.clip(rng.standard_normal((len(out), 3)), -2, 2)
    out[:, 3] *= rng.uniform(0.9, 1.12)
    return out


def mirrored(points: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Return points given for the patient's right side (`side` 1) on the requested side (-1 for left)."""
    out = np.array(points, dtype=float)
    out[..., 0] *= side
    return out


def confined(piece: Piece, wall: float, diaphragm: float) -> Piece:
    """Keep a piece inside the abdominal cavity, `wall` mm from the wall and `diaphragm` mm below the diaphragm."""

    def distance(points: Points) -> Array:
        inside = smooth_max(piece.distance(points), points.field("cavity") + wall, 6.0)
        return smooth_max(inside, points.field("dome") + diaphragm, 6.0)

    return Piece(piece.bounds, distance)


def inside(pieces: Sequence[Piece], inset: float) -> tuple[Piece, ...]:
    """Shrink every piece by `inset` mm (grow it if negative)."""

    def shrunk(piece: Piece) -> Callable[[Points], Array]:
        return lambda points: piece.distance(points) + inset

    grow = np.array([[min(inset, 0.0)], [-min(inset, 0.0)]])
    return tuple(Piece(piece.bounds + grow, shrunk(piece)) for piece in pieces)
