"""One synthetic CT: from a seed and a grid to HU and labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mim_tools.synthetic.anatomy import build_anatomy
from mim_tools.synthetic.findings import FINDINGS
from mim_tools.synthetic.grid import Pose, RandomField, stream
from mim_tools.synthetic.painter import Block, Box, Painter, Part
from mim_tools.synthetic.scanner import Scanner
from mim_tools.synthetic.shapes import Points
from mim_tools.synthetic.tissue import PHASES, TO_COARSE, gravity_table, texture_table, tissue_values

SYNTHETIC_VERSION = 1
DESCRIPTION = "synthetic CT, not a patient"
_BLOCK_VOXELS = 4_000_000  # voxels in memory as floats at one time
_REACH = np.array([[-150.0, -105, -300], [150, 105, 320]])  # what a field of view should lie in, in mm


@dataclass(frozen=True)
class SyntheticCT:
    """A synthetic CT, not a patient.

    Attributes:
        image: HU, int16 `(H, W, D)`; the axes point to the patient's right, front and head.
        label: numbers of `SYNTHETIC_LABELS`, or of `FINE_LABELS` if requested, uint8 `(H, W, D)`.
        affine: `(4, 4)` from voxel indices to RAS coordinates in mm.
        spacing: voxel size in mm.
        seed: the person.
        phase: contrast phase, one of none, arterial, portal, delayed.
        description: says that it is synthetic.
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]
    spacing: tuple[float, float, float]
    seed: int
    phase: str
    description: str = DESCRIPTION


def synthetic_ct(
    seed: int,
    spatial_size: Sequence[int] = (128, 128, 96),
    spacing: Sequence[float] = (3.0, 3.0, 4.0),
    center: Sequence[float] | None = None,
    phase: str | None = None,
    findings: Sequence[str] | None = None,
    fine_labels: bool = False,
) -> SyntheticCT:
    """Generate a CT of the trunk of no real patient, with labels.

    The anatomy is a set of smooth shapes in mm; labels are read at the voxel centres, so that one seed is one person on
    every grid. The same arguments give the same arrays, bit by bit.

    Args:
        seed: the person and the scan, 0 or more.
        spatial_size: (H, W, D) in voxels.
        spacing: voxel size in mm.
        center: middle of the field of view in RAS mm, where (0, 0, 0) is about the middle of the upper abdomen; None
            draws one by seed, such that the field of view lies in the trunk if it fits.
        phase: contrast phase, one of none, arterial, portal, delayed; None draws one by seed.
        findings: names of `FINDINGS`, each of which the person has at least once; none of them for a healthy person;
            None draws small lesions by seed.
        fine_labels: number the voxels by `FINE_LABELS`, which tell parts of organs apart.

    Returns:
        Image, label and their metadata.

    Raises:
        ValueError: `seed`, `spatial_size`, `spacing`, `center`, `phase` or `findings` is invalid.

    Example:
        >>> ct = synthetic_ct(0, spatial_size=(33, 40, 21), spacing=(8.0, 8.0, 10.0))
        >>> ct.image.shape, ct.image.dtype, ct.description
        ((33, 40, 21), dtype('int16'), 'synthetic CT, not a patient')
    """
    size, steps = check_grid(spatial_size, spacing)
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed=}.")
    if center is not None and (len(center) != 3 or not np.isfinite(center).all()):
        raise ValueError(f"center must be three finite numbers in mm, got {center=}.")
    if phase is not None and phase not in PHASES:
        raise ValueError(f"phase must be one of {PHASES} or None, got {phase=}.")
    if unknown := sorted(set(findings or ()) - set(FINDINGS)):
        raise ValueError(f"findings must be among {tuple(FINDINGS)}, got {unknown}.")
    rng = stream(seed, "study")
    drawn_phase, drawn_center = PHASES[rng.integers(len(PHASES))], _draw_center(rng, size, steps)
    middle = drawn_center if center is None else np.asarray(center, dtype=float)
    affine = np.diag([*steps, 1.0])
    affine[:3, 3] = middle - np.array(steps) * (np.array(size) - 1) / 2
    study = _Study(seed, phase or drawn_phase, size, steps, affine, None if findings is None else tuple(findings))
    image, label = study.render()
    if not fine_labels:
        label = TO_COARSE[label]
    return SyntheticCT(image, label, affine, steps, seed, phase or drawn_phase)


