"""Reconstruction pictures during training: one volume per level of a scan, at intervals and at the end."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import Tensor

from mim_components.data.load.dataset import KeyedDataset
from mim_components.data.volumes import PreparedVolume
from mim_components.handlers.metrics import untimed
from mim_components.networks.mim import MiM
from mim_components.run.folder import RunFolder
from mim_components.transforms.intensity import CT, IntensityScale, hu_to_unit, unit_to_hu
from mim_components.visualize.boxes import boxes_figure
from mim_components.visualize.reconstruction import LevelPicture, save_reconstruction_pictures
from mim_components.visualize.sheet import save_figure

logger = logging.getLogger(__name__)

PICTURE_EPOCH = -1  # crops of the pictures have a key of their own


class PictureHandler:
    """Draw input, masked input, reconstruction and error of every level and, once, where the volumes were cut.

    Args:
        folder: run folder; PNG files go into its folder `pictures` and to its tracker.
        network: network without the wrapper for several devices.
        dataset: dataset of the training; the pictures' crop is drawn with a key of its own, so it stays the same.
        level_sizes: native sizes of the levels, voxels.
        interval: steps between pictures.
        scale: meaning of the prepared values, and the window that the dataset scaled to 0 and 1.
        picture_window: grey window of the pictures, prepared values; None = that of the scale.
        volume: index of the scan.
        standardized: the network predicts standardised tokens.
        error_range: absolute error of the last colour; None = that of the scale.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from monai.transforms import Compose
        >>> from mim_components.data import OpenPreparedd
        >>> from mim_components.transforms import MultiLevelCropMaskd
        >>> crop = MultiLevelCropMaskd("image", [(16, 16, 16)], (16, 16, 16), patch_size=8, window=(-1000, 1000))
        >>> network = MiM(input_size=(16, 16, 16), preset="nano", num_levels=1)
        >>> trainer = Engine(lambda engine, batch: None)
        >>> with TemporaryDirectory() as place:
        ...     file = Path(place, "ct.npy")
        ...     np.save(file, np.zeros((16, 16, 16), np.int16))
        ...     volume = PreparedVolume("ct", "ct.nii", file, (16, 16, 16), (1.0, 1.0, 1.0), np.eye(4), "", 0)
        ...     dataset = KeyedDataset([{"image": volume}], Compose([OpenPreparedd("image"), crop]))
        ...     PictureHandler(RunFolder(place), network, dataset, [(16, 16, 16)], interval=9).attach(trainer)
        ...     _ = trainer.run(range(1))  # the last step gets pictures too
        ...     [path.name for path in Path(place, "pictures").iterdir()]
        ['step_00000001_level1.png']
    """

    def __init__(
        self,
        folder: RunFolder,
        network: MiM,
        dataset: KeyedDataset,
        level_sizes: Sequence[Sequence[int]],
        interval: int = 1000,
        scale: IntensityScale = CT,
        picture_window: Sequence[float] | None = None,
        volume: int = 0,
        standardized: bool = False,
        error_range: float | None = None,
    ) -> None:
        self.folder = folder
        self.output_dir = folder.path / "pictures"
        self.network = network
        self.dataset = dataset
        self.level_sizes = [tuple(size) for size in level_sizes]
        self.interval = interval
        self.scale = scale
        low, high = picture_window or scale.picture_window
        self.picture_window = (low, high)
        self.volume = volume
        self.standardized = standardized
        self.error_range = error_range or scale.error_range
        self._sample: dict[str, Any] | None = None
        self._drawn = -1

    def attach(self, engine: Engine) -> None:
        """Register with a trainer; the first process draws."""
        if idist.get_rank() == 0 and self.interval:
            engine.add_event_handler(Events.STARTED, self.draw_boxes)
            engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.interval), self.draw)
            engine.add_event_handler(Events.COMPLETED, self.draw)

    @property
    def _num_children(self) -> int:
        return len(self.sample["image_level2"])

    @property
    def _air(self) -> float:
        return float(hu_to_unit(np.array(self.scale.air), self.scale.window))

    @property
    def sample(self) -> dict[str, Any]:
        """The crop of the pictures; drawn once."""
        if self._sample is None:
            self._sample = self.dataset[(PICTURE_EPOCH, self.volume % len(self.dataset))]
        return self._sample

    @property
    def scan(self) -> PreparedVolume:
        """The scan of the pictures."""
        return self.dataset.data[self.volume % len(self.dataset)]["image"]

    @untimed
    def draw(self, engine: Engine) -> list[Path]:
        """Reconstruct and draw one volume of every level; returns the files, none if they do not fit on the disk."""
        prefix = self.output_dir / f"step_{engine.state.iteration:08d}"
        if self._drawn == engine.state.iteration:  # the last step may also be one of the interval
            return []
        self._drawn = engine.state.iteration
        device = next(self.network.parameters()).device
        images = torch.stack([self._shown("image", level) for level in self._levels()]).to(device)
        masked = torch.stack([self._shown("masked", level) for level in self._levels()]).to(device)
        was_training = self.network.training
        self.network.eval()
        with torch.no_grad():
            filled = self.network.reconstruct(images, masked, self.standardized)
        self.network.train(was_training)
        pictures = [self._picture(level, images[level - 1], filled[level - 1]) for level in self._levels()]
        title = f"{self.scan.name}, step {engine.state.iteration} of {engine.state.epoch_length}"
        with self.folder.unless_full("pictures"):
            files = save_reconstruction_pictures(pictures, prefix, title, self.picture_window, self.error_range)
            return self._keep(files)
        return []

    def draw_boxes(self, engine: Engine) -> list[Path]:
        """Draw the boxes of the inner levels in level 1; returns the file, none if it exists already."""
        path = self.output_dir / "crops.png"
        if path.exists() or len(self.level_sizes) == 1:
            return []
        level1_start = self.sample["start_level1"][0]
        boxes = {
            level: np.stack([
                np.stack([(start - level1_start).numpy(), np.array(self.level_sizes[level - 1])])
                for start in self.sample[f"start_level{level}"]
            ])
            for level in list(self._levels())[1:]
        }  # fmt: skip
        picture = self._picture(1, self._shown("image", 1), self._shown("image", 1))
        figure = boxes_figure(
            picture.image,
            picture.spacing,
            picture.native_size,
            boxes,
            masked=picture.masked,
            title=f"{self.scan.name}: volumes of the inner levels inside level 1",
            window=self.picture_window,
            start=picture.start,
            scan_size=picture.scan_size,
            scale=self.scale,
        )
        with self.folder.unless_full("pictures"):
            return self._keep([save_figure(figure, path)])
        return []

    def _levels(self) -> range:
        return range(1, len(self.level_sizes) + 1)

    def _shown(self, name: str, level: int) -> Tensor:
        """The volume drawn for a level: at each level, the child with the most tissue of the volume drawn above."""
        index = 0
        for inner in range(2, level + 1):
            volumes = self.sample[f"image_level{inner}"]
            children = volumes[index * self._num_children : (index + 1) * self._num_children]
            tissue = (children > self._air).flatten(1).sum(1)
            index = index * self._num_children + int(tissue.argmax())
        return self.sample[f"{name}_level{level}"][index]

    def _picture(self, level: int, image: Tensor, filled: Tensor) -> LevelPicture:
        native = self.level_sizes[level - 1]
        size = image.shape[1:]
        x, y, z = (s * n / k for s, n, k in zip(self.scan.spacing, native, size, strict=True))
        i, j, k = (int(each) for each in self._start_in_scan(level))
        return LevelPicture(
            level=level,
            image=unit_to_hu(image[0].cpu().numpy(), self.scale.window),
            reconstruction=unit_to_hu(filled[0].float().cpu().numpy(), self.scale.window),
            masked=self._shown("masked", level).view(self.network.grid).numpy(),
            spacing=(x, y, z),
            start=(i, j, k),
            native_size=(native[0], native[1], native[2]),
            scan_size=self.scan.shape,
            scale=self.scale,
        )

    def _start_in_scan(self, level: int) -> np.ndarray:
        """First voxel of the drawn volume in the prepared scan; negative where level 1 was padded."""
        affine = np.linalg.inv(np.asarray(self.scan.affine)) @ self.sample["affine_level1"].numpy()
        inside = (self._shown("start", level) - self._shown("start", 1)).numpy()
        return np.rint(affine[:3, 3]).astype(int) + inside

    def _keep(self, files: Sequence[Path]) -> list[Path]:
        for path in files:
            if self.folder.tracker is not None:
                self.folder.tracker.log_artifact(path, "pictures")
        logger.info("Pictures: %s", ", ".join(str(path) for path in files))
        return list(files)
