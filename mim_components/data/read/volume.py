"""Read a whole volume as int16 on a RAS grid, checked to its last byte: CT in HU, MR in per mille of a range.

Voxels come from the same pass over the file that hashes it and verifies its checksum. nibabel or ITK give their
position in space; DICOM series are decoded by ITK through MONAI's reader.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np

from mim_components.data.read.headers import VolumeHeader, read_header
from mim_components.data.read.limits import (
    MAX_VOXELS,
    check_affine,
    check_file,
    check_header,
    note_geometry,
)
from mim_components.data.read.stored import to_int16, to_per_mille
from mim_components.data.read.stream import Payload, read_payload
from mim_components.data.resample import Spacing, resample
from mim_components.data.volumes import VolumeError, VolumeSource
from mim_components.utils.files import hash_file

_BLOCK = (64, 64, 16)  # voxels transposed at a time


@dataclass(frozen=True, eq=False)
class DecodedVolume:
    """A volume in memory.

    Attributes:
        voxels: int16 (H, W, D), RAS, C order: HU, or per mille of `window`.
        affine: 4x4, voxel index to RAS world in mm.
        orientation: axis codes of the source, such as LPS.
        digest: sha256 of the bytes of the source.
        notes: oddities.
        num_values: number of different intensities before resampling.
        window: intensities of the file that became 0 and 1000; None for CT.
    """

    voxels: np.ndarray
    affine: np.ndarray
    orientation: str
    digest: str
    notes: tuple[str, ...]
    num_values: int = 0
    window: tuple[float, float] | None = None

    def at(self, spacing: Spacing | None, max_voxels: int) -> DecodedVolume:
        """This volume at another spacing, see `resample`; None = unchanged."""
        if spacing is None:
            return self
        voxels, affine = resample(self.voxels, self.affine, spacing, max_voxels)
        return replace(self, voxels=voxels, affine=affine)


def inspect_source(source: VolumeSource, max_voxels: int = MAX_VOXELS, any_channels: bool = False) -> VolumeHeader:
    """Read and check the header of a volume; opens only regular files and allocates nothing.

    Args:
        source: the volume.
        max_voxels: larger headers are refused.
        any_channels: accept a fourth axis of any length.

    Raises:
        VolumeError: the volume is refused because of its header.
        OSError: a file cannot be read.
    """
    for path in source.files:
        check_file(path)
    header = read_header(source)
    channels = header.shape[3] if any_channels and len(header.shape) == 4 else 1
    check_header(header, max_voxels, channels)
    return header


def decode_volume(source: VolumeSource, header: VolumeHeader, modality: str = "ct") -> DecodedVolume:
    """Read a volume completely and check its voxels.

    Args:
        source: the volume.
        header: its header, already checked.
        modality: "ct" or "mr".

    Raises:
        VolumeError: damaged, not finite, or no CT in HU, or no MR.
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256()
    raw, affine = read_stored(source, header, digest)
    window = None
    if modality == "mr":
        voxels, notes, num_values, window = to_per_mille(raw, header.scale)
    else:
        voxels, notes, num_values = to_int16(raw, header.scale)
    turned = nib.as_closest_canonical(nib.Nifti1Image(voxels, affine))
    voxels = _in_c_order(np.asanyarray(turned.dataobj))
    spacing = tuple(float(step) for step in nib.affines.voxel_sizes(turned.affine))
    return DecodedVolume(
        voxels=voxels,
        affine=np.asarray(turned.affine),
        orientation="".join(nib.aff2axcodes(affine)),
        digest=digest.hexdigest(),
        notes=(*header.notes, *notes, *note_geometry(voxels.shape, spacing)),  # type: ignore[arg-type]
        num_values=num_values,
        window=window,
    )


def read_stored(source: VolumeSource, header: VolumeHeader, digest: hashlib._Hash) -> tuple[np.ndarray, np.ndarray]:
    """Read a volume completely: voxels as stored, and the 4x4 affine from voxel index to RAS world in mm.

    Args:
        source: the volume.
        header: its header, already checked.
        digest: receives all bytes of its files.

    Returns:
        Voxels in the order of the file; if all of a large volume are equal, a view of one (strides 0).

    Raises:
        VolumeError: damaged.
        OSError: a file cannot be read.
    """
    if header.payload is None:
        raw, affine = _read_series(source, header, digest)
    else:
        raw = _read_file(header, header.payload, digest)
        affine = _affine_by_itk(source.path) if header.affine is None else header.affine
    check_affine(affine)
    return raw, affine


def cause_of(error: BaseException) -> str:
    """The cause of a refusal or a failed read, in one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join((text or type(error).__name__).split())


def _read_file(header: VolumeHeader, payload: Payload, digest: hashlib._Hash) -> np.ndarray:
    for path in header.files:
        if path != payload.path:
            hash_file(path, digest)
    content = read_payload(payload, digest)
    if len(content) < payload.size:
        one = header.dtype.itemsize
        if content == content[:one] * (len(content) // one):
            return np.broadcast_to(np.frombuffer(content, dtype=header.dtype)[0], header.shape)  # needs no memory
        content = (content * (payload.size // len(content) + 1))[: payload.size]
    return np.frombuffer(content, dtype=header.dtype).reshape(header.shape, order="F")


def _in_c_order(voxels: np.ndarray) -> np.ndarray:
    """Copy `(H, W, D)` to C order, in blocks that fit the processor's cache, since files use the opposite order."""
    out = np.empty(voxels.shape, dtype=voxels.dtype)
    for corner in product(*(range(0, n, step) for n, step in zip(voxels.shape, _BLOCK, strict=True))):
        block = tuple(slice(first, first + step) for first, step in zip(corner, _BLOCK, strict=True))
        out[block] = voxels[block]
    return out


def _affine_by_itk(path: Path) -> np.ndarray:
    import itk  # takes seconds to import, and NIfTI does not need it

    # the voxel type does not matter: only the header is read
    reader = itk.ImageFileReader[itk.Image[itk.F, 3]].New(FileName=str(path))
    try:
        reader.UpdateOutputInformation()
    except RuntimeError as error:
        raise VolumeError(f"ITK refuses the header: {_last_line(error)}") from error
    image = reader.GetOutput()
    affine = np.eye(4)
    affine[:3, :3] = itk.array_from_matrix(image.GetDirection()) * np.asarray(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # ITK's world is LPS


def _read_series(source: VolumeSource, header: VolumeHeader, digest: hashlib._Hash) -> tuple[np.ndarray, np.ndarray]:
    for path in header.files:
        hash_file(path, digest)
    import itk
    from monai.data import ITKReader

    names = [str(path) for path in source.files]
    reader = itk.ImageSeriesReader[itk.Image[itk.F, 3]].New(FileNames=names, ImageIO=itk.GDCMImageIO.New())
    try:
        reader.Update()
        voxels, meta = ITKReader().get_data(reader.GetOutput())
    except RuntimeError as error:
        raise VolumeError(f"cannot be decoded: {_last_line(error)}") from error
    if voxels.shape != header.shape:
        raise VolumeError(f"the header claims shape {header.shape}, ITK reads {voxels.shape}")
    if header.mirrored:
        voxels = np.asarray(header.mirrored, dtype=voxels.dtype) - voxels
    return voxels, np.asarray(meta["affine"], dtype=np.float64)


def _last_line(error: RuntimeError) -> str:
    return str(error).strip().splitlines()[-1][:200]
