"""What the painter needs to know of one part of the body, and how random numbers are dealt out to the parts."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mim_tools.synthetic.shapes import Array, Piece, Points, smooth_max


@dataclass(frozen=True)
class Part:
    """One thing to paint; later parts cover earlier ones.

    Args:
        label: name of its label.
        pieces: shapes whose union it is.
        layers: (depth in mm, tissue) from the outside in: a bone is cortical from 0 and trabecular from 2 mm on; none
            for a part that names what others painted.
        within: names of the labels that it may cover, with the finer labels that belong to them; None for all.
        roughness: height in mm of random bumps on its surface.
        contrast: radius in mm of a vessel that may be thinner than a voxel and is then fainter; 0 for other parts.
    """

    label: str
    pieces: tuple[Piece, ...]
    layers: tuple[tuple[float, str], ...]
    within: tuple[str, ...] | None = None
    roughness: float = 0.0
    contrast: float = 0.0


def stream(seed: int, name: str) -> np.random.Generator:
    """Return a random generator of its own for a named part, so that a change in one part moves no other."""
    return np.random.default_rng(np.random.SeedSequence([seed, zlib.crc32(name.encode())]))


def moved(rng: np.random.Generator, point: Sequence[float], sigma: float) -> NDArray[np.float64]:
    """Return a point displaced by a normal random vector of `sigma` mm per axis, at most two sigma."""
    return np.asarray(point, dtype=float) + sigma * np.clip(rng.standard_normal(3), -2, 2)


def path(rng: np.random.Generator, points: Sequence[Sequence[float]], sigma: float) -> NDArray[np.float64]:
    """Return a tube's points `(N, 4)` with positions shifted together and singly, and radii scaled together."""
    out = np.array(points, dtype=float)
    out[:, :3] += sigma * np.clip(rng.standard_normal(3), -2, 2)
    out[:, :3] += 0.5 * sigma * np.clip(rng.standard_normal((len(out), 3)), -2, 2)
    out[:, 3] *= rng.uniform(0.9, 1.12)
    return out


def mirrored(points: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Return points given for the patient's right side (`side` 1) on the wanted side (-1 for left)."""
    out = np.array(points, dtype=float)
    out[..., 0] *= side
    return out


def confined(piece: Piece, wall: float, diaphragm: float) -> Piece:
    """Keep a piece inside the abdominal cavity, `wall` mm off the wall and `diaphragm` mm below the diaphragm."""

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
