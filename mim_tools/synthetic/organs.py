"""Solid organs of the abdomen, and the vessel trees that grow in organs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mim_tools.synthetic.grid import stream
from mim_tools.synthetic.painter import Part
from mim_tools.synthetic.shapes import (
    Array,
    Distance,
    Piece,
    Points,
    box_around,
    capsule,
    ellipsoid,
    inside,
    mirrored,
    moved,
    path,
    rotation,
    smooth_max,
    smooth_min,
    tube,
)
from mim_tools.synthetic.trunk import Trunk

_NEIGHBOURS = ("body", "bowel", "liver", "spleen", "stomach", "muscle")
_PANCREAS = [
    (40, 14, -52, 11), (38, 20, -26, 16), (16, 30, -14, 11), (-18, 28, 2, 12), (-46, 10, 18, 12.5), (-78, -12, 32, 10),
]  # fmt: skip


def liver(seed: int) -> Piece:
    """Liver: right lobe under the right dome, left lobe tapering across the midline, oblique lower surface."""
    rng = stream(seed, "liver")
    size = rng.uniform(0.9, 1.08)
    right = ellipsoid(moved(rng, (66, 0, 42), 3), np.array((78, 90, 95)) * size, (0, 0, 10))
    left = ellipsoid(moved(rng, (-2, 44, 66), 4), np.array((86, 40, 38)) * size, (0, rng.uniform(-4, 14), -6))
    edge = rng.uniform(-62, -34)
    slope = rng.uniform(0.45, 0.62)

    def distance(points: Points) -> Array:
        out = smooth_min(right.distance(points), left.distance(points), 30.0)
        below = edge + (105 - points.x) * slope + (30 - points.y) * 0.22 - points.z
        out = smooth_max(out, below * 0.85, 16.0)
        # room for the spine, its muscles and the great vessels behind
        behind = 40 - np.sqrt((points.x + 4) ** 2 + (points.y + 18) ** 2)
        out = smooth_max(out, behind, 10.0)
        out = smooth_max(out, points.field("cavity") + 3.5, 8.0)
        return smooth_max(out, points.field("dome") + 4, 8.0)

    return Piece(np.array([[-95.0, -90, -80], [145, 100, 125]]), distance)


def spleen(seed: int) -> Piece:
    """Spleen: a crescent on the left, between the ribs behind and the stomach in front."""
    rng = stream(seed, "spleen")
    size = rng.uniform(0.85, 1.12)
    center = moved(rng, (-94, -30, 50), 3)
    outer = ellipsoid(center, np.array((52, 66, 64)) * size, (18, 0, 0))
    hollow = ellipsoid(center + np.array((46, 30, 4)), (40, 52, 80), (0, 0, 14))

    def distance(points: Points) -> Array:
        out = smooth_max(outer.distance(points), -hollow.distance(points), 10.0)
        out = smooth_max(out, points.field("cavity") + 3.5, 10.0)
        return smooth_max(out, points.field("dome") + 4, 10.0)

    return Piece(box_around(center, (66, 80, 80)), distance)


def kidney(seed: int, side: int) -> tuple[Piece, Piece, list[Piece]]:
    """Kidney on one side (1 is right): its outline, the fat of its sinus, and its medullary pyramids."""
    rng = stream(seed, "kidneys")
    size = rng.uniform(0.9, 1.1)
    own = stream(seed, f"kidney {side}")
    center = moved(own, (66, -28, -26 if side > 0 else -12), 3.0)
    angles = (-12 + own.uniform(-4, 4), 12 + own.uniform(-4, 4), 24 + own.uniform(-8, 8))
    radii = np.array((29, 25, 57)) * size * own.uniform(0.96, 1.04)
    turned = (angles[0], side * angles[1], side * angles[2])
    turn = rotation(turned)

    def at(x: float, y: float, z: float) -> NDArray[np.float64]:
        return mirrored(center, side) + turn @ (np.array([x * side, y, z]) * size)

    body = ellipsoid(at(0, 0, 0), radii, turned)
    sinus = ellipsoid(at(-21, 3, 0), np.array((18, 10, 21)) * size, turned)
    notch = ellipsoid(at(-32, 4, 0), np.array((16, 12, 18)) * size, turned)

    def distance(points: Points) -> Array:
        return smooth_max(body.distance(points), -notch.distance(points), 12.0)

    pyramids = []
    for height in np.linspace(-36, 36, 6):
        reach = 7 * np.sqrt(1 - (height / 52) ** 2)
        for y in (-10, 11):
            center_of_pyramid = at(reach - abs(height) * 0.08, y * reach / 7, height)
            pyramids.append(ellipsoid(center_of_pyramid, np.array((7, 6, 5.2)) * size))
    return Piece(body.bounds, distance), sinus, pyramids


def kidneys(seed: int) -> list[Part]:
    """Both kidneys in their fat; they share size and tissue, so that only position distinguishes left from right."""
    parts = []
    for side, name in ((1, "right_kidney"), (-1, "left_kidney")):
        outline, sinus, pyramids = kidney(seed, side)
        pelvis = ellipsoid(sinus.bounds.mean(0), (8, 6, 11))
        parts += [
            Part("body", inside((outline,), -6.0), ((0.0, "fat"),), _NEIGHBOURS),
            Part(name, (outline,), ((0.0, "kidney_cortex"),), roughness=1.2),
            Part(name, tuple(pyramids), ((0.0, "kidney_medulla"),), (name,)),
            Part("body", (sinus,), ((0.0, "fat"),), (name, "body"), roughness=2.0),
            Part("body", (pelvis,), ((0.0, "urine"),), ("body",), roughness=2.5),
        ]
    return parts


def adrenals(seed: int) -> list[Part]:
    """Adrenal glands: three limbs that meet above and in front of the upper pole of each kidney."""
    parts = []
    for side, name, center in ((1, "right_adrenal", (33, -20, 36)), (-1, "left_adrenal", (34, -14, 34))):
        own = stream(seed, name)
        top = moved(own, center, 2.0)
        ends = top + np.array([(0, 12, 2), (6, -14, -20), (-6, -13, -18)])
        limbs = tuple(capsule(mirrored(top, side), mirrored(end, side), 4.2, 3.6) for end in ends)
        parts.append(Part(name, limbs, ((0.0, "adrenal"),), ("body", "liver")))
    return parts


def pancreas_axis(seed: int) -> NDArray[np.float64]:
    """Points `(N, 4)` from head to tail of the pancreas: position and radius in mm."""
    return path(stream(seed, "pancreas"), _PANCREAS, 2.5)


def pancreas(seed: int) -> Part:
    """Pancreas: head in the loop of the duodenum, body over the spine, tail towards the spleen; lobulated."""
    axis = pancreas_axis(seed)
    return Part("pancreas", tube(axis, 10.0), ((0.0, "pancreas"),), ("body", "bowel", "stomach"), roughness=3.5)


def gallbladder(seed: int) -> Part:
    """Gallbladder: a pear under the right lobe of the liver."""
    rng = stream(seed, "gallbladder")
    axis = path(rng, [(54, 34, -2, 5), (60, 46, -16, 10), (66, 54, -34, 13)], 3.0)
    axis[:, 3] *= rng.uniform(0.8, 1.25)
    layers = ((0.0, "gut_wall"), (1.8, "bile"))
    return Part("gallbladder", tube(axis, 8.0), layers, ("body", "liver", "bowel", "stomach"))


@dataclass(frozen=True)
class Branch:
    """A straight segment of a vessel: ends and radii in mm."""

    start: NDArray[np.float64]
    end: NDArray[np.float64]
    start_radius: float
    end_radius: float

    def piece(self) -> Piece:
        """Return the segment as a shape."""
        return capsule(self.start, self.end, self.start_radius, self.end_radius)


def points_inside(
    rng: np.random.Generator, trunk: Trunk, distance: Distance, bounds: NDArray[np.float64], count: int, depth: float
) -> NDArray[np.float64]:
    """Draw up to `count` points `(N, 3)` that lie at least `depth` mm inside a shape, all in mm."""
    found = np.zeros((0, 3))
    for _ in range(12):
        drawn = rng.uniform(bounds[0], bounds[1], (max(4 * count, 64), 3))
        x, y, z = np.ascontiguousarray(drawn.T, dtype=np.float32)
        found = np.concatenate([found, drawn[distance(Points(x, y, z, trunk.functions())) < -depth]])
        if len(found) >= count:
            break
    return found[:count]


def grow_tree(
    rng: np.random.Generator, roots: NDArray[np.float64], targets: NDArray[np.float64], tip: float, limit: float
) -> list[Branch]:
    """Connect targets to a trunk of given root points, nearest first, each to the closest node so far.

    Args:
        rng: source of the bends.
        roots: `(M, 3)` points in mm along the stem, from its origin on.
        targets: `(N, 3)` points in mm to reach.
        tip: radius in mm of the last branches.
        limit: largest radius in mm.

    Returns:
        Branches from the stem to the tips; a branch that feeds n tips has the radius tip * n ** 0.4.
    """
    nodes = np.concatenate([roots, np.zeros((2 * len(targets), 3))])
    count = len(roots)
    parents = list(range(-1, len(roots) - 1))
    order = np.argsort(np.linalg.norm(targets - roots[-1], axis=1))
    for target in targets[order]:
        offsets = np.linalg.norm(nodes[:count] - target, axis=1)
        offsets[: len(roots) - 1] += 25  # leave the stem at its end
        parent = int(np.argmin(offsets))
        middle = 0.5 * (nodes[parent] + target) + rng.standard_normal(3) * 0.08 * offsets[parent]
        nodes[count : count + 2] = middle, target
        parents += [parent, count]
        count += 2
    feeds = np.zeros(count)
    for node in range(count - 1, -1, -1):
        feeds[node] = max(feeds[node], 1)
        if parents[node] >= 0:
            feeds[parents[node]] += feeds[node]
    radius = np.minimum(tip * feeds**0.4, limit)
    return [
        Branch(nodes[parent], nodes[node], min(radius[parent], 1.25 * radius[node]), radius[node])
        for node, parent in enumerate(parents)
        if parent >= 0
    ]
