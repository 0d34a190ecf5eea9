"""Crops made by workers and by the training's device are the same, and workers send no more than the crop."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.transforms import Compose, RandSpatialCropd, ScaleIntensityRanged

from mim_components.data.find.walk import find_volumes
from mim_components.data.load.dataset import ItemError, KeyedDataset, OpenPreparedd, volume_items
from mim_components.data.load.loader import CropPlace, StepLoader, init_worker
from mim_components.data.load.sampler import StepSampler
from mim_components.data.prepare.volumes import prepare_volumes
from mim_components.data.volumes import PreparedDataset
from mim_components.transforms.crop import MultiLevelCropMaskd

LEVELS = [(8, 8, 8), (4, 4, 4)]
CONFIG = Path(__file__).resolve().parents[3] / "bundles" / "mim_pretrain" / "configs" / "train.json"


@pytest.fixture
def prepared(write_nifti: Callable[..., Path], ct: np.ndarray, tmp_path: Path) -> PreparedDataset:
    """A volume larger than level 1, and one that is smaller and has to be padded."""
    write_nifti("scans/a.nii.gz")
    write_nifti("scans/b.nii.gz", ct[:, :6].copy())
    return prepare_volumes(find_volumes(tmp_path / "scans"), tmp_path / "cache", progress=False)


def chain(window: tuple[float, float]) -> list[Any]:
    """The transforms of the bundle."""
    return [
        OpenPreparedd("image"),
        RandSpatialCropd("image", LEVELS[0], random_size=False),
        MultiLevelCropMaskd("image", LEVELS, (8, 8, 8), patch_size=4, num_children=2, window=window),
    ]


@pytest.fixture
def dataset(prepared: PreparedDataset) -> KeyedDataset:
    return KeyedDataset(volume_items(prepared), Compose(chain((-1000, 1000))), seed=3)


def batches(dataset: KeyedDataset, crop_on: str, num_workers: int) -> list[dict[str, Any]]:
    place = CropPlace(dataset, 2, crop_on)
    sampler = StepSampler(2, num_steps=3, global_batch_size=4, batch_size=2, rank=0, num_devices=1)
    loader = DataLoader(
        place.items, sampler=sampler, batch_size=2, num_workers=num_workers, collate_fn=place.collate,
        worker_init_fn=init_worker,
    )  # fmt: skip
    return [batch for step in StepLoader(loader, place.finish) for batch in step]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_device_equals_worker(dataset: KeyedDataset, num_workers: int) -> None:
    workers, device = batches(dataset, "worker", 0), batches(dataset, "device", num_workers)
    assert len(workers) == len(device) == 6  # 3 steps of 2 micro-batches
    for expected, batch in zip(workers, device, strict=True):
        assert batch.keys() == expected.keys() and batch["name"] == expected["name"]
        for name, value in expected.items():
            assert not isinstance(value, torch.Tensor) or torch.equal(batch[name], value), name
    assert not torch.equal(workers[0]["masked_level1"], workers[1]["masked_level1"])


@pytest.mark.parametrize("window", [(-1000, 1000), (-160.5, 239.5)])
def test_scaling_after_the_crop_equals_scaling_before(prepared: PreparedDataset, window: tuple[float, float]) -> None:
    after = KeyedDataset(volume_items(prepared), Compose(chain(window)), seed=3)
    read, crop, *_ = chain(window)
    scale = ScaleIntensityRanged("image", *window, 0.0, 1.0, clip=True)
    plain = MultiLevelCropMaskd(
        "image", LEVELS, (8, 8, 8), patch_size=4, num_children=2, content_range=50 / (window[1] - window[0])
    )
    before = KeyedDataset(volume_items(prepared), Compose([read, crop, scale, plain]), seed=3)
    for epoch in range(3):
        item, expected = after[epoch, 0], before[epoch, 0]
        assert item.keys() == expected.keys()
        for name, value in expected.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(item[name], value, rtol=0, atol=1e-6)


def test_workers_send_the_crop_as_it_is_stored(dataset: KeyedDataset) -> None:
    item = CropPlace(dataset, 2, "device").items[(4, 0)]
    assert item["image"].dtype == torch.int16 and item["image"].shape == (1, 8, 8, 8)
    assert item["image"].untyped_storage().nbytes() == 2 * 8**3, "not the volume it was cut from"
    assert item["crop_key"] == (4, 0)


def test_failure_on_the_device_names_the_volume(dataset: KeyedDataset) -> None:
    place = CropPlace(dataset, 2, "device")
    item = place.items[(0, 0)]
    del item["image"]
    with pytest.raises(ItemError, match=r"a\.nii\.gz: .*Key `image`"):
        place.finish([item])


def test_unknown_place_is_refused(dataset: KeyedDataset) -> None:
    with pytest.raises(ValueError, match=r"crop_on must be one of \('worker', 'device'\), got 'gpu'"):
        CropPlace(dataset, 2, "gpu")


def test_the_bundle_reads_and_crops_in_workers_and_does_the_rest_elsewhere() -> None:
    config = json.loads(CONFIG.read_text())["train"]
    names = [each["_target_"].split(".")[-1] for each in config["preprocessing"]["transforms"]]
    first = config["crops"]["num_read"]
    assert names[:first] == ["OpenPreparedd", "RandSpatialCropd"]
    assert names[first:] == ["MultiLevelCropMaskd"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_gives_the_same_crops_to_rounding(dataset: KeyedDataset) -> None:
    item = CropPlace(dataset, 2, "device", "cuda").items[(1, 0)]
    batch = CropPlace(dataset, 2, "device", "cuda").finish([item])
    expected = dataset[(1, 0)]
    for name in ("image_level1", "image_level2", "masked_level1", "masked_level2"):
        assert batch[name].is_cuda
        torch.testing.assert_close(batch[name][0].cpu(), expected[name])
