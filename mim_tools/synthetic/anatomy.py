"""The whole body as a list of parts in painting order."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from mim_tools.synthetic.abdomen import abdomen
from mim_tools.synthetic.chest import LUNGS, chest
from mim_tools.synthetic.findings import draw_findings, lesions
from mim_tools.synthetic.grid import stream
from mim_tools.synthetic.painter import Part
from mim_tools.synthetic.shapes import Array, Piece, Points, ellipsoid, mirrored, moved, path, smooth_max, tube
from mim_tools.synthetic.skeleton import pelvis, ribs, shoulders, spine
from mim_tools.synthetic.trunk import Trunk

_EVERYWHERE = np.array([[-400.0, -400, -2000], [400, 400, 2000]])


@lru_cache(maxsize=4)  # many crops of one person are a common use; the result is never modified
def build_anatomy(seed: int, findings: tuple[str, ...] | None = None) -> tuple[Trunk, tuple[Part, ...]]:
    """Build one person.

    Args:
        seed: the person.
        findings: names of `FINDINGS`, each of which the person has; None draws lesions by seed.

    Returns:
        The trunk, whose fields the parts' shapes read, and the parts, later ones over earlier ones.
    """
    trunk = Trunk(seed)
    parts = (
        *_layers(trunk),
        *_muscles(seed),
        *spine(trunk),
        *ribs(trunk),
        *shoulders(seed),
        *pelvis(seed),
        *chest(seed, trunk),
        *_diaphragm(trunk),
        *abdomen(seed, trunk),
        *(lesions(seed, trunk) if findings is None else draw_findings(seed, trunk, findings)),
    )
    return trunk, parts


def _layers(trunk: Trunk) -> list[Part]:
    """Skin with its fat, muscle wall with planes of fat, and the fat that fills the space inside."""

    def planes(points: Points) -> Array:
        """Sheets of fat between the three muscles of the flank."""
        outer, inner = -points.field("wall"), points.field("cavity")
        thick = np.maximum(outer + inner, 1)
        share = outer / thick
        flank = np.minimum(np.abs(share - 0.36), np.abs(share - 0.7)) * thick - 0.8
        flank += np.clip((np.abs(np.abs(points.x) - 105) - 45) * 0.2, 0, 9) + np.clip(-points.y - 30, 0, 90) * 0.1
        flank += np.clip(points.z - 30, 0, 90) * 0.1
        return flank

    def marbling(points: Points) -> Array:
        """Streaks of fat in the thick muscles of back, shoulder and hip."""
        thick = points.field("cavity") - points.field("wall")
        return np.abs(points.field("noise") - 0.4) * 6 - 0.7 + np.clip(28 - thick, 0, 28) * 0.15

    def linea_alba(points: Points) -> Array:
        return np.maximum(np.abs(points.x) - 1.5, np.maximum(30 - points.y, np.abs(points.z + 75) - 155))

    def surface(name: str) -> tuple[Piece, ...]:
        return (Piece(_EVERYWHERE, lambda points: points.field(name)),)

    midline = Piece(np.array([[-2.0, 30, -230], [2, 160, 80]]), linea_alba)
    return [
        Part("subcutaneous_fat", surface("skin"), ((0.0, "skin"), (2.0, "fat"))),
        Part("muscle", surface("wall"), ((0.0, "muscle"),)),
        Part("body", surface("cavity"), ((0.0, "fat"),), ("muscle",)),
        Part("muscle", (Piece(_EVERYWHERE, planes),), ((0.0, "fat"),), ("muscle",)),
        Part("muscle", (Piece(_EVERYWHERE, marbling),), ((0.0, "marbling"),), ("muscle",)),
        Part("muscle", (midline,), ((0.0, "fat"),), ("muscle",)),
    ]


def _muscles(seed: int) -> list[Part]:
    """Fat of the axillae and groins, then psoas, iliacus, obturator muscles and the floor of the pelvis."""
    rng = stream(seed, "muscles")
    size = rng.uniform(0.85, 1.15)
    parts = []
    for side in (-1, 1):
        axilla = ellipsoid((side * 128, 0, 240), (24, 30, 46), (0, side * 12, 0))
        groin = ellipsoid((side * 62, 70, -282), (26, 16, 40))
        gluteal = ellipsoid((side * 62, -66, -272), (16, 20, 26))
        parts += [Part("muscle", (shape,), ((0.0, "fat"),), ("muscle",), 4.0) for shape in (axilla, groin, gluteal)]
        psoas = [(22, -18, 20, 7), (32, -20, -30, 13), (40, -17, -80, 18), (47, -8, -125, 20), (56, 6, -165, 18),
                 (68, 26, -205, 16), (82, 34, -240, 14), (98, 12, -285, 10)]  # fmt: skip
        axis = np.array(psoas, dtype=float)
        axis[:, 0] *= side
        axis[:, 3] *= size
        quadratus = path(rng, [(side * 62, -58, 20, 9), (side * 68, -56, -50, 12), (side * 72, -52, -115, 12)], 1.0)
        iliacus = ellipsoid((side * 96, -4, -172), (56, 13, 44), (14, -side * 12, side * 52))
        obturator = ellipsoid((side * 58, -4, -252), (9, 40, 30), (0, 0, side * 8))
        erector = [
            (34, -68, -215, 14),
            (34, -66, -150, 21),
            (34, -62, -60, 24),
            (32, -68, 20, 22),
            (28, -86, 110, 15),
            (24, -94, 250, 12),
        ]
        layers = ((0.0, "muscle"),)
        parts.append(Part("muscle", tube(mirrored(np.array(erector, dtype=float), side), 20.0), layers, ("body",)))
        parts += [Part("muscle", tube(axis), layers, ("body",)), Part("muscle", tube(quadratus), layers, ("body",))]
        parts += [Part("muscle", (shape,), layers, ("body",)) for shape in (iliacus, obturator)]
    floor = ellipsoid(moved(rng, (0, -10, -290), 2), (52, 60, 14))
    prostate = ellipsoid(moved(rng, (0, 8, -278), 2), (22, 17, 18))
    return [
        *parts,
        Part("muscle", (floor,), ((0.0, "muscle"),), ("body",)),
        Part("prostate", (prostate,), ((0.0, "prostate"),)),
    ]


def _diaphragm(trunk: Trunk) -> list[Part]:
    """The thin muscle between lungs and abdomen, and its two crura in front of the spine."""

    def sheet(points: Points) -> Array:
        return smooth_max(np.abs(points.field("dome") + 1.5) - 1.6, points.field("cavity"), 2.0)

    crura = [
        tube([(s * 13, -2 - s, -40, 3), (s * 15, -4 - s, 10, 4.5), (s * 16, -6, 50, 4), (s * 6, 8, 84, 3)])
        for s in (-1, 1)
    ]
    low = Piece(np.array([[-150.0, -110, -30], [150, 110, 130]]), sheet)
    layers = ((0.0, "muscle"),)
    return [
        Part("muscle", (low,), layers, ("body",)),
        *(Part("muscle", crus, layers, ("body", *LUNGS)) for crus in crura),
    ]
