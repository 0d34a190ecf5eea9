"""What an evaluation looks at: the validation volumes, and a fixed number of reproducible crops of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.data import Dataset

from mim_components.data.prepare.volumes import find_sources
from mim_components.data.volumes import DataError, FoundVolumes
from mim_components.randomness import keyed_seed


def find_validation(
    validation_dir: str | Path | None = None,
    validation_datalist: str | Path | None = None,
    validation_key: str = "validation",
    dataset_dir: str | Path | None = None,
    datalist: str | Path | None = None,
    datalist_key: str = "training",
    collection: str | None = None,
    data_root: str | Path | None = None,
    allow_outside: bool = False,
) -> FoundVolumes:
    """Find the validation volumes, or the training's where neither folder nor list of validation volumes is given.

    Args:
        validation_dir: folder to search; with `validation_datalist` the folder its paths are relative to.
        validation_datalist: JSON list of volumes.
        validation_key: section of that list.
        dataset_dir: of the training, as the rest, see `mim_components.data.find_sources`.
        datalist: of the training.
        datalist_key: of the training.
        collection: of the training.
        data_root: of the training.
        allow_outside: accept paths of a list that lead out of its folder.

    Raises:
        DataError: nothing was found, or nothing is given.
    """
    if validation_datalist or validation_dir:
        return find_sources(
            validation_dir, validation_datalist, datalist_key=validation_key, allow_outside=allow_outside
        )
    if not any((dataset_dir, datalist, collection, data_root)):
        raise DataError(
            "Give the volumes to evaluate on: --validation_dir (a folder) or --validation_datalist (a JSON list); or "
            "--dataset_dir as in the training, to evaluate on its data."
        )
    return find_sources(dataset_dir, datalist, collection, data_root, datalist_key, allow_outside)


class EvaluationCrops(Dataset):
    """`num_crops` crops of every volume, whose randomness is keyed by (seed, voxels of the volume, number of the crop).

    So a crop depends neither on workers, batches and order, nor on which other volumes there are.

    Args:
        data: items of prepared volumes, see `mim_components.data.volume_items`.
        transform: MONAI `Compose` that ends in `MultiLevelCropMaskd`.
        num_crops: crops of each volume.
        seed: of the crops.

    Raises:
        ValueError: `num_crops` is below 1.
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
        """Crops of all volumes."""
        return len(self.data) * self.num_crops

    def _transform(self, index: int) -> dict[str, Any]:
        volume, crop = divmod(index, self.num_crops)
        item = self.data[volume]
        key = keyed_seed(self.seed, "evaluation", item["image"].content, crop)
        self.transform.set_random_state(seed=key)
        return {**self.transform(item), "crop": crop}
