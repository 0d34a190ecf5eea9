"""Organs of the chest: lungs with vessels and airways, heart, great vessels, oesophagus, aorta down to the pelvis."""

from __future__ import annotations

import numpy as np

from mim_tools.synthetic.grid import stream
from mim_tools.synthetic.organs import Branch, grow_tree, points_inside
from mim_tools.synthetic.painter import Part
from mim_tools.synthetic.shapes import (
    Array,
    Piece,
    Points,
    box_around,
    capsule,
    ellipsoid,
    inside,
    mirrored,
    moved,
    path,
    smooth_max,
    smooth_min,
    tube,
)
from mim_tools.synthetic.trunk import Trunk

LUNGS = ("right_lung", "left_lung")
_SOFT = ("body", "muscle", *LUNGS, "lung_vessels")
_LEFT_WALL = 11.0  # thickness in mm of the muscle round the left ventricle

# courses of tubes: x, y, z and radius in mm
_TRACHEA = [(0, -1, 420, 8.5), (0, -2, 322, 8.5), (2, -7, 260, 9), (3, -11, 207, 9)]
_AORTA = [
    (0, 24, 160, 15), (8, 26, 178, 15.5), (14, 22, 200, 15.5), (10, 14, 222, 14.5), (-2, 2, 233, 13.5),
    (-16, -16, 228, 13), (-23, -26, 208, 12.5), (-24, -28, 175, 12), (-22, -26, 135, 11.5), (-19, -15, 85, 11),
    (-12, 0, 40, 10.5), (-8, 7, 0, 9.5), (-5, 9, -60, 8.8), (-2, 9, -106, 8.5),
]  # fmt: skip
_ILIAC_ARTERY = [(22, 6, -145, 5.5), (48, 0, -182, 5), (66, 22, -222, 4.8), (72, 48, -262, 4.5), (76, 48, -330, 4.2)]
_RIGHT_CAROTID = [(4, 8, 232, 6), (18, 6, 262, 5), (30, -4, 320, 4), (32, -4, 420, 3.8)]
_LEFT_CAROTID = [(-14, -6, 232, 4.5), (-26, -4, 270, 4), (-32, -6, 420, 3.8)]
_PULMONARY_ARTERY = [
    (-14, 46, 168, 13),
    (-14, 34, 186, 14),
    (-10, 20, 192, 12),
    (-34, -2, 182, 9.5),
    (-46, -10, 172, 8),
]
_SUPERIOR_CAVA = [(27, 20, 160, 10), (26, 14, 200, 9.5), (24, 16, 250, 8.5), (34, 8, 300, 6), (38, 4, 420, 5.5)]
_LEFT_BRACHIOCEPHALIC = [(0, 26, 246, 7), (-30, 14, 268, 6.5), (-38, 4, 300, 6), (-40, 2, 420, 5.5)]
_OESOPHAGUS = [
    (-2, -13, 420, 6.5), (-3, -15, 322, 6.5), (-4, -21, 260, 7), (-2, -20, 200, 7), (-4, -17, 140, 7),
    (-14, -4, 100, 7.5), (-26, 2, 84, 8),
]  # fmt: skip


class Heart:
    """Position and chambers of the heart; the lungs leave room for it."""

    def __init__(self, seed: int) -> None:
        rng = stream(seed, "heart")
        self.shift = moved(rng, (0, 0, 0), 3.0)
        size = rng.uniform(0.92, 1.1)
        turn = (0.0, 24.0 + rng.uniform(-6, 6), -36.0 + rng.uniform(-6, 6))

        def chamber(center: tuple[float, ...], radii: tuple[float, ...], turned: bool = False) -> Piece:
            return ellipsoid(center + self.shift, np.array(radii) * size, turn if turned else (0, 0, 0))

        self.ventricles = chamber((-24, 36, 128), (65, 45, 44), True)
        self.atria = (chamber((26, 22, 140), (27, 29, 36)), chamber((-2, 3, 160), (36, 19, 24)))
        self.chambers = (
            ("left_ventricle", chamber((-36, 30, 124), (39, 21, 22), True), "left_blood"),
            ("right_ventricle", chamber((-8, 56, 122), (40, 15, 27), True), "right_blood"),
            ("right_atrium", chamber((27, 22, 140), (23, 25, 32)), "right_blood"),
            ("left_atrium", chamber((-2, 3, 161), (32, 15, 20)), "left_blood"),
        )

    def outline(self) -> Piece:
        """Outer surface of the heart, chambers joined smoothly."""

        def distance(points: Points) -> Array:
            out = self.ventricles.distance(points)
            for atrium in self.atria:
                out = smooth_min(out, atrium.distance(points), 12.0)
            return out

        return Piece(box_around((-12, 25, 138) + self.shift, (72, 66, 66)), distance)

    def parts(self) -> list[Part]:
        """Fat of the pericardium, muscle, blood."""
        outline = self.outline()
        parts = [
            Part("body", inside((outline,), -5.0), ((0.0, "fat"),), within=("body", *LUNGS)),
            Part("heart", (outline,), ((0.0, "heart_muscle"),), within=("body", *LUNGS)),
            Part("left_myocardium", inside((self.chambers[0][1],), -_LEFT_WALL), (), within=("heart",)),
        ]
        return parts + [
            Part(name, (piece,), ((0.0, tissue),), within=("heart",)) for name, piece, tissue in self.chambers
        ]