def check_grid(
    spatial_size: Sequence[int], spacing: Sequence[float]
) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Check size and spacing and return them as tuples.

    Args:
        spatial_size: (H, W, D) in voxels, whole numbers of 1 or more.
        spacing: voxel size in mm, finite and positive.

    Returns:
        Both as tuples of three.

    Raises:
        ValueError: one of them is invalid.
    """
    if len(spatial_size) != 3 or any(int(side) != side or side < 1 for side in spatial_size):
        raise ValueError(f"spatial_size must be three whole numbers of 1 or more, got {spatial_size=}.")
    if len(spacing) != 3 or any(not math.isfinite(step) or step <= 0 for step in spacing):
        raise ValueError(f"spacing must be three positive numbers in mm, got {spacing=}.")
    height, width, depth = (int(side) for side in spatial_size)
    return (height, width, depth), (float(spacing[0]), float(spacing[1]), float(spacing[2]))


def _draw_center(rng: np.random.Generator, size: Sequence[int], spacing: Sequence[float]) -> NDArray[np.float64]:
    """Draw the middle of the field of view: anywhere within the trunk, or near its middle if it does not fit."""
    half = np.array(size) * np.array(spacing) / 2
    room = np.maximum(np.ptp(_REACH, axis=0) / 2 - half, np.array([4.0, 4.0, 4.0]))
    return _REACH.mean(0) + rng.uniform(-1, 1, 3) * room


class _Study:
    """Everything needed to render the volume block by block along its first axis."""

    def __init__(
        self,
        seed: int,
        phase: str,
        size: tuple[int, int, int],
        spacing: tuple[float, float, float],
        affine: NDArray,
        findings: tuple[str, ...] | None,
    ) -> None:
        self.size = size
        self.spacing = np.array(spacing)
        self.origin = affine[:3, 3]
        self.axes = [self.origin[axis] + self.spacing[axis] * np.arange(size[axis]) for axis in range(3)]
        self.pose = Pose(seed)
        self.trunk, self.parts = build_anatomy(seed, findings)
        edge = float(np.prod(self.spacing) ** (1 / 3))
        self.painter = Painter(self.parts, tissue_values(seed, phase), max(edge, 0.5))
        self.scanner = Scanner(seed, spacing, self._table_height())
        self.bumps = RandomField(stream(seed, "bumps"), pitch=11.0, count=48)
        self.texture = RandomField(stream(seed, "texture field"), pitch=5.0, count=48)
        self.texture_table, self.gravity_table = texture_table(seed), gravity_table(seed)
        self.boxes = _voxel_boxes(self.parts, self.pose, self.origin, self.spacing, edge, size)

    def _table_height(self) -> float:
        back = float(self.trunk.skin_table[2].min())
        return float(self.pose.shift[1] + self.pose.scale[1] * back - 4)

    def render(self) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
        """Return HU int16 and numbers of `FINE_LABELS` uint8, both `(H, W, D)`."""
        image = np.empty(self.size, dtype=np.int16)
        label = np.empty(self.size, dtype=np.uint8)
        halo = self.scanner.passes
        planes = max(_BLOCK_VOXELS // (self.size[1] * self.size[2]), 2 * halo, 1)
        for start in range(0, self.size[0], planes):
            stop = min(start + planes, self.size[0])
            low, high = max(start - halo, 0), min(stop + halo, self.size[0])
            block = self._block(low, high)
            keep = slice(start - low, stop - low)
            image[start:stop] = self.scanner.digitise(block.image[keep], self.axes[0][start:stop], self.axes[1])
            label[start:stop] = block.label[keep]
        return image, label

    def _block(self, low: int, high: int) -> Block:
        x, (y, z) = self.axes[0][low:high], self.axes[1:]
        weights = [self.bumps.weights(axis) for axis in (x, y, z)]
        known = {"noise": self.bumps.on_grid(weights)}
        # gas rises in the scanner's frame, however the person is turned
        upright = ((y - self.pose.shift[1]) / self.pose.scale[1]).astype(np.float32)
        known["height"] = np.broadcast_to(upright[None, :, None], known["noise"].shape)
        points = Points(*self.pose.to_body(x, y, z), self.trunk.functions(), known)
        shape = points.x.shape
        block = Block(points, np.full(shape, self.scanner.air, dtype=np.float32), np.zeros(shape, dtype=np.uint8))
        self.scanner.paint_table(block.image, x, y)
        for index, boxes in enumerate(self.boxes):
            if boxes:
                self.painter.paint(block, index, [_shifted(box, low, high) for box in boxes])
        weights = [self.texture.weights(axis) for axis in (x, y, z)]
        grain = self.texture.on_grid(weights)
        grain *= self.texture_table[block.label]
        block.image += grain
        block.image += self.gravity_table[block.label] * points.y
        self.scanner.add_noise(block.image, points.field("skin"), low)
        self.scanner.blur(block.image)
        return block


def _voxel_boxes(
    parts: Sequence[Part], pose: Pose, origin: NDArray, spacing: NDArray, edge: float, size: tuple[int, int, int]
) -> list[list[Box]]:
    """Return for every piece of every part the voxels that it can cover; nothing for a part outside the volume."""
    bounds = np.stack([piece.bounds for part in parts for piece in part.pieces])
    rough = np.concatenate([[2.0 * part.roughness] * len(part.pieces) for part in parts])
    bounds = bounds + np.array([-1.0, 1.0])[None, :, None] * rough[:, None, None]
    world = pose.world_boxes(bounds, 2.0 + edge)
    first = np.clip(np.floor((world[:, 0] - origin) / spacing), 0, size).astype(int)
    last = np.clip(np.ceil((world[:, 1] - origin) / spacing) + 1, 0, size).astype(int)
    seen = iter((last > first).all(1).tolist())
    boxes = iter(zip(first.tolist(), last.tolist(), strict=True))
    own = ([(tuple(map(slice, *next(boxes))), next(seen)) for _ in part.pieces] for part in parts)
    return [[box for box, _ in pairs] if any(shown for _, shown in pairs) else [] for pairs in own]


def _shifted(box: Box, low: int, high: int) -> Box:
    """Return a box of the volume as a box of the block of planes [low, high)."""
    return (slice(max(box[0].start - low, 0), max(min(box[0].stop, high) - low, 0)), *box[1:])
