"""Effects of the scanner: table, blur, noise, rounding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mim_tools.synthetic.grid import stream
from mim_tools.synthetic.shapes import Array

LOWEST_HU, HIGHEST_HU = -1024, 3071


class Scanner:
    """One scanner and its settings.

    Args:
        seed: determines sharpness, noise, table, the value of air and whether the corners outside the circle of
            reconstruction are filled.
        spacing: voxel size in mm.
        table_height: y in mm (scanner coordinates) on which the patient lies.
    """

    def __init__(self, seed: int, spacing: tuple[float, float, float], table_height: float) -> None:
        rng = stream(seed, "scanner")
        self.seed = seed
        self.noise = float(np.exp(rng.uniform(np.log(7), np.log(24))))
        self.noise *= float(np.clip((np.prod(spacing) / 2.0) ** -0.15, 0.6, 1.4))
        sharpness = rng.uniform(0.5, 0.9)
        # an image is never sharper than its voxels: at least 0.45 voxels of blur
        self.sigmas = [float(np.clip(max(sharpness / step, 0.45), 0, 1.4)) for step in spacing]
        self.passes = int(np.ceil(max(sigma**2 for sigma in self.sigmas) / 0.5))
        self.table_height = table_height
        self.table_radius = float(rng.choice([420.0, 700.0, 5000.0]))
        self.air = float(rng.choice([-1000.0, -1000.0, -1024.0]))
        self.circle = 250.0 if rng.random() < 0.3 else None

    def paint_table(self, image: Array, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
        """Paint the table into `image` `(X, Y, Z)`; `x` and `y` are the scanner coordinates of its voxels in mm."""
        rise = np.minimum(x * x / (2 * self.table_radius), 60)
        depth = (self.table_height + rise)[:, None] - y[None, :]  # mm below the upper surface
        beyond = np.abs(x)[:, None] - 215
        inside = np.maximum(np.maximum(-depth, depth - 38), beyond)
        shell = np.abs(inside + 2) - 1.6
        for distance, value in ((inside, -945.0), (shell, -180.0)):
            cover = np.clip(0.5 - distance / 1.5, 0, 1).astype(np.float32)[:, :, None]
            image += cover * (value - image)

    def add_noise(self, image: Array, depth: Array, first_plane: int) -> None:
        """Add noise that grows towards the middle of the body; one random stream per plane.

        Args:
            image: `(X, Y, Z)` in HU; changed in place.
            depth: distance in mm to the skin, negative inside, same shape.
            first_plane: index in the volume of the first plane along X.
        """
        gain = self.noise / float(np.prod([self._blurred_share(sigma) for sigma in self.sigmas]))
        level = (gain * (0.45 + np.clip(depth * (-1 / 110), -0.05, 0.75))).astype(np.float32)
        for plane in range(len(image)):
            rng = np.random.default_rng(np.random.SeedSequence([self.seed, 7919, first_plane + plane]))
            image[plane] += level[plane] * rng.standard_normal(image.shape[1:], dtype=np.float32)

    def _blurred_share(self, sigma: float) -> float:
        kernel = np.ones(1)
        side = self._side(sigma)
        for _ in range(self.passes):
            kernel = np.convolve(kernel, [side, 1 - 2 * side, side])
        return float(np.sqrt((kernel**2).sum()))

    def _side(self, sigma: float) -> float:
        return sigma**2 / self.passes / 2

    def blur(self, image: Array) -> None:
        """Blur along all axes, in place; the outermost `passes` planes are valid only at the border of the volume."""
        for _ in range(self.passes):
            for axis, sigma in enumerate(self.sigmas):
                blur_axis(np.moveaxis(image, axis, 0), np.float32(self._side(sigma)))

    def digitise(self, image: Array, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.int16]:
        """Round to int16 HU within the scanner's range; fill the area outside the circle of reconstruction."""
        out = np.clip(np.rint(image), LOWEST_HU, HIGHEST_HU).astype(np.int16)
        if self.circle is not None:
            out[(x * x)[:, None] + (y * y)[None, :] > self.circle**2] = LOWEST_HU
        return out


def blur_axis(image: Array, side: np.float32) -> None:
    """Three taps along the first axis, in place; the border repeats."""
    if len(image) < 2:
        return
    steps = np.diff(image, axis=0)
    steps *= side
    image[:-1] += steps
    image[1:] -= steps
