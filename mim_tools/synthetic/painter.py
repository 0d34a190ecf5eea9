"""Parts of the body, and the painter that draws them into a block of voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mim_tools.synthetic.shapes import FAR, Array, Piece, Points
from mim_tools.synthetic.tissue import LABEL_NUMBERS, PARENTS

Box = tuple[slice, ...]


@dataclass(frozen=True)
class Part:
    """One thing to paint; later parts cover earlier ones.

    Attributes:
        label: name of its label.
        pieces: shapes whose union it is.
        layers: (depth in mm, tissue) from the outside in: a bone is cortical from 0 and trabecular from 2 mm on; none
            for a part that names what others painted.
        within: names of the labels that it may cover, including their finer labels; None for all.
        roughness: height in mm of random bumps on its surface.
        contrast: radius in mm of a vessel that may be thinner than a voxel and is then fainter; 0 for other parts.
    """

    label: str
    pieces: tuple[Piece, ...]
    layers: tuple[tuple[float, str], ...]
    within: tuple[str, ...] | None = None
    roughness: float = 0.0
    contrast: float = 0.0


@dataclass
class Block:
    """Voxels painted together: coordinates in the body frame, HU and labels, all `(X, Y, Z)`."""

    points: Points
    image: Array
    label: NDArray[np.uint8]


class Painter:
    """Paints with soft edges: a voxel takes a part's HU in proportion to coverage, and the label at its centre.

    Args:
        parts: parts to paint, in order.
        tissues: HU by tissue.
        edge: width in mm over which an edge is soft, about a voxel.
    """

    def __init__(self, parts: Sequence[Part], tissues: dict[str, float], edge: float) -> None:
        self.parts, self.tissues, self.edge = parts, tissues, edge
        self._allowed = [_allowed(part.within) for part in parts]

    def paint(self, block: Block, index: int, boxes: Sequence[Box]) -> None:
        """Paint one part.

        Args:
            block: voxels to paint; changed in place.
            index: number of the part.
            boxes: for each piece of the part, the voxels of the block that it can cover.
        """
        part, allowed = self.parts[index], self._allowed[index]
        filled = [(piece, box) for piece, box in zip(part.pieces, boxes, strict=True) if not _empty(box)]
        if not filled:
            return
        whole = _hull([box for _, box in filled])
        label = block.label[whole]
        free = None if allowed is None else allowed[label]
        if free is not None and not free.any():
            return
        distance = self._distance(block, part, filled, whole)
        image = block.image[whole]
        for depth, tissue in part.layers:
            cover = np.clip(0.5 - (distance + depth) * (1 / self.edge), 0, 1)
            if free is not None:
                cover *= free
            if part.contrast:
                cover *= min(1.0, 1.6 * part.contrast / self.edge)
            image += cover * (self.tissues[tissue] - image)
        covered = distance < 0
        if free is not None:
            covered &= free > 0
        label[covered] = LABEL_NUMBERS[part.label]

    def _distance(self, block: Block, part: Part, filled: list, whole: Box) -> Array:
        if len(filled) == 1:
            distance = filled[0][0].distance(block.points.crop(whole))
        else:
            distance = np.full(block.label[whole].shape, FAR, dtype=np.float32)
            for piece, box in filled:
                view = distance[
                    tuple(slice(b.start - w.start, b.stop - w.start) for b, w in zip(box, whole, strict=True))
                ]
                np.minimum(view, piece.distance(block.points.crop(box)), out=view)
        if part.roughness:
            distance = distance + part.roughness * 0.5 * block.points.field("noise")[whole]
        return distance


@lru_cache(maxsize=256)
def _allowed(names: tuple[str, ...] | None) -> NDArray[np.float32] | None:
    """By label number: 1 for the labels named and the finer ones that belong to them; None for all labels."""
    if names is None:
        return None
    table = np.zeros(256, dtype=np.float32)
    table[[number for name, number in LABEL_NUMBERS.items() if name in names or PARENTS.get(name) in names]] = 1
    return table


def _empty(box: Box) -> bool:
    return any(side.start >= side.stop for side in box)


def _hull(boxes: Sequence[Box]) -> Box:
    return tuple(
        slice(min(box[axis].start for box in boxes), max(box[axis].stop for box in boxes)) for axis in range(3)
    )
