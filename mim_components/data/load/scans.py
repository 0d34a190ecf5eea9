"""How scans are read that an inference works on, and those that are folders of slices.

Axes: scan (C, H, W, D), in the order of the file.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from mim_components.data.check.volume import AIR_ONLY, MAX_VOXELS, check_file, check_header
from mim_components.data.check.voxels import check_channel
from mim_components.data.checked_reader import metadata, read_channels
from mim_components.data.find.layouts.brats2021 import CHANNELS
from mim_components.data.find.sources import as_source
from mim_components.data.read.headers import VolumeHeader, read_header
from mim_components.data.read.slices import HU_ADVICE, holds_slices, hu_to_8_bit, read_slices, stack_slices
from mim_components.data.read.volume import cause_of, load_volume, to_int16
from mim_components.data.resample import as_spacing
from mim_components.data.volumes import BadVolume, BadVolumesError, VolumeError, VolumeSource, suffix_of

logger = logging.getLogger(__name__)


class LoadVolumed(MapTransform):
    """Read volumes in HU: a MetaTensor `(1, H, W, D)` int16, RAS, with its affine in mm.

    Adds `cause`: why the volume could not be read, unless `on_bad="stop"`; else "". An item that has one is not read.

    Args:
        keys: items that are a `VolumeSource` or a path.
        on_bad: "stop" raises for a volume that cannot be read; else it is made one voxel, and `cause` says why.
        max_voxels: larger headers are refused, and volumes that would be larger after resampling.
        spacing: that volumes are resampled to, mm along R, A and S; None = native voxels. The affine says where the
            new voxels lie.

    Raises:
        BadVolumesError: names the file and the cause.
        DataError: `spacing` is none.
    """

    def __init__(
        self,
        keys: KeysCollection,
        on_bad: str = "stop",
        max_voxels: int = MAX_VOXELS,
        spacing: Sequence[float] | None = None,
    ) -> None:
        super().__init__(keys)
        self.on_bad = on_bad
        self.max_voxels = max_voxels
        self.spacing = as_spacing(spacing)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read the volumes."""
        out = {**data, "cause": data.get("cause", "")}
        for key in self.key_iterator(out):
            if out["cause"]:
                out[key] = MetaTensor(torch.zeros(1, 1, 1, 1, dtype=torch.int16))
                continue
            try:
                voxels, affine = load_volume(out[key], self.max_voxels, self.spacing)
            except BadVolumesError as error:
                if self.on_bad == "stop":
                    raise
                out[key], out["cause"] = MetaTensor(torch.zeros(1, 1, 1, 1, dtype=torch.int16)), error.bad[0].cause
            else:
                out[key] = MetaTensor(torch.from_numpy(voxels).unsqueeze(0), affine=torch.as_tensor(affine))
        return out


def read_headers(source: VolumeSource, in_channels: int, max_voxels: int = MAX_VOXELS) -> list[VolumeHeader]:
    """Headers of the files of a scan, checked: one, or one per channel.

    Raises:
        VolumeError: the scan is refused by its headers.
        OSError: a file cannot be read.
    """
    if source.series_uid is not None or source.files == (source.path,):
        for path in source.files:
            check_file(path)
        header = read_header(source)
        if in_channels > 1 and len(header.shape) < 4:
            names = ", ".join(f"*_{channel}" for channel in CHANNELS)
            raise VolumeError(
                f"{len(header.shape)}D, shape {header.shape}; expected a 4D volume of {in_channels} channels, or one "
                f"file per channel: {names}"
            )
        check_header(header, max_voxels, in_channels)
        return [header]
    present = {str(path.name)[len(source.name) + 1 : -len(suffix_of(path))].lower() for path in source.files}
    if missing := [channel for channel in CHANNELS if channel not in present]:
        raise VolumeError(f"the files of channels {', '.join(missing)} are missing")
    headers = []
    for path in source.files:
        try:
            check_file(path)
            headers.append(read_header(VolumeSource(path, (path,))))
            check_header(headers[-1], max_voxels)
        except (VolumeError, OSError) as error:
            raise VolumeError(f"{path.name}: {cause_of(error)}") from error
        if headers[-1].shape != headers[0].shape:
            raise VolumeError(f"{path.name}: shape {headers[-1].shape}, {source.files[0].name} has {headers[0].shape}")
    return headers


