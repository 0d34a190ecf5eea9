"""Odd but valid scans, which must not be refused."""

from __future__ import annotations

import gzip
import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
import pytest

from tests.faults.damage import (
    AFFINE,
    CODES,
    PIXDIM,
    SLOPE,
    affine_of,
    floats,
    patch,
    with_header,
    with_voxels,
    write,
)
from tests.faults.dicom_series import voxels_of, write_series
from tests.faults.pairs import turned
from tests.faults.runs import PRETRAIN, SEGMENTATION, Run, finish, losses, start

pytestmark = pytest.mark.slow

Data = dict[str, str]
NAMES = ("a name.nii.gz", "Müller.nii.gz", "new\nline.nii.gz", 'it\'s "one".nii.gz')


@dataclass(frozen=True)
class Control:
    """An odd but valid scan.

    Args:
        id: id of the row.
        name: name of the file.
        what: what is odd about the scan.
        note: part of the note that must be reported; empty = none.
        make: writes the file; receives its path and that of a plain scan.
    """

    id: str
    name: str
    what: str
    note: str
    make: Callable[[Path, Path], Any]


def big_endian(path: Path, good: Path) -> None:
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.dtype(">i2"))
    nib.save(nib.Nifti1Image(voxels_of(good).astype(">i2"), AFFINE, header), path)


def metaimage(path: Path, good: Path) -> None:
    itk.imwrite(itk.image_from_array(np.ascontiguousarray(voxels_of(good).T)), str(path), compression=True)


def in_two_members(path: Path, good: Path) -> None:
    content = gzip.decompress(good.read_bytes())
    path.write_bytes(gzip.compress(content[:9999]) + gzip.compress(content[9999:]))


def latin_name(path: Path, good: Path) -> None:
    shutil.copy(good, os.fsencode(path.parent) + b"/M\xfcller.nii.gz")


CONTROLS = [
    Control("K1", "four.nii.gz", "4D with one volume", "", with_voxels(lambda voxels: voxels[..., None])),
    Control("K2", "slope.nii.gz", "slope and intercept", "", with_header(floats(SLOPE, 0.5, -200))),
    Control("K3", "zero.nii.gz", "slope 0", "", with_header(floats(SLOPE, 0, 0))),
    Control("K4", "oblique.nii.gz", "oblique affine", "", with_voxels(lambda voxels: voxels, affine=turned(AFFINE))),
    Control("K5", "small.nii.gz", "smaller than the ROI", "", with_voxels(lambda voxels: voxels[:20, :20, :16])),
    Control("K6", "one.nii.gz", "a single slice", "a single slice, shape (44, 42, 1)",
            with_voxels(lambda voxels: voxels[..., 18:19])),
    *(Control(f"K8{letter}", name, f"name {name!r}", "", lambda path, good: shutil.copy(good, path))
      for letter, name in zip(("", "b", "c", "d"), NAMES, strict=True)),
    Control("K8e", "M\udcfcller.nii.gz", "name in an old encoding", "", latin_name),
    Control("K9", "thick.nii.gz", "anisotropic spacing", "",
            with_voxels(lambda voxels: voxels, affine=np.diag([0.5, 0.5, 10, 1]))),
    Control("K11", "big.nii", "big-endian", "", big_endian),
    Control("K12", "second.nii.gz", "NIfTI-2", "", with_voxels(lambda voxels: voxels, kind=nib.Nifti2Image)),
    Control("K13", "members.nii.gz", "gzip of several members", "", in_two_members),
    Control("K14", "padded.nii.gz", "zero bytes after the gzip data", "",
            lambda path, good: path.write_bytes(good.read_bytes() + bytes(512))),
    Control("K15", "plain.nii.gz", "plain NIfTI called .nii.gz", "",
            lambda path, good: path.write_bytes(gzip.decompress(good.read_bytes()))),
    Control("K16", "meta.mha", "compressed MetaImage", "", metaimage),
    Control("K16b", "series [1.4]", "DICOM series", "",
            lambda path, good: write_series(path.with_name("series"), good, "1.4")),
    Control("K17", "UPPER.NII.GZ", "extension in capitals", "", lambda path, good: shutil.copy(good, path)),
    Control("K18", "offset.nii.gz", "HU with an offset of 1024", "neither air nor fat: values from",
            with_voxels(lambda voxels: voxels + 1124)),
    Control("K19", "forms.nii.gz", "sform and qform that differ", "sform and qform differ",
            with_header(floats(PIXDIM, 1, 1, 1), (CODES, struct.pack("<2h", 1, 2)))),
]  # fmt: skip


