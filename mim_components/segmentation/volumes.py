"""Which scans a segmentation works on, and how it reads them: on their own grid, in their own intensities.

Axes: scan (C, H, W, D), in the order of the file.
"""

from __future__ import annotations

import logging
import re
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
from mim_components.data.find.walk import find_volumes
from mim_components.data.inputs import given_path, items_of
from mim_components.data.read.headers import VolumeHeader, first_bytes, read_header
from mim_components.data.read.volume import as_source, cause_of, to_int16
from mim_components.data.volumes import BadVolume, BadVolumesError, VolumeError, VolumeSource, suffix_of

logger = logging.getLogger(__name__)

WRITTEN_BY = "mim_components label map"  # `descrip` in the header of what SaveSegmentation writes
_CHANNEL = re.compile(rf"(?P<case>.+)_(?P<channel>{'|'.join(CHANNELS)}|seg)", re.IGNORECASE)


def segmentation_items(
    dataset_dir: str | Path | None,
    output_dir: str | Path,
    in_channels: int = 1,
    on_bad: str = "stop",
    max_voxels: int = MAX_VOXELS,
) -> list[dict[str, Any]]:
    """Find the scans and check all headers.

    Label maps that were saved by an earlier run are passed over. A scan of four channels is one 4D file, or four files
    `<case>_flair`, `_t1`, `_t1ce`, `_t2` in one folder, as BraTS 2021 has them.

    Args:
        dataset_dir: folder to search to any depth, or one file.
        output_dir: where results go; nothing in it is a scan.
        in_channels: of the network.
        on_bad: "stop" raises when headers are bad, naming all; "exclude" leaves those scans out; "report" hands them on
            with their cause.
        max_voxels: larger headers are refused.

    Returns:
        Per scan `image` (a `VolumeSource`), `source` (the same, as text), `name` (for files, no two alike) and `cause`
        (why it is bad, else "").

    Raises:
        DataError: nothing is given, no scan was found, or headers are bad.
    """
    root = given_path(dataset_dir, on_bad)
    found = list(find_volumes(root)) if root.is_dir() else [as_source(root)]
    sources = [source for source in found if not is_label_map(source)]
    if passed := len(found) - len(sources):
        logger.info("%d label maps that an earlier run saved are passed over.", passed)
    if in_channels == len(CHANNELS):
        sources = join_channels(sources)
    return items_of(sources, root, output_dir, lambda source: read_headers(source, in_channels, max_voxels), on_bad)


def is_label_map(source: VolumeSource) -> bool:
    """Whether a volume is a NIfTI file that `SaveSegmentation` wrote."""
    if not suffix_of(source.path).lower().startswith(".nii"):
        return False
    try:
        check_file(source.path)
        return WRITTEN_BY.encode() in first_bytes(source.path)[0]
    except (VolumeError, OSError):
        return False  # the check of the headers says what is wrong with it


def join_channels(sources: Sequence[VolumeSource]) -> list[VolumeSource]:
    """Make one volume of the files of a case, in the order FLAIR, T1, T1 with contrast, T2.

    A case is named by what comes before the channel. Its label map `<case>_seg` is dropped. Files of other names stay.

    Example:
        >>> paths = [Path(f"a/x_{channel}.nii.gz") for channel in ("seg", "t2", "t1ce", "t1", "flair")]
        >>> case = join_channels([VolumeSource(path, (path,)) for path in paths])[0]
        >>> case.name, [path.name for path in case.files][:2]
        ('x', ['x_flair.nii.gz', 'x_t1.nii.gz'])
    """
    cases: dict[Path, dict[str, VolumeSource]] = {}
    others: list[VolumeSource] = []
    for source in sources:
        named = _CHANNEL.fullmatch(source.name) if source.series_uid is None else None
        if named:
            cases.setdefault(source.path.parent / named["case"], {})[named["channel"].lower()] = source
        else:
            others.append(source)
    joined = []
    for path, parts in cases.items():
        if set(parts) == {"seg"}:
            others.append(parts["seg"])
            continue
        files = tuple(parts[channel].path for channel in CHANNELS if channel in parts)
        joined.append(VolumeSource(path, files))
    return sorted([*joined, *others], key=str)


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