def lung(side: int, heart: Heart) -> Piece:
    """One lung: the space between rib cage, diaphragm, spine, heart and great vessels; `side` 1 is the right one."""
    outline = heart.outline()

    def distance(points: Points) -> Array:
        x = points.x * side
        y = points.y
        back = 1 / (1 + np.exp((y + 20) * 0.14))
        middle = np.exp(-(((y - 4) / 30) ** 2))
        high = np.clip((points.z - 150) * (1 / 70), 0, 1)
        room = 5 + (12 + 4 * high) * back + (14 + 9 * high) * middle
        out = smooth_max(points.field("cavity") + 1, 3 - points.field("dome"), 5.0)
        out = smooth_max(out, (room - x) * 0.85, 10.0)
        return smooth_max(out, 4 - outline.distance(points), 8.0)

    low, high = (-2.0, 140.0) if side > 0 else (-140.0, 2.0)
    return Piece(np.array([[low, -95, 0], [high, 95, 318]]), distance)


def chest(seed: int, trunk: Trunk) -> list[Part]:
    """All organs of the chest, in painting order."""
    heart = Heart(seed)
    sides = (1, -1)
    parts = [
        Part(name, (lung(side, heart),), ((0.0, "lung"),), ("body",)) for name, side in zip(LUNGS, sides, strict=True)
    ]
    for side in sides:
        parts += _lung_tree(seed, trunk, lung(side, heart), side)
    parts += _airways(seed)
    parts += heart.parts()
    parts += _great_vessels(seed)
    return parts


def _lung_tree(seed: int, trunk: Trunk, shape: Piece, side: int) -> list[Part]:
    """Vessels of one lung and the bronchi that run beside the larger ones."""
    rng = stream(seed, f"lung tree {side}")
    targets = points_inside(rng, trunk, shape.distance, shape.bounds, 420, 2.0)
    hilum = moved(rng, (38, -8, 166), 3.0)
    roots = mirrored(np.array([(14.0, 2, 176), hilum]), side)
    parts = []
    for branch in grow_tree(rng, roots, targets, 1.0, 8.0):
        bare = ("body", *LUNGS)
        layers = ((0.0, "lung_vessel"),)
        parts.append(Part("lung_vessels", (branch.piece(),), layers, bare, contrast=branch.end_radius))
        if branch.end_radius > 2.5:
            parts += _bronchus(branch)
    return parts


def _bronchus(branch: Branch) -> list[Part]:
    radius = 0.75 * branch.end_radius
    shift = np.array([0, -1.9 * branch.end_radius, 1.0])
    start, end = branch.start + shift, branch.end + shift
    layers = ((0.0, "airway_wall"), (1.0, "air"))
    return [Part("airways", (capsule(start, end, radius + 1, radius + 1),), layers, LUNGS, contrast=radius)]


def _airways(seed: int) -> list[Part]:
    trachea = path(stream(seed, "airways"), _TRACHEA, 1.5)
    carina = trachea[-1, :3]
    right = np.array([(*carina, 7.5), (20, -13, 188, 7), (40, -16, 168, 5.5)])
    left = np.array([(*carina, 7), (-20, -14, 186, 6.5), (-44, -16, 170, 5)])
    layers = ((0.0, "airway_wall"), (1.6, "air"))
    return [Part("airways", (*tube(trachea), *tube(right), *tube(left)), layers)]


def _great_vessels(seed: int) -> list[Part]:
    rng = stream(seed, "great vessels")
    main = path(rng, _AORTA, 1.5)
    iliacs = [[(*main[-1, :3], 6.0), *((side * x, y, z, r) for x, y, z, r in _ILIAC_ARTERY)] for side in (-1, 1)]
    pulmonary = path(rng, _PULMONARY_ARTERY, 1.5)
    right = [(*pulmonary[2, :3], 11.0), (14, 8, 186, 10.5), (44, -6, 172, 8.0)]
    cava = path(rng, _SUPERIOR_CAVA, 1.5)
    left = [(*cava[2, :3], 7.0), *_LEFT_BRACHIOCEPHALIC]
    gullet = path(rng, _OESOPHAGUS, 1.5)
    arteries = [piece for points in (*iliacs, _RIGHT_CAROTID, _LEFT_CAROTID) for piece in tube(points)]
    return [
        Part("oesophagus", tube(gullet), ((0.0, "gut_wall"), (5.0, "air")), roughness=1.0),
        Part("pulmonary_artery", (*tube(pulmonary), *tube(right)), ((0.0, "right_blood"),), _SOFT),
        Part("superior_vena_cava", (*tube(cava), *tube(left)), ((0.0, "right_blood"),), _SOFT),
        Part("aorta", (*tube(main), *arteries), ((0.0, "aorta"),)),
        Part("ascending_aorta", inside(tube(main[:4]), -1.5), (), ("aorta",)),
    ]
