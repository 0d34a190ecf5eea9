"""MR: any intensities, in per mille between the percentiles 0.5 and 99.5 of the volume."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import ScaleIntensityRangePercentiles

from mim_components.data import (
    BadVolumesError,
    CTScans,
    DataError,
    MRScans,
    NoVolumesError,
    VolumeError,
    find_sources,
    open_cached,
    prepare_volumes,
)
from mim_components.data.read.stored import to_per_mille

RAMP = np.arange(1001).reshape(7, 11, 13)  # percentiles of 0 to 1000: 5 and 995


@pytest.mark.parametrize(
    ("raw", "scale", "window"),
    [
        (RAMP.astype(np.int16), (1.0, 0.0), (5, 995)),
        (RAMP.astype(np.uint16) + 60000, (1.0, 0.0), (60005, 60995)),  # beyond int16
        (RAMP / 1000, (1.0, 0.0), (0.005, 0.995)),
        (RAMP.astype(np.int16), (2.0, -100.0), (-90, 1890)),
        (RAMP[::-1, ::-1, ::-1].astype(np.int16), (-1.0, 1000.0), (5, 995)),  # a negative slope reverses the order
    ],
    ids=["int16", "uint16", "unit", "scaled", "negative"],
)
def test_per_mille(raw: np.ndarray, scale: tuple[float, float], window: tuple[float, float]) -> None:
    voxels, notes, count, found = to_per_mille(raw, scale)
    # 5 becomes 0, 995 becomes 1000: v - 5 of 990
    expected = [0, 0, 0, round(1000 * 95 / 990), 500, 1000, 1000]
    assert voxels.dtype == np.int16 and notes == [] and count >= 1001
    assert voxels.ravel()[[0, 4, 5, 100, 500, 995, 1000]].tolist() == expected
    assert found == pytest.approx(window)


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_constant_volume_is_refused_without_reading_its_copies(value: float) -> None:
    """As `read_stored` returns it: one voxel in memory, 4 TB if it were copied."""
    raw = np.broadcast_to(np.float32(value), (10_000, 10_000, 10_000))
    with pytest.raises(VolumeError, match="constant: every voxel is 0|NaN .* in 1,000,000,000,000 of 1,0"):
        to_per_mille(raw, (1.0, 0.0))


def test_constant_volume_is_refused_before_its_percentiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "percentile", None)
    with pytest.raises(VolumeError, match="constant: every voxel is 7"):
        to_per_mille(np.full((4, 4, 4), 7, np.int16), (1.0, 0.0))


def test_per_mille_is_what_monai_makes() -> None:
    raw = np.random.default_rng(0).gamma(2.0, 150.0, (12, 10, 9)).astype(np.float32)
    scaled = ScaleIntensityRangePercentiles(0.5, 99.5, 0, 1000, clip=True)(torch.from_numpy(raw))
    assert np.abs(to_per_mille(raw, (1.0, 0.0))[0] - np.asarray(scaled)).max() <= 0.5 + 1e-3  # rounded


@pytest.mark.parametrize(
    ("raw", "cause"),
    [
        (np.full((4, 4, 4), 7, np.int16), "constant: every voxel is 7"),
        (RAMP.astype(np.int16) % 5, r"not MR: 5 different values from 0 to 4 \(a label map\?\)"),
        (np.where(RAMP < 4, 1000 + RAMP / 7, 0.0), "nearly constant: 99 % of the voxels are 0, values from 0 to"),
        (np.where(RAMP == 9, math.nan, RAMP), "NaN or infinite values in 1 of 1,001 voxels"),
        (np.where(RAMP == 9, 1e30, RAMP), "are no intensities"),
    ],
    ids=["constant", "labels", "sparse", "nan", "damaged"],
)
def test_unfit(raw: np.ndarray, cause: str) -> None:
    with pytest.raises(VolumeError, match=cause):
        to_per_mille(raw, (1.0, 0.0))


def test_what_no_ct_may_be_is_fine_for_mr() -> None:
    for raw in (RAMP / 1000, RAMP * 30.0, RAMP + 4000):  # normalised, beyond int16, above bone
        assert to_per_mille(raw, (1.0, 0.0))[1] == []


def test_ct_is_noted() -> None:
    (note,) = to_per_mille((RAMP - 1024).astype(np.int16), (1.0, 0.0))[1]
    assert note == "values from -1024 to -24, MR has none so far below 0; is this CT (modality ct)?"


@pytest.fixture
def mr(write_nifti: Callable[..., Path], tmp_path: Path) -> Path:
    """A folder with an MR volume that cannot be CT, and its label map."""
    write_nifti("data/mr.nii.gz", (RAMP * 40).astype(np.uint16))
    write_nifti("data/mr_seg.nii.gz", (RAMP % 3).astype(np.uint8))
    return tmp_path / "data"


def prepare(folder: Path, modality: str = "mr", **options: Any) -> Any:
    found = find_sources(folder, modality=modality)
    return prepare_volumes(found, folder.parent / "cache", modality=modality, progress=False, **options)


def test_prepared_once_and_made_again(mr: Path) -> None:
    dataset = prepare(mr)
    (volume,) = dataset.volumes
    assert (volume.modality, volume.intensity_range, volume.num_values) == ("mr", (0, 1000), 1001)
    assert [item.source.name for item in dataset.passed] == ["mr_seg"]
    record = json.loads(volume.cache_file.with_suffix(".json").read_text())
    assert (record["modality"], record["window"]) == ("mr", [200.0, 39800.0])
    voxels = open_cached(volume).copy()
    (again,) = prepare(mr).volumes
    assert again.cache_file == volume.cache_file and again.modality == "mr"
    from mim_components.data.cache.volumes import open_or_remake

    again = prepare(mr).volumes[0]
    volume.cache_file.unlink()
    np.testing.assert_array_equal(open_or_remake(again), voxels)


def test_modalities_do_not_share_cache_or_checks(mr: Path, write_nifti: Callable[..., Path], ct: np.ndarray) -> None:
    prepare(mr)
    with pytest.raises(BadVolumesError, match=r"mr.nii.gz: not HU"):
        prepare(mr, "ct")
    (mr / "mr.nii.gz").unlink()
    write_nifti("data/both.nii.gz", ct)
    scans = {modality: prepare(mr, modality).volumes[0] for modality in ("ct", "mr")}
    assert scans["ct"].intensity_range == (int(ct.min()), int(ct.max())) and scans["mr"].intensity_range == (0, 1000)


def test_dicom_counts_by_its_modality(write_dicom: Callable[..., list[Path]], tmp_path: Path) -> None:
    volume = np.arange(12 * 10 * 8).reshape(12, 10, 8)
    write_dicom("data/a", volume, uid="1.1", Modality="MR", RescaleIntercept=0)
    write_dicom("data/b", volume, uid="1.2")
    both = {modality: find_sources(tmp_path / "data", modality=modality) for modality in ("ct", "mr")}
    assert {modality: [source.name for source in found] for modality, found in both.items()} == {
        "ct": ["1.2"],
        "mr": ["1.1"],
    }
    assert both["ct"].notes[0].endswith("not a CT volume: Modality MR, expected CT (--modality mr takes it)")
    assert both["mr"].notes[0].endswith("not an MR volume: Modality CT, expected MR (--modality ct takes it)")
    with pytest.raises(NoVolumesError, match=r"no CT volume found .*(.|\n)*expected CT \(--modality mr takes it\)"):
        find_sources(tmp_path / "data" / "a")
    (prepared,) = prepare(tmp_path / "data").volumes
    assert prepared.name == "1.1" and prepared.intensity_range == (0, 1000)


def test_a_collection_is_ct(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="collection 1k is CT, got modality mr"):
        find_sources(collection="1k", data_root=tmp_path, modality="mr")


def test_inference_reads_what_was_prepared(mr: Path) -> None:
    (mr / "mr_seg.nii.gz").unlink()
    scan = MRScans().read(mr / "mr.nii.gz")
    assert scan.shape == (1, 7, 11, 13) and np.array_equal(scan[0].numpy(), open_cached(prepare(mr).volumes[0]))
    with pytest.raises(BadVolumesError, match="not HU"):
        CTScans().read(mr / "mr.nii.gz")
