"""OpenKBP as NIfTI, the input of the study: `python -m studies.openkbp_data /path/to/open-kbp/provided-data DIR`.

Writes `pt_N_ct.nii.gz` (int16, HU) and `pt_N_organs.nii.gz` (uint8) to `DIR/train` and `DIR/validation`. The source
has a folder of CSV files per patient, which list voxels by their index in a grid of 128x128x128, last axis fastest.

The source calls the values Hounsfield units and the axes x, y, z, but says neither what 0 is nor where the axes point.
Both were inferred from the scans:

- HU = value - 1000: the medians of brainstem and spinal cord are then 29 and 35 HU, and 17 scans end at 4071 = 3071
  + 1000, the highest value of a 12-bit scan. A voxel that is not listed lies outside the body and gets -1000.
- The axes of the source point to posterior, left and inferior (P, L, I), by the places of the organs; those of the
  NIfTI to left, posterior and superior (L, P, S). The origin is arbitrary: the centre of the grid lies at 0 mm.
- Contours overlap in a few voxels. Which organ should have them is not stated; in the study the later in `ORGANS` has.

The study has 148 of the 200 training and 30 of the 40 validation patients. Left out are 22 and 3 whose CT exceeds
3071 HU, as metal does, and the 30 and 7 of `NOT_IN_STUDY`, whose `ct.csv` was missing in the copy of the source from
which the study was made. It had no file of 4 MiB or more, so they should be the scans with most voxels in the body.
"""

from __future__ import annotations

import argparse
import gzip
import re
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from tqdm import tqdm

from mim_components.utils.files import write_bytes_safely
from mim_components.utils.text import bar_options, counted, printable, shorten
from studies.definition import ROOT, Study, StudyError

