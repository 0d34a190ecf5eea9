"""Writes synthetic files whole or not at all, each with the recipe that made it."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path
from uuid import uuid4

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

_COMMENT = 6  # NIfTI extension code for a comment
_CHUNK = 1 << 20
_UNREADABLE = (OSError, EOFError, ValueError, zlib.error, ImageFileError, HeaderDataError)


def is_complete(path: Path, recipe: str) -> bool:
    """Whether a file was made by this recipe and decodes to its end, checksum included."""
    try:
        image = nib.Nifti1Image.from_filename(path)
        stored = [extension.text for extension in image.header.extensions if extension.get_code() == _COMMENT]
        if stored != [recipe] or not isinstance(image.dataobj, ArrayProxy):
            return False
        size = 0
        with gzip.open(path) as stream:
            while chunk := stream.read(_CHUNK):
                size += len(chunk)
    except _UNREADABLE:
        return False
    return size == image.dataobj.offset + math.prod(image.shape) * image.get_data_dtype().itemsize


def write_nifti(path: Path, array: NDArray, affine: NDArray[np.float64], recipe: str, description: str) -> None:
    """Write a NIfTI file in mm whose header describes it and holds its recipe."""
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = description.encode()
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", recipe.encode()))
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{uuid4().hex}.partial.nii.gz")  # several processes may write the same file
    try:
        nib.save(image, beside)
        rename(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def rename(beside: Path, path: Path) -> None:
    """Put a file that is written to the disk under its name."""
    with beside.open("rb") as stream:
        os.fsync(stream.fileno())
    os.replace(beside, path)