class LoadScand(MapTransform):
    """Read scans on the grid of their file: a float32 MetaTensor `(C, H, W, D)` with its affine to RAS world in mm.

    In place of `LoadImaged`, which does not read DICOM series of given files, does not notice damage inside compressed
    files, and cannot leave a scan out. `EnsureChannelFirstd` may follow and changes nothing. CT without tissue is read
    with a warning, a constant scan is refused. Adds `cause`: why the scan could not be read, unless `on_bad="stop"`;
    else "". An item that has one is not read.

    Args:
        keys: items that are a `VolumeSource` or a path.
        in_channels: of the network.
        modality: "CT" expects HU; "MR" anything finite.
        on_bad: "stop" raises for a scan that cannot be read; else it is made one voxel.
        max_voxels: larger headers are refused.

    Raises:
        BadVolumesError: names the file and the cause.
    """

    def __init__(
        self,
        keys: KeysCollection,
        in_channels: int = 1,
        modality: str = "CT",
        on_bad: str = "stop",
        max_voxels: int = MAX_VOXELS,
    ) -> None:
        super().__init__(keys)
        self.in_channels = in_channels
        self.modality = modality
        self.on_bad = on_bad
        self.max_voxels = max_voxels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read the scans."""
        out = {**data, "cause": data.get("cause", "")}
        for key in self.key_iterator(out):
            source = as_source(out[key])
            try:
                if out["cause"]:
                    raise VolumeError(out["cause"])
                out[key] = self._read(source)
            except (VolumeError, OSError) as error:
                bad = BadVolume(str(source), cause_of(error))
                if self.on_bad == "stop":
                    raise BadVolumesError([bad], 1) from error
                out[key] = _as_tensor(np.zeros((self.in_channels, 1, 1, 1), np.float32), np.eye(4), source)
                out["cause"] = bad.cause
        return out

    def _read(self, source: VolumeSource) -> MetaTensor:
        headers = read_headers(source, self.in_channels, self.max_voxels)
        parts = [VolumeSource(path, (path,)) for path in source.files] if len(headers) > 1 else [source]
        voxels, affine = read_channels(parts, headers, lambda raw, scale: self._check(raw, scale, source))
        return _as_tensor(voxels, affine, source)

    def _check(self, channel: np.ndarray, scale: tuple[float, float], source: VolumeSource) -> None:
        low, high = check_channel(channel, scale)
        if low == high and self.in_channels == 1:
            raise VolumeError(f"constant: every voxel is {low:g}")
        if low == high or (self.modality == "CT" and high < AIR_ONLY):
            logger.warning("%s: values from %g to %g only, nothing to be seen there", source, low, high)
        elif self.modality == "CT":
            to_int16(channel, scale)  # says so when these are no HU


def _as_tensor(voxels: np.ndarray, affine: np.ndarray, source: VolumeSource) -> MetaTensor:
    meta = {"filename_or_obj": str(source.files[0]), **metadata(voxels, affine)}
    return MetaTensor(torch.from_numpy(voxels), meta=meta)


def read_scan(path: str | Path, hu_window: Sequence[float] | None = None) -> np.ndarray:
    """Read a folder of slices, or with `hu_window` a CT volume (NIfTI, MetaImage, NRRD, DICOM series).

    Args:
        path: folder of the slices or of a DICOM series, or a volume file.
        hu_window: HU that become 0 and 255.

    Returns:
        uint8 (H, W, D).

    Raises:
        VolumeError: a slice cannot be used, or there are none; names the slice.
        BadVolumesError: a CT volume cannot be used.
    """
    path = Path(path)
    if hu_window is not None and not holds_slices(path):
        voxels, _ = load_volume(path)
        return hu_to_8_bit(voxels, hu_window)
    if path.is_file():
        raise VolumeError(f"is a file, expected a folder of slices; {HU_ADVICE}")
    return stack_slices(read_slices(path))


class LoadEightBitScand(MapTransform):
    """Read scans: uint8 `(1, H, W, D)`, axes as in `mim_components.data.read.slices`.

    An item with a `cause` is known to be bad: it becomes one voxel.

    Args:
        keys: items that are the path of a folder of slices or, with `hu_window`, of a CT volume.
        hu_window: HU that become 0 and 255; None = slices only.

    Raises:
        BadVolumesError: names the scan, the slice and the cause.
    """

    def __init__(self, keys: KeysCollection, hu_window: Sequence[float] | None = None) -> None:
        super().__init__(keys)
        self.hu_window = hu_window

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read the scans."""
        out = dict(data)
        for key in self.key_iterator(out):
            if out.get("cause"):
                out[key] = torch.zeros(1, 1, 1, 1, dtype=torch.uint8)
                continue
            try:
                volume = read_scan(Path(out[key]), self.hu_window)
            except VolumeError as error:
                raise BadVolumesError([BadVolume(str(out[key]), str(error))], 1) from error
            out[key] = torch.from_numpy(volume).unsqueeze(0)
        return out
