"""Level 1 with the boxes of the deeper levels in it, checked."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mim_components.pictures.levels import check_triple, checked_mask, checked_volume
from mim_components.transforms.intensity import AIR_HU


@dataclass(eq=False)
class Nest:
    """Level 1 and where the other levels were cut from it, in RAS.

    Args:
        image: level 1 at its resized grid, `(H, W, D)`, HU.
        spacing: mm per voxel of `image`.
        native_size: native voxels that `image` covers.
        start: index of the first of them in the prepared scan.
        boxes: for each level from 2 on, start and size of its volumes `(V, 2, 3)`, in native voxels counted from
            level 1's first voxel. Volumes of one parent follow each other, so V is a multiple of the level before.
        masked: bool `(h, w, d)`, mask of level 1, or None.

    Raises:
        ValueError: shapes that do not fit together, or a box that leaves level 1.
    """

    image: np.ndarray
    spacing: tuple[float, float, float]
    native_size: tuple[int, int, int]
    start: tuple[int, int, int]
    boxes: Mapping[int, np.ndarray]
    masked: np.ndarray | None

    def __post_init__(self) -> None:
        """Check that everything fits together."""
        self.image = checked_volume(self.image, "image of level 1")
        check_triple(self.spacing, "spacing of level 1 in mm", positive=True)
        check_triple(self.native_size, "native_size of level 1 in voxels", positive=True)
        check_triple(self.start, "start of level 1 in voxels", positive=False)
        if self.masked is not None:
            self.masked = checked_mask(self.masked, self.image.shape, "level 1")
        self.boxes = _checked_boxes(self.boxes, self.native_size)

    @property
    def native_mm(self) -> np.ndarray:
        """Mm per native voxel, `(3,)`."""
        return np.array(self.spacing) * self.image.shape / np.array(self.native_size)

    @property
    def size_mm(self) -> np.ndarray:
        """Edges of level 1 in mm, `(3,)`."""
        return np.array(self.image.shape) * np.array(self.spacing)

    def child_of(self, level: int, number: int) -> int:
        """Number of the level-2 box that a box of a deeper level was cut from."""
        return number * len(self.boxes[2]) // len(self.boxes[level])

    def child_to_show(self) -> int | None:
        """Level-2 box with the largest share of tissue, since a picture of air tells nothing; None without level 2."""
        return int(self._tissue(2).argmax()) if 2 in self.boxes else None

    def grandchild_to_show(self, child: int) -> int | None:
        """Of the level-3 boxes of a level-2 box, the one with the largest share of tissue; None without level 3."""
        if 3 not in self.boxes:
            return None
        own = [self.child_of(3, number) == child for number in range(len(self.boxes[3]))]
        return int(np.where(own, self._tissue(3), -1.0).argmax())

    def _tissue(self, level: int) -> np.ndarray:
        """Share of voxels above `AIR_HU` in each box of a level, `(V,)`."""
        native = np.array(self.native_size)
        first = self.boxes[level][:, 0] * self.image.shape // native
        last = -(-self.boxes[level].sum(1) * self.image.shape // native)  # rounded up: never empty
        regions = [tuple(map(slice, low, high)) for low, high in zip(first, last, strict=True)]
        return np.array([(self.image[region] > AIR_HU).mean() for region in regions])


def _checked_boxes(boxes: Mapping[int, np.ndarray], native_size: tuple[int, int, int]) -> dict[int, np.ndarray]:
    levels = sorted(boxes)
    if levels != list(range(2, len(levels) + 2)):
        raise ValueError(f"boxes must have the levels 2, 3, ... without a gap, got {levels}.")
    checked, parents = {}, 1
    for level in levels:
        box = np.asarray(boxes[level])
        if box.ndim != 3 or box.shape[1:] != (2, 3) or not len(box) or len(box) % parents:
            raise ValueError(
                f"boxes of level {level} must be (V, 2, 3), start and size, V a multiple of {parents}, got {box.shape}."
            )
        outside = (box[:, 0] < 0).any(-1) | (box[:, 1] <= 0).any(-1) | (box.sum(1) > np.array(native_size)).any(-1)
        if outside.any():
            number = int(outside.argmax())
            found = f"start {box[number, 0].tolist()}, size {box[number, 1].tolist()}"
            raise ValueError(
                f"box {number} of level {level} must lie inside level 1, {native_size} voxels, got {found}."
            )
        checked[level], parents = box, len(box)
    return checked
