"""What MONAI's reader, which training uses, makes of a file that the checks have read."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from monai.data.utils import correct_nifti_header_if_necessary
from nibabel.imageglobals import LoggingOutputSuppressor

from mim_components.data.headers import VolumeHeader, first_bytes
from mim_components.data.volumes import VolumeError, suffix_of

# so many voxels of 1 mm, as many as a volume may have at all
_MAX_MM3 = 2**31


def check_name(path: Path) -> None:
    """Refuse a file that the reader cannot open: it believes the name, the checks look into the file.

    Raises:
        VolumeError: compressed NIfTI under a name that says it is not, or the reverse.
    """
    suffix = suffix_of(path).lower()
    if suffix not in (".nii", ".nii.gz"):
        return
    _, compressed = first_bytes(path)
    if compressed != (suffix == ".nii.gz"):
        what, right = ("compressed", ".nii.gz") if compressed else ("not compressed", ".nii")
        raise VolumeError(f"the file is {what}, but its name ends in {suffix}; rename it to {right}")


def reader_affine(path: Path, affine: np.ndarray) -> np.ndarray:
    """The 4x4 affine, voxel index to RAS world in mm, that the reader gives a volume.

    It believes the qform of a NIfTI file where the sform contradicts pixdim.

    Args:
        path: the file.
        affine: that the checks found.
    """
    if suffix_of(path).lower() not in (".nii", ".nii.gz"):
        return affine
    with LoggingOutputSuppressor():
        return np.asarray(correct_nifti_header_if_necessary(nib.load(path)).affine, dtype=np.float64)


def check_extent(header: VolumeHeader, affine: np.ndarray) -> None:
    """Refuse a volume that resampling to the spacing of the training would make too large for any memory.

    Raises:
        VolumeError: the volume is larger than 2 cubic metres.
    """
    edges = np.array(header.shape[:3]) * nib.affines.voxel_sizes(affine)
    if np.prod(edges) > _MAX_MM3:
        raise VolumeError(f"the volume is {' x '.join(f'{edge / 1000:.3g}' for edge in edges)} m large; expected mm")
