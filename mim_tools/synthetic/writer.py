"""Draws one synthetic case and writes its files atomically, each with the recipe that made it."""

from __future__ import annotations

import gzip
import json
import logging
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from mim_components.utils.files import write_safely
from mim_tools.synthetic.brain import BRAIN_DESCRIPTION, SyntheticBrain, synthetic_brain
from mim_tools.synthetic.generate import DESCRIPTION, SYNTHETIC_VERSION, SyntheticCT, synthetic_ct
from mim_tools.synthetic.scenes import Scene

logger = logging.getLogger(__name__)

_ORIENTATIONS = ("RAS", "LPS", "LAS", "PIR", "RAI")
_COMMENT = 6  # NIfTI extension code for a comment
_CHUNK = 1 << 20
_UNREADABLE = (OSError, EOFError, ValueError, zlib.error, ImageFileError, HeaderDataError)
_BRAIN_FIELD = (176.0, 208.0, 160.0)


class CaseWriter:
    """Writes the cases of one layout.

    Args:
        layout: name of the layout.
        seed: determines all cases; a case does not depend on their number.
        spatial_size: (H, W, D) in voxels, before the axes are turned.
        spacing: voxel size in mm; None spreads the voxels over the field of view of the layout.
        progress: log one line per case at level INFO.
    """

    def __init__(
        self,
        layout: str,
        seed: int,
        spatial_size: tuple[int, int, int],
        spacing: tuple[float, float, float] | None,
        progress: bool,
    ) -> None:
        self.layout, self.seed, self.size, self.spacing, self.progress = layout, seed, spatial_size, spacing, progress

    def ct(self, scene: Scene, name: str, index: int, image: Path, label: Path | None = None) -> None:
        """Write one CT and its label.

        Args:
            scene: content of the CT.
            name: of the case; decides the person and the orientation.
            index: index of the case in the dataset; determines the centre.
            image: file to write.
            label: file to write; None for a case without label.
        """
        facts = self.ct_facts(scene, name, index)

        def draw() -> tuple[dict[str, NDArray], NDArray]:
            ct = self.draw_ct(scene, name, index)
            return {"image": ct.image, "label": scene.label(ct.label)}, ct.affine

        self.write({"image": image} if label is None else {"image": image, "label": label}, facts, DESCRIPTION, draw)

    def draw_ct(self, scene: Scene, name: str, index: int) -> SyntheticCT:
        """Return the CT of a case with fine labels, before its axes are reoriented."""
        center = scene.view.centers[index % len(scene.view.centers)]
        return synthetic_ct(
            self.case_seed(name), self.size, self._spacing(scene.view.field), center, scene.phase, scene.findings, True
        )

    def brain(
        self, name: str, files: Mapping[str, Path], arrays: Callable[[SyntheticBrain], dict[str, NDArray]]
    ) -> None:
        """Write one brain MRI.

        Args:
            name: of the case; decides the person and the orientation.
            files: file to write by kind.
            arrays: content of each kind of file.
        """

        def draw() -> tuple[dict[str, NDArray], NDArray]:
            brain = synthetic_brain(self.case_seed(name), self.size, self._spacing(_BRAIN_FIELD))
            return arrays(brain), brain.affine

        self.write(files, self._facts(name, _BRAIN_FIELD), BRAIN_DESCRIPTION, draw)

    def write(
        self,
        files: Mapping[str, Path],
        facts: Mapping[str, Any],
        description: str,
        draw: Callable[[], tuple[dict[str, NDArray], NDArray]],
    ) -> None:
        """Write the missing files of a case, in the orientation that `facts` names.

        Args:
            files: path by kind.
            facts: what determines the case.
            description: text for the header.
            draw: function that returns the arrays by kind, axes in RAS order, and their affine.
        """
        recipes = {kind: json.dumps({**facts, "kind": kind}, sort_keys=True) for kind in files}
        missing = [kind for kind, path in files.items() if not is_complete(path, recipes[kind])]
        if missing:
            arrays, affine = draw()
            for kind in missing:
                array, turned = turn(arrays[kind], affine, facts["orientation"])
                write_nifti(files[kind], array, turned, recipes[kind], description)
        self.tell(next(iter(files.values())), bool(missing))

    def tell(self, path: Path, made: bool) -> None:
        """Log the outcome of a case."""
        if self.progress:
            logger.info("%s %s", "wrote" if made else "kept", path)

    def ct_facts(self, scene: Scene, name: str, index: int) -> dict[str, Any]:
        """Return what determines a CT; stored in its files, so that a later run recognises them."""
        center = scene.view.centers[index % len(scene.view.centers)]
        own = {"center": center, "phase": scene.phase, "findings": scene.findings}
        return self._facts(name, scene.view.field) | own

    def _facts(self, name: str, field: Sequence[float]) -> dict[str, Any]:
        own_seed = self.case_seed(name)
        return {
            "layout": self.layout,
            "case": name,
            "seed": own_seed,
            "spatial_size": self.size,
            "spacing": self._spacing(field),
            "orientation": _ORIENTATIONS[own_seed % len(_ORIENTATIONS)],
            "version": SYNTHETIC_VERSION,
        }

    def case_seed(self, name: str) -> int:
        """Return the seed of a case."""
        own = zlib.crc32(f"{self.layout} {name}".encode())
        return int(np.random.default_rng(np.random.SeedSequence([self.seed, own])).integers(2**31))

    def _spacing(self, field: Sequence[float]) -> tuple[float, float, float]:
        if self.spacing is not None:
            return self.spacing
        in_plane = round(max(field[0] / self.size[0], field[1] / self.size[1]), 2)
        return in_plane, in_plane, round(field[2] / self.size[2], 2)


def turn(array: NDArray, affine: NDArray, orientation: str) -> tuple[NDArray, NDArray]:
    """Reorder and flip the first three axes of a RAS array; every voxel keeps its position in space.

    Args:
        array: `(H, W, D)` or `(H, W, D, C)`, axes to the right, front and head.
        affine: `(4, 4)`, voxel indices to RAS mm.
        orientation: axis codes wanted, such as LPS.

    Returns:
        The array and its affine.
    """
    change = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(orientation))
    return apply_orientation(array, change), affine @ inv_ornt_aff(change, array.shape[:3])


def is_complete(path: Path, recipe: str) -> bool:
    """Whether a file was made by this recipe and can be decoded to its end, checksum included."""
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

    def pack(partial: Path) -> None:
        # no name and no time in the header: the same volume is the same file
        with partial.open("wb") as file, gzip.GzipFile("", "wb", 1, file, mtime=0) as packed:
            packed.write(image.to_bytes())

    write_safely(path, pack)
