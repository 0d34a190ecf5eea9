"""Synthetic brain MRI with a glioma: four contrasts of a skull-stripped head on a grid in mm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mim_tools.synthetic.grid import RandomField, stream
from mim_tools.synthetic.scanner import blur_axis
from mim_tools.synthetic.shapes import Array, Piece, Points, ellipsoid, moved, smooth_max, smooth_min, union_distance

BRAIN_DESCRIPTION = "synthetic brain MRI, not a patient"
CHANNELS = ("FLAIR", "T1w", "T1gd", "T2w")
BRAIN_LABELS = {0: "background", 1: "edema", 2: "non-enhancing tumor", 3: "enhancing tumour"}

# intensity of each tissue in the order of CHANNELS, in the scanner's arbitrary unit
_INTENSITY = {
    "grey matter": (520, 560, 590, 520),
    "white matter": (420, 720, 740, 370),
    "fluid": (110, 240, 250, 1000),
    "edema": (880, 520, 540, 820),
    "core": (540, 330, 350, 900),
    "rim": (640, 480, 1150, 640),
}
_TISSUES = {name: number for number, name in enumerate(_INTENSITY)}
_CORTEX = 5.0  # thickness in mm of the grey matter at the surface


@dataclass(frozen=True)
class SyntheticBrain:
    """A synthetic brain, not a patient.

    Attributes:
        image: int16 `(H, W, D, 4)` in the order of `CHANNELS`, 0 outside the brain; the axes point to the patient's
            right, front and head.
        label: numbers of `BRAIN_LABELS`, uint8 `(H, W, D)`.
        affine: `(4, 4)` from voxel indices to RAS coordinates in mm.
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]


def synthetic_brain(seed: int, spatial_size: Sequence[int], spacing: Sequence[float]) -> SyntheticBrain:
    """Make a brain with a tumour, in four contrasts.

    FLAIR shows the edema bright, T1gd the rim of the tumour, T1w the core dark, T2w edema, core and fluid bright. The
    same arguments give the same arrays, bit by bit.

    Args:
        seed: the person, 0 or more.
        spatial_size: (H, W, D) in voxels.
        spacing: voxel size in mm.

    Returns:
        Image and label.

    Example:
        >>> brain = synthetic_brain(0, (24, 28, 22), (8.0, 8.0, 8.0))
        >>> brain.image.shape, sorted(set(brain.label.ravel().tolist()))
        ((24, 28, 22, 4), [0, 1, 2, 3])
    """
    axes: list[NDArray[np.float64]] = [
        step * np.arange((1 - side) / 2, side / 2, dtype=np.float64)
        for side, step in zip(spatial_size, spacing, strict=True)
    ]
    rng = stream(seed, "brain")
    bend, folds = RandomField(rng, 40.0, 16, channels=3), RandomField(rng, 9.0, 32)
    weights = [bend.weights(axis) for axis in axes]
    grid = [axis.astype(np.float32) for axis in np.meshgrid(*axes, indexing="ij")]
    x, y, z = (at + np.float32(2.5) * bend.on_grid(weights, row) for row, at in enumerate(grid))
    points = Points(x, y, z, {})
    noise = folds.on_grid([folds.weights(axis) for axis in axes])
    brain, tissue = _anatomy(rng, points, noise)
    label = _tumour(rng, points, noise, brain, tissue)
    affine = np.diag([*map(float, spacing), 1.0])
    affine[:3, 3] = [axis[0] for axis in axes]
    return SyntheticBrain(_scan(rng, brain < 0, tissue, axes, spacing), label, affine)


