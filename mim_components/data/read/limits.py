"""Limits of what is read as a volume: first the file and its header, then the voxels.

A check refuses only what cannot be a CT in HU. Anything merely unusual gives a note, so that crops of CT, small volumes
and odd spacings pass.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np

from mim_components.data.read.headers import VolumeHeader
from mim_components.data.read.stream import check_claimed_size
from mim_components.data.volumes import LabelMapError, VolumeError, per_axis
from mim_components.utils.text import counted

MAX_VOXELS = 2**31

# HU of air is -1000: a volume whose brightest voxel is below this contains no tissue.
AIR_ONLY = -500
# A CT clipped to 12 bits ends here; metal is brighter, but not half of a volume.
_BONE_AND_METAL = 3071
# A larger share of voxels beyond the range of int16 means that they are not HU.
_CLIPPED_SHARE = 0.01
# Label maps hold a few whole numbers from 0; CT noise alone has more values.
LABEL_VALUES = 64
_LABEL_MAX = 255
_ODD_SPACING = (0.05, 20.0)
# No scanner's values exceed this, but damaged floats do; sums of squares in float32 overflow soon after.
LARGEST = 1e12
# mm^3, as many voxels of 1 mm as a volume may have.
_MAX_MM3 = 2**31
# mm; lengths in metres in a header that says mm are below this
_FINEST = 0.01
# mm, larger than any room; from here on float32 no longer distinguishes voxels.
_FARTHEST = 1e6


def check_file(path: Path) -> None:
    """Make sure that a path is a non-empty regular file, without opening it.

    Raises:
        VolumeError: missing, dangling or circular link, folder, FIFO or other special file, 0 bytes, or a folder that
            cannot be listed.
    """
    try:
        info = path.stat()
    except FileNotFoundError as error:
        raise VolumeError("a link to a file that does not exist" if path.is_symlink() else "no such file") from error
    except (OSError, RuntimeError) as error:
        looped = path.is_symlink()
        raise VolumeError("a link that leads in a circle" if looped else f"cannot be read: {error}") from error
    if stat.S_ISDIR(info.st_mode):
        try:
            os.scandir(path).close()
        except OSError as error:
            raise VolumeError(f"the folder cannot be read: {error.strerror}") from error
        raise VolumeError("is a folder, expected a file")
    if not stat.S_ISREG(info.st_mode):
        raise VolumeError("is not a regular file (FIFO, socket or device)")
    if info.st_size == 0:
        raise VolumeError("the file is empty (0 bytes)")


def check_header(header: VolumeHeader, max_voxels: int = MAX_VOXELS, channels: int = 1) -> None:
    """Check the header alone: axes, type, size and affine.

    Args:
        header: the header of the volume.
        max_voxels: largest number of voxels accepted.
        channels: length of the fourth axis; 1 = no such axis.

    Raises:
        VolumeError: the volume is refused; says what was found and expected.
    """
    shape, dtype = header.shape, header.dtype
    if dtype.names or dtype.kind == "V":
        raise VolumeError(f"colour voxels (RGB), shape {shape}; expected one number per voxel")
    if dtype.kind == "c":
        raise VolumeError(f"complex voxels, shape {shape}; expected real numbers")
    if dtype.kind not in "iuf":
        raise VolumeError(f"voxels of type {dtype}, expected integers or floats")
    if any(length <= 0 for length in shape):
        raise VolumeError(f"shape {shape} has an empty or negative axis")
    if channels > 1 and (len(shape) != 4 or shape[3] != channels):
        raise VolumeError(f"{len(shape)}D, shape {shape}; expected one 4D volume of {channels} channels")
    if len(shape) < 3:
        raise VolumeError(f"{len(shape)}D, shape {shape}; expected a 3D volume")
    if len(shape) > 3 and channels == 1:
        raise VolumeError(f"{len(shape)}D, shape {shape}; expected one 3D volume per file")
    voxels = int(np.prod(shape, dtype=object))
    if voxels > max_voxels:
        raise VolumeError(f"shape {shape} is {voxels:,} voxels, more than max_voxels={max_voxels:,} (damaged header?)")
    if header.payload is not None:
        check_claimed_size(header.payload)
    if header.affine is not None:
        check_affine(header.affine)


def check_placed(header: VolumeHeader) -> None:
    """Refuse a volume that may be mirrored.

    Raises:
        VolumeError: the file does not say where its voxels lie.
    """
    if not header.placed:
        raise VolumeError("the affine is missing (neither qform nor sform is set): left and right are not known")


def check_affine(affine: np.ndarray) -> None:
    """Refuse a 4x4 affine that does not map voxels to distinct places in space.

    Raises:
        VolumeError: NaN, infinite, singular, or so far away that rounding moves voxels.
    """
    if not np.isfinite(affine).all():
        raise VolumeError(f"the affine is not finite: {affine[:3].tolist()}")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    # the determinant is relative to that of orthogonal axes, so the unit of length does not matter
    if not (spacing > 0).all() or abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-3:
        raise VolumeError(f"the affine is singular (axes in one plane or of length 0): {affine[:3].tolist()}")
    if np.abs(affine[:3, 3]).max() > _FARTHEST:
        raise VolumeError(f"the affine places the volume {np.abs(affine[:3, 3]).max():.3g} mm away (damaged header?)")


def check_extent(shape: tuple[int, ...], affine: np.ndarray) -> None:
    """Refuse a volume that resampling to mm would make too large for memory, or shrink to nothing.

    Args:
        shape: (H, W, D, ...) in voxels.
        affine: 4x4, voxel index to world in mm.

    Raises:
        VolumeError: the volume is larger than 2 cubic metres, or its voxels are shorter than 0.01 mm along all axes.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    edges = np.array(shape[:3]) * spacing
    if np.prod(edges) > _MAX_MM3:
        raise VolumeError(f"the volume is {per_axis(edges / 1000, 3)} m large; expected mm")
    if spacing.max() < _FINEST:
        raise VolumeError(f"the spacing is {per_axis(spacing, 3)} mm, finer than any scanner's (metres?); expected mm")


