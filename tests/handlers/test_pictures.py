"""Pictures of a training: the positions that they state, and the volumes that they show."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandSpatialCropd, ScaleIntensityRanged, SpatialPadd

from mim_components.data.load.dataset import KeyedDataset, OpenPreparedd
from mim_components.data.volumes import PreparedVolume
from mim_components.handlers.pictures import PICTURE_EPOCH, PictureHandler
from mim_components.networks import MiM
from mim_components.run.folder import RunFolder
from mim_components.transforms.crop import MultiLevelCropMaskd
from mim_components.transforms.intensity import IntensityScale
from mim_components.utils.files import FullDiskError

LEVELS = [(16, 16, 16), (8, 8, 8)]
SHAPE = (12, 20, 24)  # thinner than level 1 along the first axis
RANGE = (0.0, 2.0**14)  # of voxel numbers; exact in float32
SCALE = IntensityScale(hu_window=RANGE)


def make_dataset(folder: Path, level_sizes: list[tuple[int, ...]] = LEVELS, num_volumes: int = 1) -> KeyedDataset:
    """Scans in which every voxel holds its own number, passed through the chain of the bundle."""
    items = []
    for number in range(num_volumes):
        np.save(folder / f"{number}.npy", np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE))
        affine = np.array([[0.0, -2, 0, 5], [3, 0, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1]])  # rotated, and moved
        volume = PreparedVolume(
            f"scan_{number}", f"scan_{number}.nii.gz", folder / f"{number}.npy", SHAPE, (3.0, 2.0, 4.0), affine, "", 0
        )
        items.append({"image": volume, "name": volume.source})
    chain = Compose([
        OpenPreparedd("image"),
        RandSpatialCropd("image", roi_size=level_sizes[0], random_size=False),
        ScaleIntensityRanged("image", a_min=RANGE[0], a_max=RANGE[1], b_min=0.0, b_max=1.0, clip=True),
        SpatialPadd("image", spatial_size=level_sizes[0]),
        MultiLevelCropMaskd("image", level_sizes, (16, 16, 16), patch_size=8, num_children=2),
    ])  # fmt: skip
    return KeyedDataset(items, chain, seed=3)


@pytest.fixture(scope="module")
def network() -> MiM:
    torch.manual_seed(0)
    return MiM(input_size=(16, 16, 16), preset="nano", num_levels=2, projection_dim=8)


def run_in(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.release()
    return folder


def make_handler(folder: Path, network: MiM, **changes: Any) -> PictureHandler:
    dataset = changes.pop("dataset", None) or make_dataset(folder)
    return PictureHandler(run_in(folder), network, dataset, LEVELS, scale=SCALE, **changes)


def test_start_of_level_1_is_negative_where_the_scan_was_padded(tmp_path: Path, network: MiM) -> None:
    handler = make_handler(tmp_path, network)
    start = handler._start_in_scan(1)
    assert start[0] == -2  # 12 voxels padded to 16: 2 on either side
    image = handler.sample["image_level1"][0, 0] * RANGE[1]  # native size = input size: not resized
    assert torch.equal(image[:2], torch.zeros(2, 16, 16)) and torch.equal(image[14:], torch.zeros(2, 16, 16))
    scan = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    inside = scan[:, start[1] : start[1] + 16, start[2] : start[2] + 16]
    assert inside.shape == (12, 16, 16) and np.array_equal(image[2:14].numpy(), inside)


def test_start_of_level_2_is_the_voxel_that_its_corner_shows(tmp_path: Path, network: MiM) -> None:
    handler = make_handler(tmp_path, network)
    compared = 0
    for epoch in range(8):
        handler._sample = handler.dataset[(epoch, 0)]
        start = handler._start_in_scan(2)
        if start[0] >= 0:  # otherwise it begins in the padding
            compared += 1
            # interpolated without aligned corners, the first voxel is the native one
            shown = float(handler._shown("image", 2)[0, 0, 0, 0]) * RANGE[1]
            assert round(shown) == np.ravel_multi_index(tuple(start), SHAPE)
    assert compared > 2


def test_spacing_and_size_are_those_of_the_native_volume(tmp_path: Path, network: MiM) -> None:
    handler = make_handler(tmp_path, network)
    outer = handler._picture(1, handler._shown("image", 1), handler._shown("image", 1))
    inner = handler._picture(2, handler._shown("image", 2), handler._shown("image", 2))
    assert outer.spacing == (3.0, 2.0, 4.0) and outer.native_size == (16, 16, 16)
    # 8 voxels of 3, 2 and 4 mm are shown by 16
    assert inner.spacing == (1.5, 1.0, 2.0) and inner.native_size == (8, 8, 8)
    assert outer.start == tuple(handler._start_in_scan(1)) and outer.masked.shape == (2, 2, 2)
    assert outer.image.max() == pytest.approx(float(handler.sample["image_level1"].max()) * RANGE[1])


def test_child_with_most_tissue_of_the_one_drawn_above(tmp_path: Path, network: MiM) -> None:
    handler = make_handler(tmp_path, network)
    handler.scale = IntensityScale()
    tissue = {1: [9], 2: [3, 5], 3: [7, 8, 2, 4]}  # children of volume 1 of level 2: 2 and 3
    volumes = {}
    for level, counts in tissue.items():
        images = torch.zeros(len(counts), 1, 16, 16, 16)
        for image, count in zip(images, counts, strict=True):
            image.view(-1)[:count] = 0.5
            image.view(-1)[count:100] = 0.01  # noise of air below -950 HU: no tissue
        volumes[f"image_level{level}"] = images
        volumes[f"masked_level{level}"] = torch.arange(len(counts))
    handler._sample = volumes
    assert [int(handler._shown("masked", level)) for level in (1, 2, 3)] == [0, 1, 3]


def test_same_crop_whatever_the_training_draws(tmp_path: Path, network: MiM) -> None:
    dataset = make_dataset(tmp_path, num_volumes=2)
    handler = make_handler(tmp_path, network, dataset=dataset, volume=3)  # 3 of 2 volumes: 1
    assert handler.scan.name == "scan_1"
    dataset[(5, 0)]
    again = dataset[(PICTURE_EPOCH, 1)]
    assert torch.equal(handler.sample["image_level2"], again["image_level2"])
    assert torch.equal(handler.sample["masked_level1"], again["masked_level1"])


def test_files_and_artifacts(tmp_path: Path, network: MiM) -> None:
    kept: list[Any] = []
    tracker: Any = SimpleNamespace(log_artifact=lambda path, folder: kept.append((path, folder)))
    handler = make_handler(tmp_path, network)
    handler.folder.tracker = tracker
    engine: Any = SimpleNamespace(state=SimpleNamespace(iteration=20, epoch_length=40, output={"loss": 0}))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    files = [*handler.draw_boxes(engine), *handler.draw(engine)]
    assert [path.name for path in files] == ["crops.png", "step_00000020_level1.png", "step_00000020_level2.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files)
    assert kept == [(path, "pictures") for path in files]
    assert network.training and all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    engine.state.output = None  # continued after the last step: nothing was trained since
    assert handler.draw_boxes(engine) == [] and handler.draw(engine) == []


def test_full_disk_costs_the_pictures_where_it_may(
    tmp_path: Path, network: MiM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, write: Any) -> Path:
        raise OSError(28, f"cannot write {path}: No space left on device")

    handler = make_handler(tmp_path, network)
    monkeypatch.setattr("mim_components.utils.files.write_safely", full)
    engine: Any = SimpleNamespace(state=SimpleNamespace(iteration=4, epoch_length=9, output={}))
    with pytest.raises(FullDiskError, match="cannot write .*crops.png, which needs .* Make room; the same command"):
        handler.draw_boxes(engine)
    handler.folder.on_full_disk = "continue"
    assert handler.draw_boxes(engine) == [] and handler.draw(engine) == []
    assert len(handler.folder.notes) == 1  # said once
    assert handler.folder.notes[0].endswith("The training continues; pictures may be missing from now on.")
    assert network.training


def test_one_level_has_no_boxes(tmp_path: Path, network: MiM) -> None:
    dataset = make_dataset(tmp_path, [(16, 16, 16)])
    handler = PictureHandler(run_in(tmp_path), network, dataset, [(16, 16, 16)], scale=SCALE)
    engine: Any = SimpleNamespace(state=SimpleNamespace(iteration=1, epoch_length=1, output={}))
    assert handler.draw_boxes(engine) == []
    assert handler._start_in_scan(1)[0] == -2
