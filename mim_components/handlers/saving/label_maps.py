"""Write predicted label maps on the grid of their scans, with names and colours of the classes for viewers."""

from __future__ import annotations

import gzip
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor

from mim_components.data.grids import grid_fault
from mim_components.data.load.native import SCAN_FILE, WRITTEN_BY
from mim_components.data.read.headers import stored_nifti_header
from mim_components.data.volumes import suffix_of
from mim_components.handlers.saving.results import Results
from mim_components.labels import LabelSet
from mim_components.transforms.regions import RegionsToLabel
from mim_components.utils.files import write_safely, write_text_safely
from mim_components.utils.text import csv_table

logger = logging.getLogger(__name__)

# fields of a NIfTI header that place voxels in world space
_QFORM = ("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
_SFORM = ("sform_code", "srow_x", "srow_y", "srow_z")
_PLACE = ("pixdim", "xyzt_units", *_QFORM, *_SFORM)


class SaveSegmentation:
    """Write `<name>_seg.nii.gz` for each scan as soon as it is done.

    A label map holds the class number of every voxel of the scan as uint8. The qform and sform of a
    NIfTI scan are copied unchanged, so that every program shows both at the same position; scans of other formats get
    both. Beside the maps lie `labels.txt` (ITK-SNAP), `labels.ctbl` (3D Slicer), `volumes.csv`: ml per class and
    region, and `results.csv`: the outcome of every scan.

    The evaluator's output, or the batch it belongs to, holds lists of dictionaries, one per scan: `pred`, a MetaTensor
    `(1, H, W, D)` of classes or `(R, H, W, D)` of regions on the scan's grid; `name`, `source`, and `cause`, which says
    why the scan could not be read.

    Args:
        output_dir: folder for the files; created if missing.
        labels: classes or regions.
        on_bad: "report" raises at the end for the scans that were left out.

    Attributes:
        results: results of all scans so far.

    Raises:
        ValueError: when called, a prediction that does not lie on its scan.
        BadVolumesError: at the end, with `on_bad="report"`: lists all bad scans.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> affine = torch.diag(torch.tensor([10.0, 10.0, 10.0, 1.0]))  # a voxel is 1 ml
        >>> meta = {"original_affine": affine, "spatial_shape": (4, 4, 4), "filename_or_obj": "ct.nrrd"}
        >>> scan = {"name": "ct", "source": "ct.nrrd", "pred": MetaTensor(torch.ones(1, 4, 4, 4), affine, meta)}
        >>> evaluator = Engine(lambda engine, scans: scans)
        >>> with TemporaryDirectory() as folder:
        ...     SaveSegmentation(folder, LabelSet(("background", "liver"), {}, {})).attach(evaluator)
        ...     _ = evaluator.run([[scan]])
        ...     sorted(path.name for path in Path(folder).iterdir())
        ...     print(Path(folder, "volumes.csv").read_text(), end="")
        ['ct_seg.nii.gz', 'labels.ctbl', 'labels.txt', 'results.csv', 'volumes.csv']
        case,liver
        ct,64.000
    """

    def __init__(self, output_dir: str | Path, labels: LabelSet, on_bad: str = "exclude") -> None:
        self.output_dir = Path(output_dir)
        self.labels = labels
        self.to_label = RegionsToLabel(labels.regions)
        self.results = Results(self.output_dir, on_bad)
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.summarize)

    def start(self, engine: Engine) -> None:
        """Write names and colours of the classes."""
        write_label_files(self.output_dir, self.labels)

    def __call__(self, engine: Engine) -> None:
        """Write the label maps of a batch."""
        state: Any = engine.state
        for batch, output in zip(state.batch, state.output, strict=True):
            scan = {**batch, **output}
            if scan.get("cause"):
                self.results.add(scan["name"], scan["source"], cause=scan["cause"])
                continue
            path, volumes = self.save(scan)
            self.rows.append({"case": scan["name"], **{name: f"{ml:.3f}" for name, ml in volumes.items()}})
            write_text_safely(self.output_dir / "volumes.csv", csv_table(self.rows))
            self.results.add(scan["name"], scan["source"], [path])
            found = ", ".join(f"{name} {ml:.1f} ml" for name, ml in volumes.items() if ml) or "background"
            logger.info("%d/%s %s: %s: %s", state.iteration, state.epoch_length, scan["source"], path.name, found)
            if not any(volumes.values()):
                logger.warning("%s: nothing but background was found", scan["source"])

    def summarize(self, engine: Engine) -> None:
        """Log how many scans were done, and what was left out."""
        self.results.finish("label maps")

    def save(self, scan: Mapping[str, Any]) -> tuple[Path, dict[str, float]]:
        """Write the label map of one scan; returns the file, and ml of every class and region."""
        pred = scan["pred"]
        if not isinstance(pred, MetaTensor) or pred.ndim != 4 or "original_affine" not in pred.meta:
            raise ValueError(f"{scan['name']}: pred must be a MetaTensor (C, H, W, D) on the grid of its scan.")
        affine = _numbers(pred.meta["original_affine"])
        shape = tuple(int(side) for side in pred.meta["spatial_shape"][:3])
        if tuple(pred.shape[1:]) != shape:
            raise ValueError(f"{scan['name']}: pred has {tuple(pred.shape[1:])} voxels, its scan {shape}; use Invertd.")
        if fault := grid_fault(shape, affine, _numbers(pred.affine)):
            raise ValueError(f"{scan['name']}: pred does not lie on its scan, {fault}; use Invertd.")
        label = self.to_label(pred.as_tensor())[0].to("cpu", torch.uint8).numpy()
        image = _placed(label, affine, Path(pred.meta.get(SCAN_FILE) or pred.meta["filename_or_obj"]))
        path = write_safely(self.output_dir / f"{scan['name']}_seg.nii.gz", lambda partial: _write(image, partial))
        return path, self._volumes(label, pred, affine)

    def _volumes(self, label: np.ndarray, pred: MetaTensor, affine: np.ndarray) -> dict[str, float]:
        ml = abs(np.linalg.det(affine[:3, :3])) / 1000
        # plane by plane: bincount needs 8 bytes per voxel
        counts = np.sum([np.bincount(plane.ravel(), minlength=len(self.labels.names)) for plane in label], axis=0)
        volumes = {name: ml * int(counts[number]) for number, name in enumerate(self.labels.names) if number}
        regions = zip(self.labels.regions, pred.as_tensor(), strict=False)
        return {**volumes, **{name: ml * int((region > 0.5).sum()) for name, region in regions}}


