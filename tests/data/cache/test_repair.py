"""A cache file damaged while a run reads it: it is regenerated, or the run stops and names both files."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.data import DataLoader

from mim_components.data.cache.volumes import VolumeCache, open_cached, open_or_remake
from mim_components.data.find.walk import find_volumes
from mim_components.data.load.dataset import KeyedDataset, OpenPreparedd
from mim_components.data.load.loader import init_worker
from mim_components.data.names import name_sources
from mim_components.data.prepare.volumes import prepare_volumes
from mim_components.data.volumes import CacheError, FoundVolumes, PreparedDataset, PreparedVolume


@pytest.fixture
def found(write_nifti: Callable[..., Path], ct: np.ndarray, tmp_path: Path) -> FoundVolumes:
    write_nifti("scans/anna.nii.gz")
    write_nifti("scans/bert.nii.gz", ct[::-1].copy())
    return find_volumes(tmp_path / "scans")


@pytest.fixture
def prepared(found: FoundVolumes, tmp_path: Path) -> PreparedDataset:
    return prepare_volumes(found, tmp_path / "cache", progress=False)


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "deleted":
        path.unlink()
    elif how == "folder deleted":
        shutil.rmtree(path.parent)
    elif how == "other shape":
        np.save(path, np.zeros((2, 2, 2), dtype=np.int16))
    elif how == "objects":
        np.save(path, np.array([{}]), allow_pickle=True)
    elif how == "other header":
        path.write_bytes(b"<html>" + content[6:])
    else:
        path.write_bytes(content[: {"0 byte": 0, "header cut": 40, "voxels cut": 1000, "last byte": -1}[how]])


DAMAGES = ["deleted", "folder deleted", "other shape", "objects", "other header", "0 byte", "header cut", "voxels cut"]


@pytest.mark.parametrize("how", [*DAMAGES, "last byte"])
def test_bad_cache_file_is_made_again(
    how: str, prepared: PreparedDataset, ct: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    volume = prepared.volumes[1]
    record, before = volume.cache_file.with_suffix(".json").read_bytes(), volume.cache_file.read_bytes()
    damage(volume.cache_file, how)
    with caplog.at_level(logging.WARNING, "mim_components"):
        np.testing.assert_array_equal(open_or_remake(volume), ct[::-1])
    assert f"{volume.cache_file}: " in caplog.text and "it is regenerated" in caplog.text
    assert volume.cache_file.read_bytes() == before and volume.cache_file.with_suffix(".json").read_bytes() == record
    caplog.clear()
    open_or_remake(volume)
    assert caplog.text == ""


def test_source_that_is_gone_is_named_with_the_cache_file(prepared: PreparedDataset) -> None:
    volume = prepared.volumes[0]
    Path(volume.source).unlink()
    np.testing.assert_array_equal(open_or_remake(volume).shape, volume.shape)  # the run does not need it
    damage(volume.cache_file, "voxels cut")
    with pytest.raises(
        CacheError, match=f"^{volume.cache_file}: .*{volume.source}, from which it would be regenerated"
    ):
        open_or_remake(volume)


@pytest.mark.parametrize("changed", ["other voxels", "damaged", "larger"])
def test_source_that_changed_is_not_taken(
    changed: str, prepared: PreparedDataset, write_nifti: Callable[..., Path], ct: np.ndarray
) -> None:
    volume = prepared.volumes[0]
    source = Path(volume.source)
    if changed == "damaged":
        source.write_bytes(source.read_bytes()[:-20])
    else:
        write_nifti("scans/anna.nii.gz", ct + 1 if changed == "other voxels" else np.concatenate([ct, ct]))
    volume.cache_file.unlink()
    with pytest.raises(
        CacheError, match=f"^{volume.cache_file}: .*{source}, from which it would be regenerated"
    ) as why:
        open_or_remake(volume)
    assert "has changed since the run was prepared; restore it" in str(why.value) or changed != "other voxels"
    assert not volume.cache_file.exists()


def test_voxels_that_another_run_refreshed_are_not_taken(
    prepared: PreparedDataset, found: FoundVolumes, write_nifti: Callable[..., Path], ct: np.ndarray, tmp_path: Path
) -> None:
    volume = prepared.volumes[0]
    np.testing.assert_array_equal(open_or_remake(volume), ct)
    write_nifti("scans/anna.nii.gz", ct + 1)
    other = prepare_volumes(found, tmp_path / "cache", progress=False).volumes[0]
    said = (
        f"^{volume.cache_file}: expected the voxels of {volume.source} with sha256 {volume.digest[:12]}, "
        f"found those of a file with {other.digest[:12]}"
    )
    with pytest.raises(CacheError, match=f"{said}$"):
        open_cached(volume)
    with pytest.raises(CacheError, match=f"{said}; and .* has changed since the run was prepared; restore it"):
        open_or_remake(volume)
    np.testing.assert_array_equal(open_or_remake(other), ct + 1)


def test_voxels_that_are_being_refreshed_are_not_taken(
    prepared: PreparedDataset, found: FoundVolumes, write_nifti: Callable[..., Path], ct: np.ndarray,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    volume, seen = prepared.volumes[0], []
    write = VolumeCache._write

    def watched(cache: VolumeCache, path: Path, content: Any) -> None:
        write(cache, path, content)
        if path == volume.cache_file:  # the new voxels are there, their record is not
            with pytest.raises(CacheError, match="found no valid record beside it"):
                open_cached(volume)
            seen.append(path)

    monkeypatch.setattr(VolumeCache, "_write", watched)
    write_nifti("scans/anna.nii.gz", ct + 1)
    prepare_volumes(found, tmp_path / "cache", progress=False)
    assert seen == [volume.cache_file]


def test_record_is_read_once_and_made_again(
    prepared: PreparedDataset, ct: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = prepared.volumes[0]
    record = volume.cache_file.with_suffix(".json")
    open_cached(volume)
    monkeypatch.setattr("mim_components.data.cache.records.read_record", lambda path: pytest.fail(f"{path} is read"))
    open_cached(volume)
    monkeypatch.undo()
    before = record.read_bytes()
    record.unlink()
    np.testing.assert_array_equal(open_or_remake(volume), ct)
    assert record.read_bytes() == before


def test_hidden_names_stay_hidden(found: FoundVolumes, tmp_path: Path) -> None:
    volume = prepare_volumes(name_sources(found), tmp_path / "cache", progress=False).volumes[0]
    (tmp_path / "scans" / "anna.nii.gz").unlink()
    volume.cache_file.unlink()
    with pytest.raises(CacheError, match=f"{volume.source}, from which it would be regenerated") as failed:
        open_or_remake(volume)
    assert volume.source.startswith("scan-") and "anna" not in str(failed.value) and failed.value.__cause__ is None


def test_volume_without_a_source_is_refused(prepared: PreparedDataset) -> None:
    volume = prepared.volumes[0]
    alone = PreparedVolume("a", "a", volume.cache_file, volume.shape, volume.spacing, volume.affine, volume.digest, 0)
    volume.cache_file.unlink()
    with pytest.raises(CacheError, match="cannot be read"):
        open_or_remake(alone)


def test_several_at_once_do_not_disturb_each_other(prepared: PreparedDataset, ct: np.ndarray) -> None:
    volume = prepared.volumes[0]
    volume.cache_file.unlink()
    with ThreadPoolExecutor(8) as pool:
        for voxels in pool.map(open_or_remake, [volume] * 16):
            np.testing.assert_array_equal(voxels, ct)
    assert sorted(path.suffix for path in volume.cache_file.parent.glob(f"*{volume.cache_file.stem}*")) == [
        ".json",
        ".npy",
    ]


def test_workers_make_it_again(prepared: PreparedDataset, ct: np.ndarray) -> None:
    dataset = KeyedDataset(prepared.items, OpenPreparedd("image"))
    for volume in prepared.volumes:
        damage(volume.cache_file, "voxels cut")
    loader = DataLoader(
        dataset, sampler=[0, 1, 0, 1], num_workers=2, worker_init_fn=init_worker, collate_fn=lambda items: items[0],
        multiprocessing_context="fork",
    )  # fmt: skip
    for item, wanted in zip(loader, [ct, ct[::-1]] * 2, strict=True):
        np.testing.assert_array_equal(item["image"][0].numpy(), wanted)