OK, INCOMPLETE, USAGE = 0, 1, 2
GRID = (128, 128, 128)
ORGANS = ("Brainstem", "SpinalCord", "RightParotid", "LeftParotid", "Esophagus", "Larynx", "Mandible")  # 1 to 7
OFFSET, MAX_HU = 1000, 3071
MAX_STORED = np.iinfo(np.int16).max  # valid in the source; what exceeds OFFSET + MAX_HU is left out
NOT_IN_STUDY = {
    "train": "8 19 23 32 44 46 56 63 69 73 75 81 85 102 107 110 117 125 134 135 138 142 145 153 161 "
    "174 175 179 186 191",
    "validation": "205 217 220 223 228 234 240",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert both parts; returns 0 on success, 1 if the study expects other numbers, 2 for invalid input."""
    parser = argparse.ArgumentParser("python -m studies.openkbp_data", description="Convert OpenKBP to NIfTI.")
    parser.add_argument("source", type=Path, help="folder provided-data of github.com/ababier/open-kbp")
    parser.add_argument("target", type=Path, help="folder to write to, --data of the study")
    options = parser.parse_args(arguments)
    settings = Study(ROOT / "studies" / "openkbp.json").data
    wanted = {int(value) for value in settings["classes"]}
    found: dict[str, int] = {}
    try:
        for part in NOT_IN_STUDY:
            patients = convert_part(options.source, options.target, part)
            kept = [values for values in patients.values() if values is not None]
            complete = sum(wanted <= values for values in kept)
            found |= {"pretraining": len(kept), "train": complete} if part == "train" else {"test": complete}
            print(
                f"{part}: {counted(len(kept), 'patient')}, {complete} with all {len(wanted)} organs of the study; "
                f"{len(patients) - len(kept)} left out for more than {MAX_HU} HU"
            )
    except (StudyError, OSError) as error:
        print(f"ERROR {error}", file=sys.stderr)
        return USAGE
    if found != settings["expected"]:
        print(f"ERROR {options.source}: has {found}; the study expects {settings['expected']}.", file=sys.stderr)
        return INCOMPLETE
    return OK


def convert_part(source: Path, target: Path, part: str) -> dict[str, set[int] | None]:
    """Convert the patients of a part that are in the study.

    Args:
        source: folder `provided-data`.
        target: folder to write to; gets a folder `part`.
        part: "train" or "validation".

    Returns:
        What `convert_patient` returns, by name of the patient.

    Raises:
        StudyError: `source` is another folder, or a file in it is missing or invalid.
    """
    folder = source / f"{part}-pats"
    patients = sorted(folder.glob("pt_*"), key=lambda path: (len(path.name), path.name))
    if not patients:
        inside = shorten(sorted(path.name for path in source.glob("*"))) or "nothing"
        raise StudyError(f"{folder}: has no folder pt_N; expected provided-data of open-kbp, {source} has {inside}.")
    left_out = {f"pt_{number}" for number in NOT_IN_STUDY[part].split()}
    wanted = [path for path in patients if path.name not in left_out]
    return {path.name: convert_patient(path, target / part) for path in tqdm(wanted, part, **bar_options())}


def convert_patient(folder: Path, target: Path) -> set[int] | None:
    """Write the files of a patient unless both are there; each appears complete or not at all, the CT last.

    Args:
        folder: folder of the patient in the source; its name is that of the patient.
        target: folder to write to.

    Returns:
        Values of the organs that have voxels; None if the CT exceeds 3071 HU, and nothing is written.

    Raises:
        StudyError: a file is missing or invalid.
        OSError: a file cannot be written.
    """
    ct_file, organs_file = (target / f"{folder.name}_{kind}.nii.gz" for kind in ("ct", "organs"))
    organs = _written(organs_file, np.uint8)
    if organs is None or _written(ct_file, np.int16) is None:
        ct = read_ct(folder / "ct.csv")
        if ct.max() > MAX_HU:
            return None
        organs, spacing = read_organs(folder), read_spacing(folder / "voxel_dimensions.csv")
        for path, values in ((organs_file, organs), (ct_file, ct)):
            write_bytes_safely(path, gzip.compress(as_nifti(values, spacing).to_bytes(), 6, mtime=0))
    return set(np.unique(organs).tolist()) - {0}


def read_ct(path: Path, shape: tuple[int, int, int] = GRID) -> np.ndarray:
    """CT `(L, P, S)` in HU, int16, from lines `INDEX,VALUE`; -1000 where no voxel is listed.

    Args:
        path: `ct.csv` of a patient.
        shape: size of the grid in voxels, in the axes (P, L, I) of the source.

    Raises:
        StudyError: the file is missing, a line is invalid, or an index lies outside the grid.
    """
    index, value = _columns(path, shape, with_values=True)
    if (invalid := (value != np.rint(value)) | (value < 0) | (value > MAX_STORED)).any():
        row = int(invalid.argmax())
        raise StudyError(f"{path}: line {row + 2} has value {value[row]:g}, not a whole number from 0 to {MAX_STORED}.")
    ct = np.full(shape, -OFFSET, np.int16)
    ct.flat[index] = value - OFFSET
    return _oriented(ct)


def read_organs(folder: Path, shape: tuple[int, int, int] = GRID) -> np.ndarray:
    """Label map `(L, P, S)`, uint8, from lines `INDEX,` of the files `ORGAN.csv`; 1 to 7 in the order of `ORGANS`.

    Args:
        folder: folder of a patient; an organ without a file was not contoured.
        shape: as in `read_ct`.

    Raises:
        StudyError: a line is invalid, or an index lies outside the grid.
    """
    organs = np.zeros(shape, np.uint8)
    for value, organ in enumerate(ORGANS, 1):
        if (path := folder / f"{organ}.csv").exists():
            organs.flat[_columns(path, shape)[0]] = value
    return _oriented(organs)


def read_spacing(path: Path) -> tuple[float, float, float]:
    """Edges of a voxel in mm, from `voxel_dimensions.csv` with one number per line.

    Raises:
        StudyError: the file is missing, or has other than three positive numbers. The first two must be equal, as
            they are in all patients of the study, since the source does not say which of them is from left to right.
    """
    found = _text(path).split()
    try:
        first, second, third = map(float, found)
    except ValueError:
        first = second = third = np.nan
    if not (first == second and 0 < first < np.inf and 0 < third < np.inf):
        text = printable(shorten(found))[:80] or "nothing"
        raise StudyError(f"{path}: has {text}; expected three lengths in mm, the first two equal.")
    return first, second, third


def as_nifti(values: np.ndarray, spacing: tuple[float, float, float]) -> nib.Nifti1Image:
    """Image of voxels `(L, P, S)` with edges in mm; the centre of the grid lies at 0 mm.

    Example:
        >>> as_nifti(np.zeros((4, 4, 3), np.int16), (2.0, 2.0, 3.0)).affine.tolist()
        [[-2.0, 0.0, 0.0, 3.0], [0.0, -2.0, 0.0, 3.0], [0.0, 0.0, 3.0, -3.0], [0.0, 0.0, 0.0, 1.0]]
    """
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    affine[:3, 3] = -affine.diagonal()[:3] * (np.array(values.shape) - 1) / 2
    image = nib.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    return image


def _written(path: Path, dtype: type[np.generic]) -> np.ndarray | None:
    """Voxels of a file from an earlier call; None if it is missing, damaged or of another kind."""
    try:
        values = np.asanyarray(nib.Nifti1Image.from_filename(path).dataobj)
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError):
        return None
    return values if values.dtype == dtype and values.shape == GRID else None


def _oriented(values: np.ndarray) -> np.ndarray:
    return values.transpose(1, 0, 2)[:, :, ::-1]  # (P, L, I) to (L, P, S)


def _columns(path: Path, shape: tuple[int, int, int], with_values: bool = False) -> list[np.ndarray]:
    """Indices in a CSV file, and values."""
    lines = _text(path).splitlines()
    if lines[:1] != [",data"] or len(lines) < 2:
        found = repr(lines[0][:40]) if lines else "nothing"
        raise StudyError(f"{path}: starts with {found}, {counted(len(lines), 'line')}; expected ',data', then voxels.")
    names, form = (["index", "value"], r"-?\d+,-?\d+(\.\d*)?") if with_values else (["index"], r"-?\d+,")
    kinds = np.dtype([(name, np.int64 if name == "index" else np.float64) for name in names])
    try:
        table = np.loadtxt(lines[1:], kinds, delimiter=",", usecols=range(len(names)), ndmin=1)
    except ValueError as error:
        bad = (f"line {row} is {line[:40]!r}" for row, line in enumerate(lines[1:], 2) if not re.fullmatch(form, line))
        what = "INDEX,VALUE" if with_values else "INDEX,"
        raise StudyError(f"{path}: {next(bad, error)}; expected {what} in numbers.") from error
    index, size = table["index"], np.prod(shape)
    if (outside := (index < 0) | (index >= size)).any():
        row = int(outside.argmax())
        raise StudyError(f"{path}: line {row + 2} has index {index[row]}, outside the grid of {size} voxels.")
    return [table[name] for name in names]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise StudyError(f"{path}: cannot be read ({error.strerror}); expected a file of OpenKBP.") from error


if __name__ == "__main__":
    sys.exit(main())
