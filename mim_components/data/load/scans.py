"""Input scans of an inference: how they are found, checked by their headers, and read.

One class for each kind of input (`NativeScans` in native.py), and one transform, `CheckedLoadImaged`, for all of them.
Axes: scan (C, H, W, D).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import ImageReader, MetaTensor
from monai.transforms import LoadImaged
from torch import Tensor

from mim_components.data.cases import Case
from mim_components.data.check.slices import SliceFolderChecker
from mim_components.data.checked_reader import CheckedReader
from mim_components.data.find.sources import as_source
from mim_components.data.find.walk import describe_files, find_volumes, walk
from mim_components.data.names import natural_key
from mim_components.data.read.limits import MAX_VOXELS
from mim_components.data.read.slices import HU_ADVICE, holds_slices, hu_to_8_bit, is_slice, read_slices, stack_slices
from mim_components.data.read.volume import cause_of, decode_volume, inspect_source
from mim_components.data.resample import Spacing, as_spacing
from mim_components.data.volumes import (
    BadVolume,
    BadVolumesError,
    DataError,
    NoVolumesError,
    VolumeError,
    VolumeSource,
    suffix_of,
)
from mim_components.transforms.intensity import check_modality
from mim_components.utils.text import counted


class Scans(Protocol):
    """The kind of scan that a task takes."""

    def find(self, root: Path) -> list[VolumeSource]:
        """Scans in a folder, or the one at a path.

        Raises:
            NoVolumesError: a folder holds none.
        """

    def check(self, source: VolumeSource) -> Sequence[str]:
        """Notes about a scan that is about to be read.

        Raises:
            DataError: the scan is unfit.
            OSError: a file cannot be read.
        """

    def read(self, source: VolumeSource | str | Path) -> Tensor:
        """Voxels `(C, H, W, D)`.

        Raises:
            DataError: the scan is unfit.
            OSError: a file cannot be read.
        """

    def empty(self) -> Tensor:
        """One voxel, in place of a scan that cannot be read."""


class CheckedLoadImaged(LoadImaged):
    """Read scans, as a subclass of `LoadImaged` that MONAI Label and MONAI Deploy recognise as the loader.

    An item with a `cause` is known to be bad, and becomes one voxel. An image in memory stays unchanged.

    Args:
        keys: items that are a `VolumeSource` or a path, or an image as tensor or array.
        scans: kind of scan: `CTScans`, `NativeScans` or `SliceScans`.

    Raises:
        BadVolumesError: a scan cannot be read; names it and the cause.

    Example:
        >>> from mim_components.data import NativeScans
        >>> load = CheckedLoadImaged("image", NativeScans(in_channels=4))
        >>> load({"image": "damaged.nii.gz", "cause": "truncated"})["image"].shape
        torch.Size([4, 1, 1, 1])
    """

    def __init__(self, keys: KeysCollection, scans: Scans) -> None:
        super().__init__(keys, reader=CheckedReader)
        self.scans = scans

    def __call__(self, data: Mapping[Hashable, Any], reader: ImageReader | None = None) -> dict[Hashable, Any]:
        """Read the scans; MONAI's `reader` is not used."""
        out = dict(data)
        for key in self.key_iterator(out):
            if out.get("cause"):
                out[key] = self.scans.empty()
            elif not isinstance(out[key], (Tensor, np.ndarray)):
                out[key] = self._read(out[key])
        return out

    def _read(self, source: VolumeSource | str | Path) -> Tensor:
        try:
            return self.scans.read(source)
        except (VolumeError, OSError) as error:
            raise BadVolumesError([BadVolume(str(source), cause_of(error))], 1) from error


class CTScans:
    """CT in HU with axes reoriented to RAS: a MetaTensor `(1, H, W, D)` int16 with its affine in mm.

    Args:
        max_voxels: larger headers are refused, and volumes that would be larger after resampling.
        spacing: target spacing, mm along R, A and S; None = native voxels. The affine is that of the new voxels.

    Raises:
        DataError: `spacing` is invalid.

    Example:
        >>> CTScans(spacing=(1.5, 1.5, 2)).spacing
        (1.5, 1.5, 2.0)
    """

    modality = "ct"

    def __init__(self, max_voxels: int = MAX_VOXELS, spacing: Sequence[float] | None = None) -> None:
        self.max_voxels = max_voxels
        self.spacing = as_spacing(spacing)

    def find(self, root: Path) -> list[VolumeSource]:
        """Find volumes at any depth."""
        return volumes_at(root, self.modality)

    def check(self, source: VolumeSource) -> Sequence[str]:
        """Check the header; returns what is unusual about it, such as an unknown orientation."""
        return inspect_source(source, self.max_voxels).notes

    def read(self, source: VolumeSource | str | Path) -> MetaTensor:
        """Read a volume completely."""
        voxels, affine = load_volume(source, self.max_voxels, self.spacing, self.modality)
        return MetaTensor(torch.from_numpy(voxels).unsqueeze(0), affine=torch.as_tensor(affine))

    def empty(self) -> MetaTensor:
        """One voxel."""
        return MetaTensor(torch.zeros(1, 1, 1, 1, dtype=torch.int16))


