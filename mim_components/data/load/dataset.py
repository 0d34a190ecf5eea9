"""Training-time side of the data path: open prepared volumes and draw crops with keyed randomness."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from time import perf_counter
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import MapTransform, Randomizable

from mim_components.data.load.sampler import StepSampler
from mim_components.data.repair import open_or_remake
from mim_components.data.volumes import PreparedDataset
from mim_components.randomness import keyed_seed
from mim_components.utils.text import root_cause


def volume_items(prepared: PreparedDataset) -> list[dict[str, Any]]:
    """One item per volume: `image` (the prepared volume) and `name` (its source, for messages)."""
    return [{"image": volume, "name": volume.source} for volume in prepared.volumes]


class OpenPreparedd(MapTransform):
    """Replace a `PreparedVolume` by its voxels: a MetaTensor `(1, H, W, D)` int16 HU, RAS, mapped from the cache.

    Nothing is read until a crop touches it. A cache file that is missing or damaged is made again.

    Args:
        keys: items that are prepared volumes.
        allow_missing_keys: do not raise when a key is missing.
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


class ItemError(RuntimeError):
    """An item that could not be made; names the volume and the cause."""


class KeyedDataset(Dataset):
    """Dataset whose random transforms are seeded by (seed, epoch, index) before every item.

    Args:
        data: items, see `volume_items`.
        transform: a MONAI `Compose` or random transform.
        seed: the run's seed.
    """

    def __init__(self, data: Sequence[Any], transform: Callable[[Any], Any], seed: int = 0) -> None:
        super().__init__(data, transform)
        self.seed = seed

    def __getitem__(self, key: int | tuple[int, int]) -> Any:  # type: ignore[override]
        """The item of `(epoch, index)`; a plain index means epoch 0."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        return self.run(self.transform, self.data[index], epoch, index)

    def run(self, transform: Callable[[Any], Any], item: Any, epoch: int, index: int) -> Any:
        """Run the dataset's transform, or a part of it, with the draws of `(epoch, index)`.

        Raises:
            ItemError: names the volume and the cause.
        """
        if isinstance(self.transform, Randomizable):
            self.transform.set_random_state(seed=keyed_seed(self.seed, "crop", epoch, index))
        try:
            return transform(item)
        except Exception as error:  # a worker hands on the text only: it must name the volume and the cause
            name = item.get("name", f"item {index}") if isinstance(item, Mapping) else f"item {index}"
            raise ItemError(f"{name}: {root_cause(error)}") from error


class StepLoader:
    """Group the micro-batches of a loader into optimizer steps; measures how long a step waits for data.

    Iterating yields, for every optimizer step, an iterator over its micro-batches; the loader's workers fill the next
    ones meanwhile. So a trainer's iteration is an optimizer step, and schedules, logs and checkpoints count steps.

    Args:
        data_loader: with a `StepSampler`.
        finish: what is done to a micro-batch after it was loaded; its time does not count as waiting.

    Attributes:
        waited: seconds spent waiting for data since the last `reset_clock`.
        awaited: (epoch, index) of the samples of the micro-batch that is waited for.
    """

    def __init__(self, data_loader: DataLoader, finish: Callable[[Any], Any] | None = None) -> None:
        if not isinstance(data_loader.sampler, StepSampler):
            raise ValueError(f"data_loader needs a StepSampler, got {type(data_loader.sampler).__name__}.")
        self.data_loader = data_loader
        self.finish = finish
        self.sampler: StepSampler = data_loader.sampler
        self.waited = 0.0
        self.awaited: list[tuple[int, int]] = []

    def __len__(self) -> int:
        """Optimizer steps that are left."""
        return self.sampler.num_steps - self.sampler.start_step

    def __iter__(self) -> Iterator[Iterator[Any]]:
        """Yield the micro-batches of each step."""
        batches = iter(self.data_loader)
        for step in range(self.sampler.start_step, self.sampler.num_steps):
            yield self._timed(batches, step)

    def _timed(self, batches: Iterator[Any], step: int) -> Iterator[Any]:
        for samples in self.sampler.samples_of(step):
            start = perf_counter()
            self.awaited = samples
            batch = next(batches)
            self.awaited = []
            self.waited += perf_counter() - start
            yield batch if self.finish is None else self.finish(batch)

    def awaited_names(self) -> list[str]:
        """Names of the volumes in the micro-batch that is waited for; none while a step computes."""
        items: Any = self.data_loader.dataset
        while hasattr(items, "data"):  # datasets around datasets; their items would be loaded
            items = items.data
        return list(dict.fromkeys(str(items[index].get("name", index)) for _, index in self.awaited))

    def reset_clock(self) -> float:
        """Seconds waited since the last call."""
        waited, self.waited = self.waited, 0.0
        return waited