def _numbers(affine: Any) -> np.ndarray:
    return torch.as_tensor(affine).to("cpu", torch.float64).numpy()


def _placed(label: np.ndarray, affine: np.ndarray, scan: Path) -> nib.Nifti1Image:
    """The label map with the position of its scan."""
    if suffix_of(scan).lower().startswith(".nii"):
        source: Any = stored_nifti_header(scan)[0]
        header = type(source)()  # Nifti1Header or Nifti2Header
        header.set_data_shape(label.shape)
        for name in _PLACE:
            header[name] = source[name]
        header.set_data_dtype(np.uint8)
        kind = nib.Nifti2Image if isinstance(source, nib.Nifti2Header) else nib.Nifti1Image
        image = kind(label, header.get_best_affine(), header)  # its own affine keeps forms and units unchanged
    else:
        image = nib.Nifti1Image(label, affine)
        image.header.set_xyzt_units("mm")
        image.set_qform(affine, "scanner")
        image.set_sform(affine, "scanner")
    image.header.set_intent("label")
    image.header["descrip"] = WRITTEN_BY
    return image


def _write(image: nib.Nifti1Image, path: Path) -> None:
    # without name and time, so that equal label maps give equal files
    with path.open("wb") as file, gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as stream:
        image.to_stream(stream)


_SNAP_HEAD = """\
################################################
# ITK-SnAP Label Description File
# File format:
# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL
################################################
"""


def write_label_files(folder: str | Path, labels: LabelSet) -> list[Path]:
    """Write `labels.txt` for ITK-SNAP and `labels.ctbl` for 3D Slicer.

    Args:
        folder: folder for the files; created if missing.
        labels: classes.

    Returns:
        The two files.
    """
    folder = Path(folder)
    return [
        write_text_safely(folder / "labels.txt", snap_labels(labels)),
        write_text_safely(folder / "labels.ctbl", slicer_colours(labels)),
    ]


def snap_labels(labels: LabelSet) -> str:
    r"""Label descriptions of ITK-SNAP: number, RGB, opacity, shown in slices, shown in 3D, name.

    Example:
        >>> print(snap_labels(LabelSet(("background", "left atrium"), {}, {})).split("#\n")[-1], end="")
            0     0    0    0        0  0  0    "background"
            1   255    0  105        1  1  1    "left atrium"
    """
    lines = []
    for number, (name, (r, g, b)) in enumerate(zip(labels.names, labels.colours, strict=True)):
        shown = int(number > 0)
        name = name.replace('"', "'")
        lines.append(f'{number:5d} {r:5d} {g:4d} {b:4d} {shown:8d} {shown:2d} {shown:2d}    "{name}"\n')
    return _SNAP_HEAD + "".join(lines)


def slicer_colours(labels: LabelSet) -> str:
    r"""Colour table of 3D Slicer: number, name without spaces, RGB, opacity.

    Example:
        >>> slicer_colours(LabelSet(("background", "left atrium"), {}, {})).splitlines()[1:]
        ['0 background 0 0 0 0', '1 left_atrium 255 0 105 255']
    """
    lines = [f"# Color table of {len(labels.names)} classes\n"]
    for number, (name, (r, g, b)) in enumerate(zip(labels.names, labels.colours, strict=True)):
        lines.append(f"{number} {re.sub(r'[^!-~]+', '_', name)} {r} {g} {b} {255 if number else 0}\n")
    return "".join(lines)
