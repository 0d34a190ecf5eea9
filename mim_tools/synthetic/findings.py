"""Findings: tumours and infections that a person can be given, and small lesions drawn by seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from mim_tools.synthetic.abdomen import colon_line
from mim_tools.synthetic.chest import LUNGS, Heart, lung
from mim_tools.synthetic.grid import stream
from mim_tools.synthetic.organs import kidney, liver, pancreas_axis, points_inside
from mim_tools.synthetic.painter import Part
from mim_tools.synthetic.shapes import Array, Piece, Points, confined, ellipsoid
from mim_tools.synthetic.trunk import Trunk

_MOST_LESIONS = 4  # per kind


def draw_findings(seed: int, trunk: Trunk, names: Sequence[str]) -> list[Part]:
    """Draw the findings of these names, each at least once and from its own random stream."""
    return [part for name in names for part in FINDINGS[name](stream(seed, name), seed, trunk)]


def _mass(rng: np.random.Generator, center: np.ndarray, radius: float) -> Piece:
    return ellipsoid(center, radius * rng.uniform(0.85, 1.2, 3), rng.uniform(-45, 45, 3).tolist())


def _place(rng: np.random.Generator, trunk: Trunk, organ: Piece, depth: float) -> np.ndarray:
    """Return a point `(3,)` at least `depth` mm inside an organ, or as deep as possible."""
    while True:
        found = points_inside(rng, trunk, organ.distance, organ.bounds, 1, depth)
        if len(found):
            return found[0]
        depth *= 0.7


def _lung_tumour(rng: np.random.Generator, seed: int, trunk: Trunk) -> list[Part]:
    """One tumour of 14 to 26 mm radius in one lung."""
    organ = lung(int(rng.choice([1, -1])), Heart(seed))
    radius = rng.uniform(14, 26)
    shape = _mass(rng, _place(rng, trunk, organ, 0.8 * radius), radius)
    within = (*LUNGS, "lung_vessels", "airways")
    return [Part("lung_tumour", (shape,), ((0.0, "lung_lesion"),), within, roughness=3.0)]


def _liver_tumours(rng: np.random.Generator, seed: int, trunk: Trunk) -> list[Part]:
    """One to four tumours, darker than the liver; the first has a radius of 16 to 30 mm."""
    outline, right_kidney = liver(seed), kidney(seed, 1)[0]

    def off_the_kidney(points: Points) -> Array:
        return np.maximum(outline.distance(points), 12 - right_kidney.distance(points))

    organ = Piece(outline.bounds, off_the_kidney)
    parts = []
    for number in range(rng.integers(1, 5)):
        radius = rng.uniform(16, 30) if number == 0 else rng.uniform(6, 18)
        shape = _mass(rng, _place(rng, trunk, organ, 0.7 * radius), radius)
        parts.append(Part("liver_tumour", (shape,), ((0.0, "liver_tumour"),), ("liver",), roughness=2.5))
    return parts


def _pancreas_tumour(rng: np.random.Generator, seed: int, trunk: Trunk) -> list[Part]:
    """One tumour of 11 to 18 mm radius in head, body or tail, darker than the pancreas."""
    center = pancreas_axis(seed)[rng.integers(1, 5), :3]
    shape = _mass(rng, center, rng.uniform(11, 18))
    within = ("pancreas", "body", "bowel")
    return [Part("pancreas_tumour", (shape,), ((0.0, "pancreas_tumour"),), within, roughness=2.0)]


def _colon_tumour(rng: np.random.Generator, seed: int, trunk: Trunk) -> list[Part]:
    """One mass of 18 to 28 mm radius that grows from the wall of the colon into its lumen."""
    line = colon_line(stream(seed, "colon"))
    x, y, z = np.ascontiguousarray(line[:, :3].T, dtype=np.float32)
    room = -Points(x, y, z, trunk.functions()).field("cavity")  # to the wall of the abdomen
    candidates = np.flatnonzero((room > np.minimum(16, np.sort(room)[-12])) & (z > -235))
    center = line[rng.choice(candidates)]
    shift = rng.standard_normal(3)
    place = center[:3] + 0.5 * center[3] * shift / np.linalg.norm(shift)
    shape = confined(_mass(rng, place, rng.uniform(18, 28)), 3, 4)
    return [Part("colon_tumour", (shape,), ((0.0, "colon_tumour"),), ("bowel", "body"), roughness=3.0)]


def _patch(label: str, shape: Piece, layers: tuple[tuple[float, str], ...]) -> list[Part]:
    """Paint an infiltrate between the vessels of the lung; its label includes the vessels."""
    return [
        Part(label, (shape,), layers, LUNGS, roughness=6.0),
        Part(label, (shape,), (), ("lung_vessels", "airways"), roughness=6.0),
    ]


def _covid(rng: np.random.Generator, seed: int, trunk: Trunk) -> list[Part]:
    """Four to nine patches of ground glass near the pleura of both lungs, some with a denser core."""
    heart = Heart(seed)
    parts = []
    for number in range(rng.integers(4, 10)):
        outline = lung(1 if number % 2 else -1, heart)

        def rim(points: Points, outline: Piece = outline) -> Array:
            """Distance to the outer 22 mm of the lower posterior part of a lung."""
            distance = outline.distance(points)
            below = np.maximum(points.z - 190, points.y - 40)
            return np.maximum(np.maximum(distance, -distance - 22), below)

        center = _place(rng, trunk, Piece(outline.bounds, rim), 4.0)
        radius = rng.uniform(16, 36)
        shape = ellipsoid(center, radius * rng.uniform(0.6, 1.2, 3), rng.uniform(-45, 45, 3).tolist())
        core = ((0.5 * radius, "consolidation"),) if rng.random() < 0.4 else ()
        parts += _patch("covid_lesion", shape, ((0.0, "ground_glass"), *core))
    return parts


def _pneumonia(rng: np.random.Generator, seed: int, trunk: Trunk) -> list[Part]:
    """One consolidation of 32 to 50 mm radius in one lung."""
    organ = lung(int(rng.choice([1, -1])), Heart(seed))
    shape = _mass(rng, _place(rng, trunk, organ, 24.0), rng.uniform(32, 50))
    return _patch("pneumonia", shape, ((0.0, "ground_glass"), (7.0, "consolidation")))


def lesions(seed: int, trunk: Trunk) -> list[Part]:
    """Draw nodules in the lungs, foci in the liver, cysts in the kidneys; a kind has none to four."""
    heart = Heart(seed)
    lungs = [("lung_lesion", lung(side, heart)) for side in (1, -1)]
    kidneys = [("right_kidney_lesion", kidney(seed, 1)[0]), ("left_kidney_lesion", kidney(seed, -1)[0])]
    kinds = (
        ("lung_lesion", lungs, ("right_lung", "left_lung", "lung_vessels", "airways"), (3.0, 14.0), 1.0),
        ("liver_lesion", [("liver_lesion", liver(seed))], ("liver",), (4.0, 20.0), 1.0),
        ("kidney_lesion", kidneys, ("right_kidney", "left_kidney", "body"), (4.0, 15.0), 0.25),
    )
    parts = []
    for kind, organs, within, radii, depth in kinds:
        rng = stream(seed, kind)
        for _ in range(rng.integers(0, _MOST_LESIONS + 1)):
            label, organ = organs[rng.integers(len(organs))]
            radius = radii[0] + (radii[1] - radii[0]) * rng.beta(1.2, 2.2)
            for shape in _lesion(rng, trunk, organ, radius, depth):
                rough = 0.0 if kind == "kidney_lesion" else min(0.25 * radius, 3.0)
                parts.append(Part(label, (shape,), ((0.0, kind),), within, roughness=rough))
    return parts


def _lesion(rng: np.random.Generator, trunk: Trunk, organ: Piece, radius: float, depth: float) -> list[Piece]:
    place = points_inside(rng, trunk, organ.distance, organ.bounds, 1, depth * radius + 1)
    stretch: NDArray[np.float64] = rng.uniform(0.8, 1.2, 3)
    angles = rng.uniform(-45, 45, 3)
    # a lesion this large may not fit the organ
    return [ellipsoid(place[0], radius * stretch, angles.tolist())] if len(place) else []


FINDINGS: dict[str, Callable[[np.random.Generator, int, Trunk], list[Part]]] = {
    "lung_tumour": _lung_tumour,
    "liver_tumour": _liver_tumours,
    "pancreas_tumour": _pancreas_tumour,
    "colon_tumour": _colon_tumour,
    "covid": _covid,
    "pneumonia": _pneumonia,
}
