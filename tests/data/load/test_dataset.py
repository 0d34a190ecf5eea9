"""Opening prepared volumes, keyed crops, and micro-batches grouped into steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, OneOf, RandFlip, RandGaussianNoise, RandSpatialCrop

from mim_components.data.find.walk import find_volumes
from mim_components.data.load.dataset import KeyedDataset, OpenPreparedd
from mim_components.data.load.loader import SteadyDataLoader, StepLoader, init_worker
from mim_components.data.prepare.volumes import prepare_volumes
from mim_components.data.volumes import CacheError, PreparedDataset


@pytest.fixture
def prepared(write_nifti: Callable[..., Path], ct: np.ndarray, tmp_path: Path) -> PreparedDataset:
    """Two volumes, the second mirrored; AFFINE is RAS, so voxels stay where they are."""
    write_nifti("scans/a.nii.gz")
    write_nifti("scans/b.nii.gz", ct[::-1].copy())
    return prepare_volumes(find_volumes(tmp_path / "scans"), tmp_path / "cache", progress=False)


def test_open_gives_voxels_and_affine(prepared: PreparedDataset, ct: np.ndarray) -> None:
    items = prepared.items
    assert [Path(item["name"]).name for item in items] == ["a.nii.gz", "b.nii.gz"]
    item = OpenPreparedd("image")(items[0])
    image = item["image"]
    assert isinstance(image, MetaTensor) and image.dtype == torch.int16 and image.shape == (1, 10, 12, 14)
    assert np.array_equal(image[0].numpy(), ct)
    assert image.affine.dtype == torch.float64
    assert image.affine.tolist() == np.diag([2.0, 3.0, 4.0, 1.0]).tolist()
    assert items[0]["image"] is prepared.volumes[0]  # the list is unchanged
    assert OpenPreparedd("other", allow_missing_keys=True)(items[0]).keys() == items[0].keys()


def test_nothing_is_read_until_it_is_touched_and_nothing_written_back(prepared: PreparedDataset) -> None:
    volume = prepared.volumes[0]
    image = OpenPreparedd("image")({"image": volume})["image"]
    with volume.cache_file.open("rb+") as file:  # change the last voxel in the file, not through the mapping
        file.seek(-2, 2)
        file.write(np.int16(777).tobytes())
    assert int(image[0, -1, -1, -1]) == 777
    content = volume.cache_file.read_bytes()
    image += 1
    assert volume.cache_file.read_bytes() == content


@pytest.mark.parametrize(
    "left",
    [0, 100, 1000],
)
def test_damaged_cache_file_is_named(left: int, prepared: PreparedDataset) -> None:
    volume = prepared.volumes[0]
    volume.cache_file.write_bytes(volume.cache_file.read_bytes()[:left])
    Path(volume.source).unlink()  # otherwise it is regenerated
    with pytest.raises(CacheError, match=f"{volume.cache_file}: the cache file of .*a.nii.gz cannot be read"):
        OpenPreparedd("image")({"image": volume})


def crop_dataset(seed: int = 0) -> KeyedDataset:
    """Three volumes with unique voxels, and a chain with nested random transforms."""
    volumes = [torch.arange(1000.0).view(1, 10, 10, 10) + 1000 * number for number in range(3)]
    noisy = OneOf([RandGaussianNoise(prob=1.0), RandFlip(prob=0.5, spatial_axis=0)])
    chain = Compose([RandSpatialCrop((4, 4, 4), random_size=False), Compose([RandFlip(0.5, spatial_axis=1), noisy])])
    return KeyedDataset(volumes, chain, seed)


def test_crop_depends_on_seed_epoch_and_index_only() -> None:
    keys = [(epoch, index) for epoch in range(3) for index in range(3)]
    dataset = crop_dataset()
    forwards = {key: dataset[key].clone() for key in keys}
    other = crop_dataset()
    other.transform.set_random_state(99)
    np.random.RandomState(1).shuffle(keys)
    for key in keys:
        torch.manual_seed(hash(key))
        other[(7, 0)]  # whatever was drawn before
        assert torch.equal(other[key], forwards[key])
    starts = {key: float(value.min()) for key, value in forwards.items()}
    assert len({starts[epoch, 0] for epoch in range(3)}) == 3  # another crop in every epoch
    assert not torch.equal(crop_dataset(seed=1)[(0, 0)], forwards[0, 0])
    assert torch.equal(dataset[1], forwards[0, 1])  # a plain index is epoch 0


def test_transform_without_randomness() -> None:
    assert KeyedDataset([1, 2, 3], lambda x: x * 10)[(5, 2)] == 30


class Key:
    """Turns an item into its key, after a pause."""

    def __init__(self, rest: float = 0.0) -> None:
        self.rest = rest

    def __call__(self, item: int) -> int:
        time.sleep(self.rest)
        return item


def make_loader(num_workers: int = 0, rest: float = 0.0, num_steps: int = 4) -> StepLoader:
    dataset = KeyedDataset(range(5), Key(rest))
    return StepLoader(dataset, num_steps, global_batch_size=6, batch_size=2, num_workers=num_workers, worker_timeout=60)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_steps_hold_their_micro_batches_in_order(num_workers: int) -> None:
    loader = make_loader(num_workers)
    assert len(loader) == 4
    steps = [[batch.tolist() for batch in step] for step in loader]
    assert [[len(batch) for batch in step] for step in steps] == [[2, 2, 2]] * 4  # 6 = 3 micro-batches of 2
    assert [index for step in steps for batch in step for index in batch] == [index for _, index in loader.sampler]
    loader.sampler.start_step = 3
    assert len(loader) == 1
    assert [[batch.tolist() for batch in step] for step in loader] == steps[3:]


def test_only_waiting_for_data_is_measured() -> None:
    loader = make_loader(rest=0.02, num_steps=1)
    for step in loader:
        for _ in step:
            time.sleep(0.1)
    # 6 items of 0.02 s; 3 x 0.1 s of work are not counted
    assert 0.12 <= loader.waited < 0.3
    waited = loader.waited
    assert loader.reset_clock() == waited and loader.reset_clock() == 0.0


def test_workers_have_a_timeout_and_memory_is_pinned_for_cuda_only() -> None:
    made = [StepLoader(range(2), 1, 2, num_workers=workers, worker_timeout=7) for workers in (0, 1)]
    assert [(each.data_loader.timeout, each.data_loader.pin_memory) for each in made] == [(0, False), (7, False)]
    with pytest.raises(ValueError, match="worker_timeout must be positive, got 0: a worker that hangs stops the run"):
        StepLoader(range(2), 1, 2, num_workers=1, worker_timeout=0)
    on_cuda = SteadyDataLoader([1], device="cuda:1")
    assert on_cuda.pin_memory and on_cuda.worker_init_fn is init_worker
