"""Invalid labelled cases: how a good one is changed, and the cause expected."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from tests.faults.damage import CODES, PIXDIM, SLOPE, affine_of, dims, flip, floats, patch, write
from tests.faults.dicom_series import voxels_of


@dataclass(frozen=True)
class PairDamage:
    """A bad case of an image and its label map.

    Args:
        id: id of the row.
        fault: what is wrong with the case.
        injection: how the fault is made.
        cause: part of the cause that must be reported.
        make: changes copies of a good pair; receives the paths of image and label.
    """

    id: str
    fault: str
    injection: str
    cause: str
    make: Callable[[Path, Path], Any]


def relabel(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path, Path], Any]:
    """The label with other values; `change` receives a copy in float32."""
    return lambda image, label: write(label, change(voxels_of(label).astype(np.float32)), affine_of(label))


def replace_label(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path, Path], Any]:
    """The label in another place; `change` receives a copy of its affine."""
    return lambda image, label: write(label, voxels_of(label).copy(), change(affine_of(label)))


def some(value: float) -> Callable[[np.ndarray], np.ndarray]:
    """A change that sets 30 voxels of a label map."""

    def change(values: np.ndarray) -> np.ndarray:
        values[:30, 0, 0] = value
        return values

    return change


def spread(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    """An affine with other distances between slices."""
    return lambda affine: affine @ np.diag([1, 1, factor, 1])


def shifted(affine: np.ndarray) -> np.ndarray:
    """An affine moved by a voxel."""
    return affine @ nib.affines.from_matvec(np.eye(3), [1, 0, 0])


def mirrored(affine: np.ndarray) -> np.ndarray:
    """An affine with its first axis reversed, as by tools that drop the sign of an axis."""
    return affine @ np.diag([-1, 1, 1, 1])


def turned(affine: np.ndarray) -> np.ndarray:
    """An affine rotated by 0.2 radians about the last axis."""
    rotation = np.array([[np.cos(0.2), -np.sin(0.2), 0], [np.sin(0.2), np.cos(0.2), 0], [0, 0, 1]])
    return nib.affines.from_matvec(rotation) @ affine


def swap(image: Path, label: Path) -> None:
    """Swap image and label."""
    image.rename(image.with_name("x"))
    label.rename(image)
    image.with_name("x").rename(label)


def in_micrometres(image: Path, label: Path) -> None:
    """Put both on a grid whose unit is not mm."""
    for path in (image, label):
        write(path, voxels_of(path).copy(), np.diag([1000, 1000, 1000, 1]) @ affine_of(path))


PAIRS = [
    PairDamage("C14", "label of another shape", "a slice less", "the image has (40, 40, 36)",
               relabel(lambda values: values[..., 1:])),
    PairDamage("C14b", "label of another spacing", "slices 1.5 times as far", "its spacing is",
               replace_label(spread(1.5))),
    PairDamage("C14c", "label shifted", "by one voxel", "its position differs by", replace_label(shifted)),
    PairDamage("C14d", "label mirrored", "first axis of its affine turned round", "(mirrored or turned)",
               replace_label(mirrored)),
    PairDamage("C14e", "label turned", "by 0.2 about the last axis", "it is turned: its corners are up to",
               replace_label(turned)),
    PairDamage("C14f", "label whose pixdim and sform differ", "pixdim 1 x 1 x 1: MONAI's reader takes the qform",
               "its spacing is 1 x 1 x 1 mm",
               lambda image, label: patch(label, floats(PIXDIM, 1, 1, 1), (CODES, struct.pack("<h", 1)))),
    PairDamage("C15", "unknown label 7", "30 voxels set", "label values 7 (30 voxels) are unknown; known: 0 to 1",
               relabel(some(7))),
    PairDamage("C15b", "label -1", "30 voxels set", "label values -1 (30 voxels) are unknown", relabel(some(-1))),
    PairDamage("C15c", "label 0.5", "30 voxels set", "not whole in 30 voxels, such as 0.5",
               relabel(some(0.5))),
    PairDamage("C15d", "label NaN", "30 voxels set", "NaN or infinite values in 30 voxels", relabel(some(np.nan))),
    PairDamage("C15e", "label 0.9999999", "30 voxels set", "not whole in 30 voxels, such as 0.9999999",
               relabel(some(0.9999999))),
    PairDamage("C16", "image and label swapped", "files renamed", "image and label seem to be swapped", swap),
    PairDamage("C16b", "label map in place of the image", "the label copied",
               "not HU: values from 0 to 1 (normalised, or a mask)", lambda image, label: shutil.copy(label, image)),
    PairDamage("C16c", "scan in place of the label", "the image copied", "are unknown; known: 0 to 1",
               lambda image, label: shutil.copy(image, label)),
    PairDamage("C16d", "label with an axis of classes", "one-hot 4D", "4D, shape (40, 40, 36, 2)",
               relabel(lambda values: np.stack([1 - values, values], axis=-1))),
    PairDamage("C17c", "empty body", "image filled with -1024", "constant: every voxel is -1024",
               lambda image, label: write(image, np.full((40, 40, 36), -1024, np.int16), affine_of(image))),
    PairDamage("C22", "label missing", "file removed", "no such file", lambda image, label: label.unlink()),
    PairDamage("C22b", "label of 0 byte", "truncated", "the file is empty (0 bytes)",
               lambda image, label: label.write_bytes(b"")),
    PairDamage("C22c", "label cut in half", "half of the bytes", "truncated: the compressed data end before",
               lambda image, label: label.write_bytes(label.read_bytes()[: label.stat().st_size // 2])),
    PairDamage("C22d", "bit flip in the label", "one bit of the CRC turned",
               "damaged compressed data: CRC check failed",
               lambda image, label: label.write_bytes(flip(label.read_bytes(), label.stat().st_size - 6))),
    PairDamage("C22e", "label header bomb", "dim 32767^3", "more than max_voxels=2,147,483,648",
               lambda image, label: patch(label, dims(3, 32767, 32767, 32767))),
    PairDamage("C22f", "one NaN voxel in the image", "one voxel set", "NaN or infinite values in 1 of 57,600 voxels",
               lambda image, label: write(
                   image, np.where(np.arange(57600).reshape(40, 40, 36) == 5, np.nan, voxels_of(image)),
                   affine_of(image))),
    PairDamage("C23", "scale that is no number", "scl_slope NaN", "damaged NIfTI header: scl_slope is nan",
               lambda image, label: patch(image, floats(SLOPE, np.nan, 0))),
    PairDamage("C23b", "label: scale that is no number", "scl_slope infinite",
               "damaged NIfTI header: scl_slope is inf", lambda image, label: patch(label, floats(SLOPE, np.inf, 0))),
    PairDamage("C24", "scan of many metres", "affine of micrometres, both files",
               "m large; expected mm", in_micrometres),
]  # fmt: skip
