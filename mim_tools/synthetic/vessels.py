"""Branching vessels: a tree that reaches random targets, thicker the more targets a branch feeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mim_tools.synthetic.shapes import Distance, Piece, Points, capsule
from mim_tools.synthetic.trunk import Trunk


@dataclass(frozen=True)
class Branch:
    """A straight stretch of a vessel: ends and radii in mm."""

    start: NDArray[np.float64]
    end: NDArray[np.float64]
    start_radius: float
    end_radius: float

    def piece(self, wall: float = 0.0) -> Piece:
        """Return the stretch as a shape, `wall` mm thicker."""
        return capsule(self.start, self.end, self.start_radius + wall, self.end_radius + wall)


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