class MRScans(CTScans):
    """MR scans for an encoder pre-trained on MR: as `CTScans`, but in per mille, see `to_per_mille`.

    Args:
        max_voxels: as in `CTScans`.
        spacing: as in `CTScans`.

    Example:
        >>> MRScans(spacing=(1, 1, 1)).modality
        'mr'
    """

    modality = "mr"


def scans_of(modality: str, max_voxels: int = MAX_VOXELS, spacing: Sequence[float] | None = None) -> CTScans:
    """Scans as an encoder of a modality takes them, "ct" or "mr".

    Raises:
        ValueError: unknown modality.

    Example:
        >>> type(scans_of("ct")).__name__, type(scans_of("mr")).__name__
        ('CTScans', 'MRScans')
    """
    check_modality(modality)
    return (MRScans if modality == "mr" else CTScans)(max_voxels, spacing)


def load_volume(
    source: VolumeSource | str | Path,
    max_voxels: int = MAX_VOXELS,
    spacing: Spacing | None = None,
    modality: str = "ct",
) -> tuple[np.ndarray, np.ndarray]:
    """Read a volume with axes reoriented to RAS: CT in HU, MR in per mille, see `to_per_mille`.

    Args:
        source: a volume source, a file, or the folder of one DICOM series.
        max_voxels: largest number of voxels accepted.
        spacing: target spacing, mm along R, A and S, see `resample`; None = native voxels.
        modality: "ct" or "mr".

    Returns:
        int16 voxels (H, W, D) and the 4x4 affine from voxel index to RAS world in mm.

    Raises:
        BadVolumesError: the volume cannot be used; names the file and the cause.
    """
    source = as_source(source, modality)
    try:
        decoded = decode_volume(source, inspect_source(source, max_voxels), modality).at(spacing, max_voxels)
    except (DataError, OSError) as error:
        raise BadVolumesError([BadVolume(str(source), cause_of(error))], 1) from error
    return decoded.voxels, decoded.affine


class SliceScans:
    """Folders of slices and, with `hu_window`, CT volumes: uint8 `(1, H, W, D)`, axes as in `data.read.slices`.

    Args:
        hu_window: HU that become 0 and 255; None = only folders of slices.

    Example:
        >>> SliceScans(hu_window=(-1000, 400)).empty().shape
        torch.Size([1, 1, 1, 1])
    """

    def __init__(self, hu_window: Sequence[float] | None = None) -> None:
        self.hu_window = hu_window

    def find(self, root: Path) -> list[VolumeSource]:
        """Find folders with slices, and CT volumes, in natural order of their paths."""
        if not root.is_dir():
            return [VolumeSource(root, (root,))]  # the check reports what is wrong
        tree = walk(root)
        found = {path.parent for path in tree.files if is_slice(path.name)}
        volumes = [path for path in tree.files if suffix_of(path)]
        if self.hu_window is not None:
            found |= _paths_of_volumes(root)
        elif volumes and not found:
            found_ct = counted(len(volumes), "CT volume")
            raise NoVolumesError(f"{root}: holds {found_ct}, expected folders of slices; {HU_ADVICE}.")
        found.update(tree.locked)  # the check refuses them
        if not found:
            raise NoVolumesError(f"{root}: no slices (.png, .jpg) found in {describe_files(tree.files)}.")
        return [VolumeSource(path, (path,)) for path in sorted(found, key=lambda path: natural_key(str(path)))]

    def check(self, source: VolumeSource) -> Sequence[str]:
        """Decode all slices, or the volume."""
        return SliceFolderChecker(hu_window=self.hu_window)(Case(str(source), (source.path,))).notes

    def read(self, source: VolumeSource | str | Path) -> Tensor:
        """Read the slices, or the volume through the window."""
        path = source.path if isinstance(source, VolumeSource) else Path(source)
        if self.hu_window is not None and not holds_slices(path):
            voxels = hu_to_8_bit(load_volume(path)[0], self.hu_window)
        elif path.is_file():
            raise VolumeError(f"is a file, expected a folder of slices; {HU_ADVICE}")
        else:
            voxels = stack_slices(read_slices(path))
        return torch.from_numpy(voxels).unsqueeze(0)

    def empty(self) -> Tensor:
        """One voxel."""
        return torch.zeros(1, 1, 1, 1, dtype=torch.uint8)


def volumes_at(root: Path, modality: str = "ct") -> list[VolumeSource]:
    """Volumes in a folder, or the one at a path, which need not exist: its check reports that."""
    return list(find_volumes(root, modality)) if root.is_dir() else [VolumeSource(root, (root,))]


def _paths_of_volumes(root: Path) -> set[Path]:
    try:
        return {source.path for source in find_volumes(root)}
    except NoVolumesError:
        return set()
