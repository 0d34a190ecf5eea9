"""Lesions in lung, liver and kidney."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mim_tools.synthetic.chest import Heart, lung
from mim_tools.synthetic.parts import Part, stream
from mim_tools.synthetic.shapes import Piece, ellipsoid
from mim_tools.synthetic.solid_organs import kidney, liver
from mim_tools.synthetic.trunk import Trunk
from mim_tools.synthetic.vessels import points_inside

_MOST = 4  # lesions per kind


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
        for _ in range(rng.integers(0, _MOST + 1)):
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
    # a lesion as large as this may have no place in the organ
    return [ellipsoid(place[0], radius * stretch, angles.tolist())] if len(place) else []