def _anatomy(rng: np.random.Generator, points: Points, noise: Array) -> tuple[Array, NDArray[np.uint8]]:
    """Return the distance to the brain's surface and the tissue of every voxel."""
    size = rng.uniform(0.93, 1.05)
    cerebrum = ellipsoid((0, 0, 12), np.array((68, 84, 58)) * size)
    cerebellum = ellipsoid(np.array((0, -46, -42)) * size, np.array((48, 32, 26)) * size)
    stem = ellipsoid(np.array((0, -18, -52)) * size, np.array((15, 15, 36)) * size)
    below = smooth_max(cerebrum.distance(points), -20 - points.z - 0.15 * points.y, 8.0)
    brain = smooth_min(below, union_distance((cerebellum, stem), points), 4.0)
    tissue = np.full(brain.shape, _TISSUES["white matter"], dtype=np.uint8)
    nuclei = [ellipsoid((side * 22, 4, 8), (9, 20, 12)) for side in (1, -1)]
    grey = (brain > -_CORTEX - 2.5 * noise) | (union_distance(nuclei, points) < 0)
    tissue[grey] = _TISSUES["grey matter"]
    sulci = (brain > -8) & (noise > 1.3)
    fissure = np.maximum(np.abs(points.x) - 1.5, 30 - points.z + np.abs(points.y) * 0.1)
    wide = rng.uniform(0.8, 1.3)
    horns = [ellipsoid((side * 12, 0, 20), np.array((6, 34, 9)) * wide, (8, 0, side * -12)) for side in (1, -1)]
    third = ellipsoid((0, -2, 2), np.array((3, 14, 10)) * wide)
    ventricles = union_distance((*horns, third), points)
    tissue[sulci | (fissure < 0) | (ventricles < 0)] = _TISSUES["fluid"]
    return brain, tissue


def _tumour(
    rng: np.random.Generator, points: Points, noise: Array, brain: Array, tissue: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Put a core within a rim within an edema into the white matter of one side; changes `tissue` in place."""
    side = rng.choice([1, -1])
    center = moved(rng, (side * 36, rng.uniform(-38, 38), rng.uniform(12, 34)), 3.0)
    core, rim, edema = rng.uniform(8, 13), rng.uniform(5, 8), rng.uniform(9, 17)
    stretch, angles = rng.uniform(0.85, 1.15, 3), rng.uniform(-40, 40, 3).tolist()

    def shell(radius: float, rough: float) -> Array:
        piece: Piece = ellipsoid(center, radius * stretch, angles)
        return piece.distance(points) + rough * noise

    inside = (brain < 0) & (tissue != _TISSUES["fluid"])
    label = np.zeros(brain.shape, dtype=np.uint8)
    for number, name, distance, room in (
        (1, "edema", shell(core + rim + edema, 3.0), inside & (brain < -3)),
        (3, "rim", shell(core + rim, 1.0), brain < 0),
        (2, "core", shell(core, 1.0), brain < 0),
    ):
        covered = (distance < 0) & room
        label[covered], tissue[covered] = number, _TISSUES[name]
    return label


def _scan(
    rng: np.random.Generator,
    head: NDArray[np.bool_],
    tissue: NDArray[np.uint8],
    axes: Sequence[NDArray[np.float64]],
    spacing: Sequence[float],
) -> NDArray[np.int16]:
    """Return the four contrasts: blurred, noisy, each with its own gain and shading, at least 1 inside the brain."""
    shading = RandomField(rng, 110.0, 8, channels=len(CHANNELS))
    weights = [shading.weights(axis) for axis in axes]
    table = np.array(list(_INTENSITY.values()), dtype=np.float32).T
    table *= rng.uniform(0.95, 1.05, table.shape).astype(np.float32)
    image = np.zeros((*head.shape, len(CHANNELS)), dtype=np.int16)
    for channel, values in enumerate(table):
        contrast = values[tissue] * (1 + np.float32(0.05) * shading.on_grid(weights, channel))
        contrast *= np.float32(rng.uniform(0.6, 1.6))
        for axis, step in enumerate(spacing):
            blur_axis(np.moveaxis(contrast, axis, 0), np.float32(min(0.5 / step, 0.6) ** 2 / 2))
        contrast += np.float32(0.025 * values.mean()) * rng.standard_normal(head.shape, dtype=np.float32)
        image[..., channel] = np.where(head, np.maximum(np.rint(contrast), 1), 0)
    return image
