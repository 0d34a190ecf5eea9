"""From voxels to the body frame: pose, smooth random deformation, random fields; one random stream per name."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mim_tools.synthetic.shapes import Array, rotation

Vector = NDArray[np.float64]


def stream(seed: int, name: str) -> np.random.Generator:
    """Return a separate random generator for a named part, so that a change in one part affects no other."""
    return np.random.default_rng(np.random.SeedSequence([seed, zlib.crc32(name.encode())]))


class RandomField:
    """Smooth random functions of position in mm: cubic B-splines on a periodic lattice.

    The values depend only on the position, so that every grid samples the same function.

    Args:
        rng: source of the lattice values.
        pitch: distance in mm between lattice points.
        count: lattice points per axis; the function repeats after count * pitch.
        channels: number of functions.
    """

    def __init__(self, rng: np.random.Generator, pitch: float, count: int, channels: int = 1) -> None:
        self.pitch, self.count = pitch, count
        # 0.479 is the root of the mean sum of squared weights of a cubic B-spline: over three axes the scale is 1
        self.values = rng.standard_normal((channels, count, count, count), dtype=np.float32) / np.float32(0.479**1.5)

    def weights(self, coordinates: Vector) -> Array:
        """Return the weights `(N, count)` of the lattice points along an axis for coordinates `(N,)` in mm."""
        lattice, taps = self._taps(coordinates)
        out = np.zeros((len(taps), self.count), dtype=np.float32)
        for shift in range(4):
            out[np.arange(len(taps)), lattice[:, shift]] += taps[:, shift]
        return out

    def _taps(self, coordinates: Vector) -> tuple[NDArray[np.intp], Vector]:
        """Return the four lattice points next to each coordinate and their weights, both `(N, 4)`."""
        place = np.asarray(coordinates, dtype=float) / self.pitch
        base = np.floor(place).astype(int)
        t = place - base
        taps = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
        return (base[:, None] + np.arange(-1, 3)) % self.count, np.stack(taps, axis=1) / 6

    def on_grid(self, weights: Sequence[Array], channel: int = 0) -> Array:
        """Return a function on the grid of weights `(X, count)`, `(Y, count)`, `(Z, count)`: `(X, Y, Z)`."""
        x, y, z = weights
        lattice = self.values[channel]
        along_z = lattice @ z.T  # (count, count, Z)
        along_x = np.tensordot(x, along_z, axes=(1, 0))  # (X, count, Z)
        return np.matmul(y, along_x)

    def at(self, places: Vector) -> Vector:
        """Return the functions at scattered positions `(N, 3)` in mm: `(N, channels)`."""
        (i, x), (j, y), (k, z) = (self._taps(places[:, axis]) for axis in range(3))
        near = self.values[:, i[:, :, None, None], j[:, None, :, None], k[:, None, None, :]]  # (channels, N, 4, 4, 4)
        weights = x[:, :, None, None] * y[:, None, :, None] * z[:, None, None, :]
        return np.einsum("cnp,np->nc", near.reshape(*near.shape[:2], -1), weights.reshape(len(weights), -1))


class Pose:
    """Position and posture of a person: maps scanner coordinates to the body frame.

    Body coordinates are ``matrix @ (world - shift) + deformation(world)``, all in mm.

    Args:
        seed: the person.
    """

    def __init__(self, seed: int) -> None:
        rng = stream(seed, "pose")
        turn = rotation((rng.uniform(-3, 3), rng.uniform(-2.5, 2.5), rng.uniform(-5, 5)))
        self.scale = rng.uniform(0.9, 1.08) * rng.uniform(0.96, 1.04, 3)
        self.matrix = (turn / self.scale).T
        self.inverse = np.linalg.inv(self.matrix)
        self.shift = rng.uniform(-8, 8, 3)
        self.amplitude = rng.uniform(2.5, 4.5)
        self.field = RandomField(rng, pitch=85.0, count=16, channels=3)

    def to_body(self, x: Vector, y: Vector, z: Vector) -> tuple[Array, Array, Array]:
        """Return body coordinates for the grid of scanner coordinates `(X,)`, `(Y,)`, `(Z,)`: three `(X, Y, Z)`."""
        weights = [self.field.weights(axis) for axis in (x, y, z)]
        out = []
        for row in range(3):
            body = self.field.on_grid(weights, row)
            body *= np.float32(self.amplitude)
            body += (self.matrix[row, 0] * (x - self.shift[0])).astype(np.float32)[:, None, None]
            body += (self.matrix[row, 1] * (y - self.shift[1])).astype(np.float32)[None, :, None]
            body += (self.matrix[row, 2] * (z - self.shift[2])).astype(np.float32)[None, None, :]
            out.append(body)
        return out[0], out[1], out[2]

    def world_boxes(self, bounds: Vector, margin: float) -> Vector:
        """Return boxes `(N, 2, 3)` in scanner coordinates that contain the boxes `(N, 2, 3)` in the body frame.

        Args:
            bounds: lower and upper corners in mm.
            margin: extra space in mm on every side.
        """
        center, half = bounds.mean(1), np.ptp(bounds, axis=1) / 2
        world = center @ self.inverse.T + self.shift
        for _ in range(4):  # the deformation is given in scanner coordinates, so its inverse is a fixed point
            world = (center - self.amplitude * self.field.at(world)) @ self.inverse.T + self.shift
        # the deformation changes by at most a fifth of the distance, and at most by its range
        bend = np.minimum(0.22 * np.linalg.norm(half, axis=1), 7 * self.amplitude)[:, None]
        room = half @ np.abs(self.inverse).T + bend + margin
        return np.stack([world - room, world + room], axis=1)
