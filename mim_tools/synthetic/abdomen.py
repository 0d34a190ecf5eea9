"""The abdomen: stomach, bowel, bladder and vessels, and the order in which its organs are painted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mim_tools.synthetic.grid import stream
from mim_tools.synthetic.organs import (
    adrenals,
    gallbladder,
    grow_tree,
    kidney,
    kidneys,
    liver,
    pancreas,
    points_inside,
    spleen,
)
from mim_tools.synthetic.painter import Part
from mim_tools.synthetic.shapes import Array, Piece, Points, capsule, confined, curve, ellipsoid, moved, path, tube
from mim_tools.synthetic.trunk import Trunk

# courses of tubes: x, y, z and radius in mm
_CAVA = [(19, 2, -116, 11), (22, 5, -60, 11), (24, 7, 0, 11.5), (27, 6, 50, 12), (27, 10, 92, 13), (27, 16, 125, 13)]
_PORTAL = [(-70, -12, 30, 4), (-20, 20, -4, 5), (16, 22, -14, 7), (24, 22, 8, 7), (38, 16, 34, 6.5)]
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
_SEEN = 1.2  # radius in mm of the thinnest vessels of the liver that have a label of their own
_MESENTERIC = [(14, 32, -60, 5.5), (4, 36, -105, 4)]


def abdomen(seed: int, trunk: Trunk) -> list[Part]:
    """All organs of the abdomen and pelvis, in painting order."""
    liver_shape = liver(seed)
    soft = ("body", "bowel", "stomach", "muscle")
    cava = path(stream(seed, "vena cava"), _CAVA, 1.5)
    portal = path(stream(seed, "portal vein"), _PORTAL, 1.5)
    return [
        *small_bowel(seed),
        *colon(seed),
        *stomach(seed),
        Part("spleen", (spleen(seed),), ((0.0, "spleen"),), soft, roughness=2.5),
        Part("liver", (liver_shape,), ((0.0, "liver"),), soft, roughness=2.0),
        pancreas(seed),
        *kidneys(seed),
        *_portal_vein(portal),
        *_liver_vessels(seed, trunk, liver_shape, portal, cava),
        *_mesentery(seed),
        *_kidney_vessels(seed),
        _vena_cava(cava),
        *adrenals(seed),
        gallbladder(seed),
        bladder(seed),
    ]


def _vena_cava(cava: np.ndarray) -> Part:
    iliacs = [
        [
            (*cava[0, :3], 8), (10 + side * 26, -2, -150, 7), (side * 52, -6, -186, 6.5), (side * 68, 14, -224, 6),
            (side * 70, 40, -262, 6), (side * 72, 40, -330, 6),
        ]
        for side in (1, -1)
    ]  # fmt: skip
    pieces = (*tube(cava), *tube(iliacs[0]), *tube(iliacs[1]))
    within = ("body", "liver", "muscle", "pancreas", "bowel")
    return Part("inferior_vena_cava", pieces, ((0.0, "vena_cava"),), within)


def _portal_vein(portal: np.ndarray) -> list[Part]:
    mesenteric = [(*portal[2, :3], 6), *_MESENTERIC]
    pieces = (*tube(portal), *tube(mesenteric))
    return [Part("portal_vein", pieces, ((0.0, "portal_vein"),), ("body", "pancreas", "liver"))]


def _liver_vessels(seed: int, trunk: Trunk, shape: Piece, portal: np.ndarray, cava: np.ndarray) -> list[Part]:
    """Branches of the portal vein and the hepatic veins; they are part of the liver and differ only in HU."""
    rng = stream(seed, "liver vessels")
    targets = points_inside(rng, trunk, shape.distance, shape.bounds, 60, 8.0)
    parts = []
    for ends, roots, tissue in (
        (targets[:32], portal[-2:, :3], "portal_vein"),
        (targets[32:], cava[-2:, :3] + np.array((6, 4, -4)), "hepatic_vein"),
    ):
        for branch in grow_tree(rng, roots, ends, 1.0, 6.0):
            name = "liver_vessel" if branch.end_radius > _SEEN else "liver"
            parts.append(Part(name, (branch.piece(),), ((0.0, tissue),), ("liver",), contrast=branch.end_radius))
    return parts


def _mesentery(seed: int) -> list[Part]:
    rng = stream(seed, "mesentery")
    root = np.array([(-4, 16, -2), (-2, 34, -40)], dtype=float)
    ends = np.array((0, 40, -120)) + rng.standard_normal((50, 3)) * np.array((42, 18, 36))
    layers = ((0.0, "portal_vein"),)
    return [
        Part("body", (branch.piece(),), layers, ("body",), contrast=branch.end_radius)
        for branch in grow_tree(rng, root, ends, 0.8, 4.0)
    ]


def _kidney_vessels(seed: int) -> list[Part]:
    parts = []
    for side in (1, -1):
        hilum = kidney(seed, side)[1].bounds.mean(0)
        artery = [(-7, 6, -8, 3.2), (hilum[0] * 0.5, -8, hilum[2], 2.8), (*hilum, 2.5)]
        # the left vein crosses in front of the aorta
        front = 2 if side > 0 else 14
        vein = [(20, 6, -14, 5.5), (hilum[0] * 0.4, front, hilum[2] + 2, 5), (*(hilum + 2), 4)]
        parts.append(Part("body", tube(artery), ((0.0, "aorta"),), ("body",)))
        parts.append(Part("body", tube(vein), ((0.0, "vena_cava"),), ("body",)))
    return parts


def stomach(seed: int) -> list[Part]:
    """Stomach with gas above fluid, and the duodenum that continues from it."""
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
    """Gas that collects at the front of a tube in a supine body, above a level given in radii from its middle."""
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
    """Colon from caecum to rectum, widened and narrowed by haustra, with gas in some stretches."""
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
    """Coils of small bowel: a wandering tube that stays in the middle of the abdomen, painted loop over loop."""
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
    """Bladder, filled to a random degree."""
    rng = stream(seed, "bladder")
    fill = rng.uniform(0.65, 1.15)
    shape = ellipsoid(moved(rng, (0, 30, -246), 3), np.array((42, 32, 34)) * fill, (-12, 0, 0))
    return Part("bladder", (shape,), ((0.0, "gut_wall"), (3.0, "bladder_urine")), ("body", "bowel"), roughness=1.5)
