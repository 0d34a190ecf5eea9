"""Layout of CC-CCII: `{CP,NCP,Normal}/<patient>/<scan>/0000.png`, 8-bit slices in a lung window, without HU."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mim_components.utils.files import write_bytes_safely, write_text_safely
from mim_tools.synthetic.scenes import CHEST, Scene, check_count
from mim_tools.synthetic.tissue import LABEL_NUMBERS
from mim_tools.synthetic.writer import CaseWriter

_MOST = 2742  # patients
_CLASSES = {"CP": (1070, "CP", ("pneumonia",)), "NCP": (12, "COVID19", ("covid",)), "Normal": (1690, "Normal", ())}
_SCENES = {name: Scene(CHEST, {0: ()}, "none", findings) for name, (_, _, findings) in _CLASSES.items()}
_WINDOW = (-1350.0, 150.0)  # HU that are black and white
_ENDS = {".png": b"IEND\xaeB`\x82", ".jpg": b"\xff\xd9"}  # Pillow accepts files without them
_SHORT = 9  # slices of a scan that is too short to be used


@dataclass(frozen=True)
class Scan:
    """One scan of the layout.

    Attributes:
        label: CP, NCP or Normal.
        patient: id of the patient.
        scan: id of the scan.
        index: number of the patient in the set.
        short: whether it has only a few slices.
    """

    label: str
    patient: int
    scan: int
    index: int
    short: bool

    @property
    def suffix(self) -> str:
        """Image format; one patient in seven has JPEG."""
        return ".jpg" if self.index % 7 == 3 else ".png"

    @property
    def folder(self) -> str:
        """Folder below the root; also the name of the case."""
        return f"{self.label}/{self.patient}/{self.scan}"

    def file_name(self, number: int) -> str:
        """Return the name of a slice; one patient in four has numbers without leading zeros."""
        return f"{number}{self.suffix}" if self.index % 4 == 1 else f"{number:04d}{self.suffix}"


def scans(num_patients: int) -> Iterator[Scan]:
    """List the scans of so many patients, classes in turn; of five, one has a second scan, and one a short one."""
    number = 3000
    for index in range(num_patients):
        label = tuple(_CLASSES)[index % 3]
        further = {2: [True], 3: [False]}.get(index % 5, [])
        for short in [False, *further]:
            number += 1
            yield Scan(label, _CLASSES[label][0] + index, number, index, short)


def write_ccccii(writer: CaseWriter, output_dir: Path, num_cases: int) -> Path:
    """Write the scans of `num_cases` patients and the two lists of the dataset."""
    check_count(num_cases, _MOST, "ccccii")
    root = output_dir / "CC-CCII"
    rows, lesions = [], []
    for scan in scans(num_cases):
        count, ill = _write_scan(writer, root, scan)
        zip_file = f"{_CLASSES[scan.label][1]}-{scan.index // 3 + 1}.zip"
        rows.append([zip_file, scan.label, scan.patient, scan.scan, count])
        lesions += [[f"{scan.folder}/{scan.file_name(number)}"] for number in ill]
    _write_csv(root / "unzip_filenames.csv", [["zip_file", "label", "patient_id", "scan_id", "n_slice"], *rows])
    _write_csv(root / "lesions_slices.csv", [["imgpath"], *lesions])
    return root


def _write_scan(writer: CaseWriter, root: Path, scan: Scan) -> tuple[int, list[int]]:
    """Write the missing slices; return their number and the slices with lesions."""
    folder = root / scan.folder
    facts = writer.ct_facts(_SCENES[scan.label], scan.folder, scan.index)
    count = min(_SHORT, facts["spatial_size"][2]) if scan.short else facts["spatial_size"][2]
    paths = [folder / scan.file_name(number) for number in range(count)]
    ill = _lesions_if_complete(paths, facts)
    if ill is None:
        slices, ill = _draw(writer, scan, count)
        for number, (path, pixels) in enumerate(zip(paths, slices, strict=True)):
            _write_slice(path, pixels, _comment(facts, number, ill))
        writer.tell(folder, True)
    else:
        writer.tell(folder, False)
    return count, ill


def _draw(writer: CaseWriter, scan: Scan, count: int) -> tuple[NDArray[np.uint8], list[int]]:
    """Return slices `(count, rows, columns)` from the head down, in radiological view, and those with lesions."""
    ct = writer.draw_ct(_SCENES[scan.label], scan.folder, scan.index)
    low, high = _WINDOW
    grey = np.rint(np.clip((ct.image - low) * (255 / (high - low)), 0, 255)).astype(np.uint8)
    first = (grey.shape[2] - count) // 2
    if scan.index % 5 == 4:  # not all scans have the same size
        grey = np.pad(grey, ((8, 8), (8, 8), (0, 0)))
    # the patient's right is on the left of the picture, the front on top
    slices = grey[::-1, ::-1, ::-1].transpose(2, 1, 0)[first : first + count]
    lesions = np.isin(ct.label, [LABEL_NUMBERS[name] for name in ("covid_lesion", "pneumonia")])
    ill = np.flatnonzero(lesions[:, :, ::-1].any(axis=(0, 1)))
    return slices, [int(plane) - first for plane in ill if first <= plane < first + count]


def _comment(facts: dict[str, Any], number: int, ill: list[int]) -> str:
    return json.dumps({**facts, "slice": number, "lesions": ill}, sort_keys=True)


def _write_slice(path: Path, pixels: NDArray[np.uint8], comment: str) -> None:
    info = PngInfo()
    info.add_text("comment", comment)
    image, stream = Image.fromarray(pixels), io.BytesIO()
    if path.suffix == ".png":
        image.save(stream, "PNG", pnginfo=info)
    else:
        image.save(stream, "JPEG", quality=95, comment=comment)
    write_bytes_safely(path, stream.getvalue())


def _lesions_if_complete(paths: list[Path], facts: dict[str, Any]) -> list[int] | None:
    """Return the slices with lesions if all slices exist, complete and made from these facts; else None."""
    ill: list[int] = []
    for number, path in enumerate(paths):
        try:
            if not path.read_bytes().endswith(_ENDS[path.suffix]):
                return None
            with Image.open(path) as image:
                image.load()
                comment = image.info.get("comment", "")
            text = comment.decode() if isinstance(comment, bytes) else comment
            ill = json.loads(text)["lesions"]
        except (OSError, SyntaxError, ValueError, KeyError):
            return None
        if text != _comment(facts, number, ill):
            return None
    return ill


def _write_csv(path: Path, rows: list[list[Any]]) -> None:
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows(rows)
    write_text_safely(path, stream.getvalue())
