"""The abdomen: its vessels, and the order in which its organs are painted."""

from __future__ import annotations

import numpy as np

from mim_tools.synthetic.gut import bladder, colon, small_bowel, stomach
from mim_tools.synthetic.parts import Part, path, stream
from mim_tools.synthetic.shapes import Piece, tube
from mim_tools.synthetic.solid_organs import adrenals, gallbladder, kidney, kidneys, liver, pancreas, spleen
from mim_tools.synthetic.trunk import Trunk
from mim_tools.synthetic.vessels import grow_tree, points_inside

# courses of tubes: x, y, z and radius in mm
_CAVA = [(19, 2, -116, 11), (22, 5, -60, 11), (24, 7, 0, 11.5), (27, 6, 50, 12), (27, 10, 92, 13), (27, 16, 125, 13)]
_PORTAL = [(-70, -12, 30, 4), (-20, 20, -4, 5), (16, 22, -14, 7), (24, 22, 8, 7), (38, 16, 34, 6.5)]
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
    """Branches of the portal vein and the hepatic veins; they are part of the liver and differ in HU only."""
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
