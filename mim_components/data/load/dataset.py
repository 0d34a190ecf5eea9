"""Open prepared volumes and draw crops with keyed randomness, for training and evaluation.

Training draws endlessly, evaluation a fixed number of reproducible crops of each volume.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import Dataset, MetaTensor
from monai.transforms import MapTransform, Randomizable

from mim_components.data.cache.volumes import open_or_remake
from mim_components.data.volumes import ItemError
from mim_components.randomness import keyed_seed
from mim_components.utils.text import root_cause


class OpenPreparedd(MapTransform):
    """Replace a `PreparedVolume` by its voxels: a MetaTensor `(1, H, W, D)` int16 HU, RAS, mapped from the cache.

    Voxels are read only when a crop touches them. A missing or damaged cache file is regenerated.

    Args:
        keys: items that are prepared volumes.
        allow_missing_keys: do not raise if a key is missing.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import numpy as np
        >>> from mim_components.data import PreparedVolume
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder, "ct.npy")
        ...     np.save(file, np.full((4, 4, 2), -1000, np.int16))
        ...     affine = np.diag([1, 1, 5, 1])
        ...     volume = PreparedVolume("ct", "ct.nii.gz", file, (4, 4, 2), (1.0, 1.0, 5.0), affine, "", 0)
        ...     image = OpenPreparedd("image")({"image": volume})["image"]
        ...     image.shape, image.dtype, image.pixdim.tolist()
        (torch.Size([1, 4, 4, 2]), torch.int16, [1.0, 1.0, 5.0])
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Open the volumes."""
        out = dict(data)
        for key in self.key_iterator(out):
            voxels = torch.from_numpy(open_or_remake(out[key]))
            out[key] = MetaTensor(voxels.unsqueeze(0), affine=torch.as_tensor(out[key].affine, dtype=torch.float64))
        return out


class KeyedDataset(Dataset):
    """Dataset whose random transforms are seeded by (seed, epoch, index) before every item.

    Args:
        data: items, see `PreparedDataset.items`.
        transform: a MONAI `Compose` or random transform.
        seed: the run's seed.

    Example:
        >>> from monai.transforms import RandShiftIntensity
        >>> dataset = KeyedDataset([torch.zeros(1, 2)], RandShiftIntensity(1.0, prob=1.0), seed=7)
        >>> torch.equal(dataset[(0, 0)], dataset[(0, 0)]), torch.equal(dataset[(0, 0)], dataset[(1, 0)])
        (True, False)
    """

    def __init__(self, data: Sequence[Any], transform: Callable[[Any], Any], seed: int = 0) -> None:
        super().__init__(data, transform)
        self.seed = seed

    def __getitem__(self, key: int | tuple[int, int]) -> Any:  # type: ignore[override]
        """The item of `(epoch, index)`; a plain index means epoch 0.

        Raises:
            ItemError: names the volume and the cause.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        item = self.data[index]
        if isinstance(self.transform, Randomizable):
            self.transform.set_random_state(seed=keyed_seed(self.seed, "crop", epoch, index))
        try:
            return self.transform(item)
        except Exception as error:  # a worker passes on only the text, which must name the volume and the cause
            name = item.get("name", f"item {index}") if isinstance(item, Mapping) else f"item {index}"
            raise ItemError(f"{name}: {root_cause(error)}") from error


class EvaluationCrops(Dataset):
    """`num_crops` crops of every volume, with randomness keyed by (seed, voxels of the volume, number of the crop).

    So a crop depends neither on workers, batches or order, nor on the other volumes.

    Args:
        data: items of prepared volumes, see `PreparedDataset.items`.
        transform: MONAI `Compose` that ends in `MultiLevelCropMaskd`.
        num_crops: crops per volume.
        seed: seed of the crops.

    Raises:
        ValueError: `num_crops` is below 1.

    Example:
        >>> len(EvaluationCrops([{"image": "a"}, {"image": "b"}], transform=dict, num_crops=3))
        6
    """

    def __init__(
        self, data: Sequence[Mapping[str, Any]], transform: Callable[[Any], Any], num_crops: int = 4, seed: int = 0
    ) -> None:
        if num_crops < 1:
            raise ValueError(f"num_validation_crops must be at least 1, got {num_crops}.")
        super().__init__(data, transform)
        self.num_crops = num_crops
        self.seed = seed

    def __len__(self) -> int:
        """Number of crops of all volumes."""
        return len(self.data) * self.num_crops

    def _transform(self, index: int) -> dict[str, Any]:
        volume, crop = divmod(index, self.num_crops)
        item = self.data[volume]
        key = keyed_seed(self.seed, "evaluation", item["image"].content, crop)
        self.transform.set_random_state(seed=key)
        return {**self.transform(item), "crop": crop}
