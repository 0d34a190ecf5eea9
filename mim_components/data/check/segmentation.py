"""Check whether a scan and its label map are fit for training; every file is read once, to its last byte."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from mim_components.data.cases import Case, CheckResult
from mim_components.data.check.voxels import (
    LabelValues,
    check_channel,
    count_labels,
    hash_voxels,
    holds_only,
    in_ras_order,
)
from mim_components.data.grids import grid_fault
from mim_components.data.read.headers import VolumeHeader, read_header
from mim_components.data.read.limits import check_extent, check_file, check_header, check_placed, note_geometry
from mim_components.data.read.stored import to_int16
from mim_components.data.read.volume import cause_of, read_stored
from mim_components.data.volumes import VolumeError, VolumeSource
from mim_components.labels import LabelSet
from mim_components.utils.text import counted, shorten

MODALITIES = ("CT", "MR")


@dataclass
class _Image:
    """Findings in an image: 4x4 affine, hash of the voxels in RAS order, notes, whether it holds label values only."""

    affine: np.ndarray = field(default_factory=lambda: np.eye(4))
    content: hashlib._Hash = field(default_factory=hashlib.sha256)
    notes: list[str] = field(default_factory=list)
    like_label: bool = True
    fault: VolumeError | None = None


@dataclass(frozen=True)
class SegmentationChecker:
    """Checks an image and its label map: file, header, checksum, intensities, grid, label values.

    Attributes:
        labels: labels, which define the values that a label file may hold.
        in_channels: channels of the image, in one 4D file or one file per channel.
        modality: "CT" expects HU; "MR" any finite intensities that are not constant.

    Raises:
        ValueError: unknown `modality`.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> checker = SegmentationChecker(LabelSet(("background", "liver"), {}, {}))
        >>> with TemporaryDirectory() as folder:
        ...     image, label = Path(folder, "image.nii"), Path(folder, "label.nii")
        ...     nib.Nifti1Image(np.arange(-500, 500, dtype=np.int16).reshape(10, 10, 10), np.eye(4)).to_filename(image)
        ...     nib.Nifti1Image(np.zeros((10, 10, 10), np.uint8), np.eye(4)).to_filename(label)
        ...     checker(Case("1", (image,), label)).notes
        ('the label holds background only',)
    """

    labels: LabelSet
    in_channels: int = 1
    modality: str = "CT"

    def __post_init__(self) -> None:
        if self.modality not in MODALITIES:
            raise ValueError(f"modality must be one of {', '.join(MODALITIES)}, got {self.modality!r}.")

    def __call__(self, case: Case) -> CheckResult:
        """Read the whole case.

        Raises:
            VolumeError: the case is unfit; names the file if it is not the image, what was found and expected.
        """
        headers = self._headers(case)
        digest = hashlib.sha256()
        image = self._read_image(case, headers[:-1], digest)
        label = _label_of(case)
        raw, affine = _read(label, headers[-1], digest, f"{_named(label)}: ")
        values = count_labels(raw, headers[-1].scale)
        if image.like_label and values.like_image:
            raise VolumeError(
                f"image and label seem to be swapped: all voxels of the image are label values "
                f"({self._known()}), {_named(label)} holds {len(values.counts)} different values"
            )
        if image.fault:
            raise image.fault
        if image.like_label:
            raise VolumeError(f"a label map? All voxels are label values ({self._known()})")
        shape = headers[0].shape[:3]
        if fault := grid_fault(shape, image.affine, affine) or self._label_fault(values):
            raise VolumeError(f"{_named(label)}: {fault}")
        spacing = tuple(float(step) for step in nib.affines.voxel_sizes(image.affine))
        notes = [*headers[0].notes, *image.notes, *note_geometry(shape, spacing)]  # type: ignore[arg-type]
        if set(values.counts) == {0}:
            notes.append("the label holds background only")
        return CheckResult(digest.hexdigest(), tuple(notes), image.content.hexdigest())

    def datalist_facts(self) -> dict[str, Any]:
        """Modality and labels in the form of a Decathlon list."""
        classes = self.labels.values or dict(enumerate(range(len(self.labels.names))))
        names = {str(raw): self.labels.names[number] for raw, number in sorted({0: 0, **classes}.items())}
        return {"modality": {"0": self.modality}, "labels": names, "tensorImageSize": "3D"}

    def _headers(self, case: Case) -> list[VolumeHeader]:
        """Checked headers of image and label; reports all their faults together."""
        if len(case.image) not in (1, self.in_channels):
            raise VolumeError(
                f"{len(case.image)} image files, expected 1 or one for each of {self.in_channels} channels"
            )
        label = _label_of(case)
        axis = self.in_channels if len(case.image) == 1 else 1
        headers, faults = [], []
        for path in (*case.image, label):
            try:
                check_file(path)
                headers.append(read_header(_source(path)))
                check_header(headers[-1], channels=1 if path is label else axis)
                check_placed(headers[-1])
            except (VolumeError, OSError) as error:
                faults.append(cause_of(error) if path == case.image[0] else f"{_named(path)}: {cause_of(error)}")
        if not faults:
            shape = headers[0].shape[:3]
            others = zip((*case.image[1:], label), headers[1:], strict=True)
            faults = [
                f"{_named(path)}: shape {header.shape}, the image has {shape}"
                for path, header in others
                if header.shape != shape
            ]
        if faults:
            raise VolumeError("; ".join(faults))
        return headers

    def _read_image(self, case: Case, headers: Sequence[VolumeHeader], digest: hashlib._Hash) -> _Image:
        image, number, empty = _Image(), 0, 0
        for path, header in zip(case.image, headers, strict=True):
            raw, affine = _read(path, header, digest, "" if path is case.image[0] else f"{_named(path)}: ")
            if path is case.image[0]:
                image.affine = affine
            elif fault := grid_fault(header.shape[:3], image.affine, affine):
                raise VolumeError(f"{_named(path)}: {fault}")
            for channel in np.moveaxis(raw, 3, 0) if raw.ndim == 4 else (raw,):
                number += 1
                where = f"channel {number}: " if self.in_channels > 1 else ""
                try:
                    empty += self._read_channel(channel, header.scale, image, where)
                except VolumeError as error:
                    image.fault = image.fault or VolumeError(f"{where}{error}")
                image.like_label = image.like_label and holds_only(channel, header.scale, self.labels.raw_values)
        if empty == number:
            image.fault = image.fault or VolumeError("constant: every voxel is 0")
        return image

    def _read_channel(self, raw: np.ndarray, scale: tuple[float, float], image: _Image, where: str) -> bool:
        """Check the intensities of a channel and note oddities; returns True if all are 0."""
        if self.modality == "CT":
            voxels, notes, _ = to_int16(raw, scale)
            turned = in_ras_order(voxels, image.affine)
            image.content.update(repr(turned.shape).encode())
            hash_voxels(turned, image.content)
            image.notes.extend(f"{where}{note}" for note in notes)
            return False
        low, high = check_channel(raw, scale)
        turned = in_ras_order(raw, image.affine)
        image.content.update(f"{turned.shape} {raw.dtype} {scale} {low}".encode())
        if low != high:
            hash_voxels(turned, image.content)
            return False
        if low != 0:
            raise VolumeError(f"constant: every voxel is {low:g}")
        image.notes.append(f"{where}every voxel is 0")
        return True

    def _label_fault(self, values: LabelValues) -> str:
        if values.unfit:
            return f"NaN or infinite values in {counted(values.unfit, 'voxel')}"
        if values.fractions:
            voxels = counted(values.fractions, "voxel")
            return f"label values must be whole numbers, but not whole in {voxels}, such as {values.example:.7g}"
        unknown = {
            value: count for value, count in sorted(values.counts.items()) if value not in self.labels.raw_values
        }
        if not unknown:
            return ""
        shown = shorten(f"{value} ({counted(count, 'voxel')})" for value, count in unknown.items())
        return f"label values {shown} are unknown; known: {self._known()}"

    def _known(self) -> str:
        known = self.labels.raw_values
        if known == tuple(range(len(known))):
            return f"0 to {known[-1]}"
        return ", ".join(map(str, known))


def _source(path: Path) -> VolumeSource:
    return VolumeSource(path, (path,))


def _read(path: Path, header: VolumeHeader, digest: hashlib._Hash, where: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        raw, affine = read_stored(_source(path), header, digest)
        check_extent(header.shape, affine)
        return raw, affine
    except (VolumeError, OSError) as error:
        raise VolumeError(f"{where}{cause_of(error)}") from error


def _label_of(case: Case) -> Path:
    if not isinstance(case.label, Path):
        found = "none" if case.label is None else f"the number {case.label}"
        raise VolumeError(f"a label map is needed, the label is {found}")
    return case.label


def _named(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"
