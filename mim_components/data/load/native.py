"""Scans on the grid of their file, with one file per channel if need be: the input of a segmentation.

Axes: scan (C, H, W, D).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor

from mim_components.data.check.voxels import check_channel
from mim_components.data.checked_reader import metadata, read_channels
from mim_components.data.find.sources import as_source
from mim_components.data.load.scans import volumes_at
from mim_components.data.read.headers import VolumeHeader, first_bytes, read_header
from mim_components.data.read.limits import AIR_ONLY, MAX_VOXELS, check_file, check_header
from mim_components.data.read.stored import to_int16
from mim_components.data.read.volume import cause_of, inspect_source
from mim_components.data.volumes import VolumeError, VolumeSource, suffix_of
from mim_components.utils.text import counted

logger = logging.getLogger(__name__)

# Metadata of a scan: its (first) file. With MONAI's `filename_or_obj`, Spacingd of MONAI 1.6 takes every item named
# `image_...` for metadata, and MONAI Label's `image_path` is a string.
SCAN_FILE = "scan_file"
WRITTEN_BY = "mim_components label map"  # `descrip` in the header of files written by SaveSegmentation


class NativeScans:
    """Scans on the grid of their file: a float32 MetaTensor `(C, H, W, D)` with its affine to RAS world in mm.

    Read as by `LoadImaged` with `CheckedReader`, with checks of the voxels: CT without tissue is read with a
    warning, a constant scan is refused. `EnsureChannelFirstd` may follow and changes nothing.

    Args:
        in_channels: input channels of the network.
        channels: endings of the file names of a scan with one file per channel, `<case>_<channel>`, in the order of
            the network's channels; `<case>_seg` is its label map and is skipped. Empty = all channels are in one file.
        modality: "CT" expects HU; "MR" any finite intensities.
        max_voxels: larger headers are refused.

    Raises:
        ValueError: the number of `channels` is not that of the network.

    Example:
        >>> scans = NativeScans(in_channels=2, channels=("t1", "t2"), modality="MR")
        >>> paths = [Path(f"a/x_{channel}.nii.gz") for channel in ("seg", "t2", "t1")]
        >>> case = scans.join([VolumeSource(path, (path,)) for path in paths])[0]
        >>> case.name, [path.name for path in case.files]
        ('x', ['x_t1.nii.gz', 'x_t2.nii.gz'])
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[str] = (),
        modality: str = "CT",
        max_voxels: int = MAX_VOXELS,
    ) -> None:
        if channels and len(channels) != in_channels:
            raise ValueError(f"channels must be one name for each of {in_channels=}, got {list(channels)}.")
        self.in_channels = in_channels
        self.channels = tuple(channels)
        self.modality = modality
        self.max_voxels = max_voxels

    def find(self, root: Path) -> list[VolumeSource]:
        """Find volumes at any depth, except label maps saved by an earlier run; files of one scan are joined."""
        found = volumes_at(root)
        sources = [source for source in found if not is_label_map(source)]
        if passed := len(found) - len(sources):
            logger.info("%s saved by an earlier run skipped.", counted(passed, "label map"))
        return self.join(sources) if self.channels else sources

    def join(self, sources: Sequence[VolumeSource]) -> list[VolumeSource]:
        """Join the files of a case to one source, in the order of the channels; files with other names stay."""
        names = "|".join(map(re.escape, self.channels))
        form = re.compile(rf"(?P<case>.+)_(?P<channel>{names}|seg)", re.IGNORECASE)
        cases: dict[Path, dict[str, VolumeSource]] = {}
        others: list[VolumeSource] = []
        for source in sources:
            named = form.fullmatch(source.name) if source.series_uid is None else None
            if named:
                cases.setdefault(source.path.parent / named["case"], {})[named["channel"].lower()] = source
            else:
                others.append(source)
        joined = []
        for path, parts in cases.items():
            if set(parts) == {"seg"}:
                others.append(parts["seg"])  # without a case: the check of its header reports it
                continue
            files = tuple(parts[name].path for name in map(str.lower, self.channels) if name in parts)
            joined.append(VolumeSource(path, files))
        return sorted([*joined, *others], key=str)

    def check(self, source: VolumeSource) -> Sequence[str]:
        """Check the headers; returns what is unusual about them, such as an unknown orientation."""
        headers = self._headers(source)
        if len(headers) == 1:
            return headers[0].notes
        files = zip(source.files, headers, strict=True)
        return [f"{path.name}: {note}" for path, header in files for note in header.notes]

    def read(self, source: VolumeSource | str | Path) -> MetaTensor:
        """Read all files completely."""
        source = as_source(source)
        headers = self._headers(source)
        parts = [VolumeSource(path, (path,)) for path in source.files] if len(headers) > 1 else [source]
        voxels, affine = read_channels(parts, headers, lambda raw, scale: self._check_voxels(raw, scale, source))
        meta = {SCAN_FILE: str(source.files[0]), **metadata(voxels, affine)}
        return MetaTensor(torch.from_numpy(voxels), meta=meta)

    def empty(self) -> MetaTensor:
        """One voxel per channel."""
        return MetaTensor(torch.zeros(self.in_channels, 1, 1, 1), meta=metadata(np.zeros((1, 1, 1, 1)), np.eye(4)))

    def _headers(self, source: VolumeSource) -> list[VolumeHeader]:
        """Checked headers of the files of a scan: one, or one per channel."""
        if source.series_uid is None and source.files != (source.path,):
            return self._headers_of_channels(source)
        for path in source.files:
            check_file(path)
        header = read_header(source)
        if self.in_channels > 1 and len(header.shape) < 4:
            names = ", ".join(f"*_{channel}" for channel in self.channels)
            raise VolumeError(
                f"{len(header.shape)}D, shape {header.shape}; expected a 4D volume of {self.in_channels} channels"
                + (f", or one file per channel: {names}" if names else "")
            )
        check_header(header, self.max_voxels, self.in_channels)
        return [header]

    def _headers_of_channels(self, source: VolumeSource) -> list[VolumeHeader]:
        present = {path.name[len(source.name) + 1 : -len(suffix_of(path))].lower() for path in source.files}
        if missing := [channel for channel in self.channels if channel.lower() not in present]:
            raise VolumeError(f"the files of channels {', '.join(missing)} are missing")
        headers: list[VolumeHeader] = []
        for path in source.files:
            try:
                headers.append(inspect_source(VolumeSource(path, (path,)), self.max_voxels))
            except (VolumeError, OSError) as error:
                raise VolumeError(f"{path.name}: {cause_of(error)}") from error
            if headers[-1].shape != headers[0].shape:
                first = source.files[0].name
                raise VolumeError(f"{path.name}: shape {headers[-1].shape}, {first} has {headers[0].shape}")
        return headers

    def _check_voxels(self, channel: np.ndarray, scale: tuple[float, float], source: VolumeSource) -> None:
        low, high = check_channel(channel, scale)
        if low == high and self.in_channels == 1:
            raise VolumeError(f"constant: every voxel is {low:g}")
        if low == high or (self.modality == "CT" and high < AIR_ONLY):
            logger.warning("%s: only values from %g to %g, nothing to see", source, low, high)
        elif self.modality == "CT":
            to_int16(channel, scale)  # raises if these are not HU


def is_label_map(source: VolumeSource) -> bool:
    """Whether a volume is a NIfTI file that `SaveSegmentation` wrote."""
    if not suffix_of(source.path).lower().startswith(".nii"):
        return False
    try:
        check_file(source.path)
        return WRITTEN_BY.encode() in first_bytes(source.path)[0]
    except (VolumeError, OSError):
        return False  # the check of the headers reports what is wrong
