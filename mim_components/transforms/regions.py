"""Conversions between class maps and regions: classes exclude each other, regions combine classes and may overlap.

Axes: class map (1, H, W, D); regions (R, H, W, D) of 0 and 1, in the order in which they are named.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Identityd, MapLabelValued, MapTransform, Transform
from torch import Tensor

from mim_components.labels import LabelSet
from mim_components.utils.tensors import without_meta


class LabelToRegions(Transform):
    """Combine the classes of a class map into regions.

    Args:
        regions: name to its classes; empty: class maps stay as they are.

    Example:
        >>> brats = {"TC": [2, 3], "WT": [1, 2, 3], "ET": [3]}
        >>> LabelToRegions(brats)(torch.tensor([0, 1, 2, 3]).reshape(1, 4, 1, 1)).flatten(1).tolist()
        [[0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1]]
    """

    def __init__(self, regions: Mapping[str, Sequence[int]]) -> None:
        self.regions = {name: tuple(classes) for name, classes in regions.items()}

    def __call__(self, label: Tensor) -> Tensor:
        """Turn `(1, H, W, D)` into uint8 `(R, H, W, D)`; a MetaTensor keeps its meta data."""
        if not self.regions:
            return label
        if label.shape[0] != 1:
            raise ValueError(f"a class map must be (1, H, W, D), got {tuple(label.shape)}.")
        plain = without_meta(label)[0]
        regions = torch.zeros(len(self.regions), *plain.shape, dtype=torch.uint8, device=plain.device)
        for region, classes in zip(regions, self.regions.values(), strict=True):
            for each in classes:  # not torch.isin: it needs 8 bytes per voxel for small integers
                region |= plain == each
        return _like(regions, label)


class RegionsToLabel(Transform):
    """Turn predicted regions into one class map.

    Regions are written from most to fewest classes; of equal ones, the later-named overwrites. Each writes the
    class of its own: the lowest that no region inside it has; where those have all of its classes, its
    lowest class. For BraTS, WT (1, 2, 3) writes 1, TC (2, 3) then 2, ET (3) then 3: a voxel in ET is 3 whatever WT
    and TC say. `RegionsToLabel` inverts `LabelToRegions` exactly where regions nest and every
    class but the background is some region's own.

    Args:
        regions: name to its classes; empty: class maps stay as they are.

    Example:
        >>> brats = {"TC": [2, 3], "WT": [1, 2, 3], "ET": [3]}
        >>> regions = torch.tensor([[0, 0, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 1, 1]]).reshape(3, 5, 1, 1)
        >>> RegionsToLabel(brats)(regions).flatten().tolist()
        [0, 1, 2, 3, 3]
    """

    def __init__(self, regions: Mapping[str, Sequence[int]]) -> None:
        self.regions = {name: tuple(classes) for name, classes in regions.items()}
        self.own = _own_classes([set(classes) for classes in self.regions.values()])

    def __call__(self, regions: Tensor) -> Tensor:
        """Turn `(R, H, W, D)` into uint8 `(1, H, W, D)`; a MetaTensor keeps its meta data."""
        if not self.regions:
            return regions
        plain = without_meta(regions)
        if len(plain) != len(self.regions):
            raise ValueError(f"expected the {len(self.regions)} regions {', '.join(self.regions)}, got {len(plain)}.")
        label = torch.zeros(1, *plain.shape[1:], dtype=torch.uint8, device=plain.device)
        for region, own in self.own:
            label[0][plain[region] > 0.5] = own
        return _like(label, regions)


def _own_classes(regions: Sequence[set[int]]) -> list[tuple[int, int]]:
    """Region indices and the classes they write, in writing order."""
    order = sorted(range(len(regions)), key=lambda index: -len(regions[index]))  # stable
    own = []
    for index in order:
        inside = set().union(*(each for each in regions if each < regions[index]))
        own.append((index, min(regions[index] - inside or regions[index])))
    return own


class LabelToRegionsd(MapTransform):
    """Dictionary version of `LabelToRegions`; keys that are not there are skipped.

    Args:
        keys: class maps.
        regions: see `LabelToRegions`.

    Example:
        >>> classes = torch.tensor([0, 1, 2]).view(1, 3, 1, 1)
        >>> regions = LabelToRegionsd("label", {"whole": [1, 2], "core": [2]})({"label": classes})["label"]
        >>> regions.flatten(1).int().tolist()
        [[0, 1, 1], [0, 0, 1]]
    """

    def __init__(self, keys: KeysCollection, regions: Mapping[str, Sequence[int]]) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.convert = LabelToRegions(regions)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Convert the items."""
        return {**data, **{key: self.convert(data[key]) for key in self.key_iterator(dict(data))}}


def _like(tensor: Tensor, source: Tensor) -> Tensor:
    return MetaTensor(tensor).copy_meta_from(source) if isinstance(source, MetaTensor) else tensor


def label_conversion(labels: LabelSet, keys: str | Sequence[str] = "label") -> MapTransform:
    """MONAI's transform from raw values to classes; the identity where every value is its class.

    Unlisted values are refused when the dataset is prepared, not here. Missing keys are skipped, so that
    one list of transforms serves labelled and unlabelled scans.

    Example:
        >>> labels = LabelSet(("background", "heart"), values={0: 0, 205: 1}, regions={})
        >>> label_conversion(labels)({"label": torch.tensor([[[[0, 205]]]])})["label"].flatten().tolist()
        [0.0, 1.0]
    """
    pairs = {raw: value for raw, value in labels.values.items() if raw != value}
    if not pairs:
        return Identityd(keys, allow_missing_keys=True)
    return MapLabelValued(keys, list(pairs), list(pairs.values()), allow_missing_keys=True)