def check_range(low: float, high: float) -> None:
    """Refuse intensities that only a damaged file holds.

    Raises:
        VolumeError: the range is beyond `LARGEST`.
    """
    if max(-low, high) > LARGEST:
        raise VolumeError(f"values from {low:g} to {high:g} are no intensities (damaged voxels?)")


def check_constant(low: float, high: float) -> None:
    """Refuse a volume of one intensity.

    Raises:
        VolumeError: all voxels are equal.
    """
    if low == high:
        raise VolumeError(f"constant: every voxel is {low:g}")


def check_intensities(
    histogram: np.ndarray, low: float, high: float, clipped: int, whole: bool = True
) -> list[str]:  # fmt: skip
    """Check whether intensities can be HU.

    Args:
        histogram: number of voxels of each int16 value, from -32768.
        low: lowest intensity before rounding.
        high: highest intensity before rounding.
        clipped: number of voxels beyond the range of int16.
        whole: whether all intensities were whole numbers.

    Returns:
        Notes about what is unusual.

    Raises:
        LabelMapError: a label map.
        VolumeError: constant, air only, normalised, or far from any HU.
    """
    check_range(low, high)
    total = int(histogram.sum())
    check_constant(low, high)
    if high < AIR_ONLY:
        raise VolumeError(f"air only: values from {low:g} to {high:g} HU, tissue is above {AIR_ONLY}")
    if clipped > _CLIPPED_SHARE * total:
        raise VolumeError(f"not HU: {clipped:,} of {total:,} voxels are beyond int16, values {low:g} to {high:g}")
    labels = whole and low >= 0
    if low >= -1.5 and high <= 1.5:
        text = f"not HU: values from {low:g} to {high:g} (normalised, or a mask); expected CT in HU"
        raise LabelMapError(text) if labels else VolumeError(text)
    count = int(np.count_nonzero(histogram))
    if low >= 0 and high <= _LABEL_MAX and count <= LABEL_VALUES:
        text = f"not HU: {count} different values from {low:g} to {high:g} (a label map?)"
        raise LabelMapError(text) if labels else VolumeError(text)
    darkest, middle = (_percentile(histogram, share) for share in (0.005, 0.5))
    if middle > _BONE_AND_METAL:
        raise VolumeError(f"not HU: half of the voxels are above {middle}, bone ends near {_BONE_AND_METAL}")
    notes = [f"{counted(clipped, 'voxel')} beyond int16 clipped (values {low:g} to {high:g})"] if clipped else []
    if darkest > -30:
        notes.append(f"neither air nor fat: values from {low:g} to {high:g}; is this CT in HU?")
    return notes


def check_mr_intensities(low: float, high: float, first: float, last: float, count: int, whole: bool) -> list[str]:
    """Check whether intensities can be those of an MR volume.

    Args:
        low: lowest intensity.
        high: highest intensity.
        first: lower percentile, which becomes 0.
        last: upper percentile, which becomes 1.
        count: number of different intensities.
        whole: whether all are whole numbers.

    Returns:
        Notes about what is unusual.

    Raises:
        LabelMapError: a label map.
        VolumeError: constant, or constant between the percentiles.
    """
    check_constant(low, high)
    if whole and low >= 0 and high <= _LABEL_MAX and count <= LABEL_VALUES:
        raise LabelMapError(f"not MR: {count} different values from {low:g} to {high:g} (a label map?)")
    if first == last:
        raise VolumeError(f"nearly constant: 99 % of the voxels are {first:g}, values from {low:g} to {high:g}")
    if low < AIR_ONLY:
        return [f"values from {low:g} to {high:g}, MR has none so far below 0; is this CT (modality ct)?"]
    return []


def note_geometry(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> list[str]:
    """Notes about a single slice or an unusual spacing in mm."""
    notes = []
    if 1 in shape:
        notes.append(f"a single slice, shape {shape}")
    if not all(_ODD_SPACING[0] <= step <= _ODD_SPACING[1] for step in spacing):
        notes.append(f"unusual spacing of {' x '.join(f'{step:g}' for step in spacing)} mm; expected mm")
    return notes


def _percentile(histogram: np.ndarray, share: float) -> int:
    counts = np.cumsum(histogram)
    return int(np.searchsorted(counts, share * counts[-1], side="right")) - 32768
