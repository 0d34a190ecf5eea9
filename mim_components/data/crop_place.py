"""Cut and resize crops in the loader's workers, or on the device of the training from bytes that workers only read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from monai.data import Dataset, list_data_collate
from monai.data.utils import no_collation
from torch import Tensor

from mim_components.data.load.dataset import KeyedDataset

CROP_ON = ("worker", "device")
KEY = "crop_key"


class ReadCrops(Dataset):
    """The first transforms of a keyed dataset; `CropPlace.finish` runs the others.

    Args:
        dataset: its transform is MONAI's `Compose`.
        num_read: transforms that run here.
    """

    def __init__(self, dataset: KeyedDataset, num_read: int) -> None:
        super().__init__(dataset.data, partial(dataset.transform, end=num_read))
        self.dataset = dataset

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:  # type: ignore[override]
        """What is read for `(epoch, index)`, and the key itself."""
        item = self.dataset.run(self.transform, self.data[key[1]], *key)
        # a crop that is a view would take the whole volume along to the other process
        copied = {
            name: value.clone(memory_format=torch.contiguous_format) if isinstance(value, Tensor) else value
            for name, value in item.items()
        }
        return {**copied, KEY: key}


class CropPlace:
    """Where the transforms run that follow the reading; the results are the same.

    On the device, workers hand over what they read, as it is stored, and `finish` runs the rest sample by sample with
    the sample's own seed.

    Args:
        dataset: its transform is MONAI's `Compose`.
        num_read: transforms that run in the workers in any case.
        crop_on: "worker" or "device".
        device: of the training.

    Attributes:
        items: dataset for the loader.
        collate: `collate_fn` for the loader.

    Raises:
        ValueError: `crop_on` is none of the two.
    """

    def __init__(
        self, dataset: KeyedDataset, num_read: int, crop_on: str = "worker", device: torch.device | str = "cpu"
    ) -> None:
        if crop_on not in CROP_ON:
            raise ValueError(f"crop_on must be one of {CROP_ON}, got {crop_on!r}.")
        self.dataset = dataset
        self.device = device
        self.on_device = crop_on == "device"
        self.items: Dataset = ReadCrops(dataset, num_read) if self.on_device else dataset
        self.collate = no_collation if self.on_device else list_data_collate
        self._rest = partial(dataset.transform, start=num_read) if self.on_device else dataset.transform

    def finish(self, batch: Any) -> Any:
        """Give a loaded batch the transforms it lacks."""
        return list_data_collate([self._finish(item) for item in batch]) if self.on_device else batch

    def _finish(self, item: Mapping[str, Any]) -> dict[str, Any]:
        moved = {
            name: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in item.items()
        }
        key: tuple[int, int] = moved.pop(KEY)  # type: ignore[assignment]
        return self.dataset.run(self._rest, moved, *key)