def rows(table: Sequence[Control], where: str) -> list[Any]:
    """Parameters, one per row."""
    return [
        pytest.param(
            each,
            id=each.id,
            marks=pytest.mark.fault(
                each.id, fault=f"control: {each.what}", injection=where,
                expected=f"used, with a warning: {each.note}" if each.note else "used",
            ),
        )
        for each in table
    ]  # fmt: skip


def sources_of(cache: Path) -> set[str]:
    """Names of the scans in the cache of a pre-training."""
    return {Path(json.loads(path.read_text())["source"]).name for path in cache.glob("*/*.json")}


def assert_finite(run: Run) -> None:
    rows = losses(run.output)
    assert rows and all(math.isfinite(row["loss"]) for row in rows if "loss" in row)


@pytest.fixture(scope="module")
def trained(scans: Data, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A pre-training on all controls."""
    folder = tmp_path_factory.mktemp("controls")
    good = Path(scans["dataset_dir"]) / "scan_0.nii.gz"
    (folder / "scans").mkdir()
    for each in CONTROLS:
        each.make(folder / "scans" / each.name, good)
    (folder / "scans" / "._hidden.nii.gz").write_bytes(b"Mac OS X")
    options = {**scans, "dataset_dir": str(folder / "scans"), "cache_dir": str(folder / "cache")}
    return finish(start(PRETRAIN, folder / "run", **options, max_steps=math.ceil(len(CONTROLS) / 2)))


@pytest.mark.parametrize("control", rows(CONTROLS, "in a pre-training"))
def test_control(control: Control, trained: Run) -> None:
    assert control.name in sources_of(trained.output.parent / "cache")
    notes = (trained.output / "data_notes.txt").read_text(errors="surrogateescape").splitlines()
    own = [line for line in notes if f"{control.name}: " in line and "the same voxels as" not in line]
    assert any(control.note in line for line in own) if control.note else not own


def test_all_are_used(trained: Run) -> None:
    assert f"{len(CONTROLS)} volumes, " in trained.text and "left out" not in trained.text
    assert_finite(trained)


@pytest.mark.fault("K10", fault="control: one volume as uint8, int16 and float32", injection="three pre-trainings",
                   expected="equal losses")  # fmt: skip
def test_types_of_one_volume(scans: Data, tmp_path: Path) -> None:
    voxels = np.clip(voxels_of(Path(scans["dataset_dir"]) / "scan_0.nii.gz") // 4 + 100, 0, 255)
    runs = []
    for dtype in ("uint8", "int16", "float32"):
        (tmp_path / dtype).mkdir()
        write(tmp_path / dtype / "scan.nii.gz", voxels.astype(dtype))
        options = {**scans, "dataset_dir": str(tmp_path / dtype), "cache_dir": str(tmp_path / "cache")}
        runs.append(start(PRETRAIN, tmp_path / f"run_{dtype}", **options, max_steps=2, warmup_steps=1))
    first, *others = [losses(finish(run).output) for run in runs]
    assert len(first) == 2 and others == [first, first]


# labelled cases


def both(change: Callable[[np.ndarray], np.ndarray], place: Callable[[np.ndarray], np.ndarray] = np.array) -> Any:
    """The same change to image and label."""

    def make(image: Path, label: Path) -> None:
        for path in (image, label):
            write(path, np.ascontiguousarray(change(voxels_of(path))), place(affine_of(path)))

    return make


def keep(voxels: np.ndarray) -> np.ndarray:
    return voxels.copy()


PAIRS = [
    Control("K1s", "four", "4D with one volume, labelled", "", both(lambda voxels: voxels[..., None])),
    Control("K2s", "slope", "label with slope and intercept", "",
            lambda image, label: patch(label, floats(SLOPE, 1, 0))),
    Control("K3s", "zero", "slope 0, labelled", "",
            lambda image, label: [patch(path, floats(SLOPE, 0, 0)) for path in (image, label)]),
    Control("K4s", "oblique", "oblique affine, labelled", "", both(keep, turned)),
    Control("K5s", "small", "smaller than the ROI, labelled", "", both(lambda voxels: voxels[:12, :12, :12])),
    Control("K6s", "one", "a single slice, labelled", "a single slice, shape (40, 40, 1)",
            both(lambda voxels: voxels[..., 18:19])),
    Control("K7", "empty", "empty label", "the label holds background only",
            lambda image, label: write(label, np.zeros((40, 40, 36), np.uint8), affine_of(label))),
    *(Control(f"K8s{letter}", name.removesuffix(".nii.gz"), f"name {name!r}, labelled", "", lambda image, label: None)
      for letter, name in zip(("", "b", "c", "d"), NAMES, strict=True)),
    Control("K9s", "thick", "anisotropic spacing, labelled", "",
            both(keep, lambda affine: affine @ np.diag([0.5, 0.5, 2, 1]))),
    Control("K10s", "float", "label in float64", "",
            lambda image, label: write(label, voxels_of(label).astype(np.float64), affine_of(label))),
]  # fmt: skip


@pytest.fixture(scope="module")
def tuned(labelled: Data, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A fine-tuning on all controls, validated on one plain case."""
    root = tmp_path_factory.mktemp("controls") / "data"
    shutil.copytree(labelled["dataset_dir"], root)
    plain, items = "spleen_2.nii.gz", []
    for number, each in enumerate(PAIRS):
        item = {"image": f"images/{each.name}.nii.gz", "label": f"labels/{each.name}.nii.gz"}
        for key, folder in (("image", "imagesTr"), ("label", "labelsTr")):
            (root / item[key]).parent.mkdir(exist_ok=True)
            shutil.copy(root / folder / plain, root / item[key])
        image = voxels_of(root / item["image"]).copy()
        image[:12, :12, :] -= np.int16(number + 1)  # not a copy of another case
        write(root / item["image"], image, affine_of(root / item["image"]))
        each.make(root / item["image"], root / item["label"])
        items.append(item)
    validation = [{"image": f"imagesTr/{plain}", "label": f"labelsTr/{plain}"}]
    (root / "list.json").write_text(json.dumps({"training": items, "validation": validation}))
    options = {"dataset_dir": root, "datalist": root / "list.json", "cache_dir": root.parent / "cache"}
    steps = {"max_steps": len(PAIRS), "validation_steps": len(PAIRS)}
    return finish(start(SEGMENTATION, root.parent / "run", **{**labelled, **options, **steps}))


@pytest.mark.parametrize("control", rows(PAIRS, "in a fine-tuning"))
def test_labelled_control(control: Control, tuned: Run) -> None:
    names = [item["image"] for item in json.loads((tuned.output / "datalist.json").read_text())["training"]]
    assert f"images/{control.name}.nii.gz" in names
    report = (tuned.output / "data_report.md").read_text()
    assert not control.note or f"{control.name}: {control.note}" in report


def test_all_cases_are_used(tuned: Run) -> None:
    assert len(list((tuned.output.parent / "cache").glob("*.pt"))) == len(PAIRS) + 1
    assert "unfit and left out: 0" in tuned.text
    assert_finite(tuned)
