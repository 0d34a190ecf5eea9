import json
import os
import time
from types import SimpleNamespace

import numpy as np
import pytest

from mim_components.data import CacheError, PreparedVolume, VolumeSource, open_cached, prepare_volumes
from mim_components.data.cache import volumes as cache_module
from mim_components.data.cache.volumes import VolumeCache
from mim_components.data.find.walk import find_volumes
from mim_components.data.prepare import volumes as prepare_module


@pytest.fixture
def decoded(monkeypatch):
    """Names of the volumes decoded since the last query."""
    names = []
    original = prepare_module.decode_volume

    def counting(source, *rest):
        names.append(source.name)
        return original(source, *rest)

    monkeypatch.setattr(prepare_module, "decode_volume", counting)
    return names


@pytest.fixture
def prepare(tmp_path, decoded):
    """Prepare everything below `tmp_path / "data"`; returns the volumes and the names of those decoded."""

    def run(**options):
        decoded.clear()
        dataset = prepare_volumes(find_volumes(tmp_path / "data"), tmp_path / "cache", progress=False, **options)
        return dataset.volumes, list(decoded)

    return run


def test_second_time_nothing_is_decoded_and_all_is_equal(write_nifti, prepare, ct):
    write_nifti("data/a.nii.gz", affine=np.diag([-2.0, -3.0, 4.0, 1.0]))
    write_nifti("data/b.nii", ct[:5])
    first, names = prepare()
    again, names_again = prepare()
    assert (names, names_again) == (["a", "b"], [])
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.affine, two.affine)
        assert {**vars(one), "affine": 0} == {**vars(two), "affine": 0}


def test_cached_volume_is_a_copy_on_write_map(write_nifti, prepare, ct):
    write_nifti("data/a.nii.gz")
    ((volume,), _) = prepare()
    voxels = open_cached(volume)
    assert isinstance(voxels, np.memmap) and voxels.dtype == np.int16 and voxels.flags.writeable
    np.testing.assert_array_equal(voxels, ct)
    voxels[:] = 0
    np.testing.assert_array_equal(open_cached(volume), ct)
    assert (volume.shape, volume.spacing, volume.intensity_range) == (ct.shape, (2.0, 3.0, 4.0), (ct.min(), ct.max()))


@pytest.mark.parametrize("verify", ["auto", "full", "quick"])
@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_truncated_cache_is_made_again(write_nifti, prepare, ct, suffix, verify):
    write_nifti("data/a.nii.gz")
    ((volume,), _) = prepare()
    path = volume.cache_file.with_suffix(suffix)
    os.truncate(path, path.stat().st_size - 1)
    ((volume,), names) = prepare(verify=verify)
    assert names == ["a"]
    np.testing.assert_array_equal(open_cached(volume), ct)


@pytest.mark.parametrize(("suffix", "position"), [(".npy", 20), (".npy", -7), (".json", 40)])
def test_flipped_bit_in_the_cache_is_found(write_nifti, prepare, ct, suffix, position):
    write_nifti("data/a.nii.gz")
    ((volume,), _) = prepare()
    path = volume.cache_file.with_suffix(suffix)
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    ((volume,), names) = prepare()
    assert names == ["a"]
    np.testing.assert_array_equal(open_cached(volume), ct)


def test_cache_is_verified_whole_once_and_after_it_was_touched(write_nifti, prepare, monkeypatch, caplog):
    caplog.set_level("INFO")
    whole = []
    crc_to_end = cache_module._crc_to_end
    monkeypatch.setattr(cache_module, "_crc_to_end", lambda file: (whole.append(file.name), crc_to_end(file))[1])
    write_nifti("data/a.nii.gz")
    seen = []
    for verify in ("auto", "quick", "auto", "auto", "full"):
        ((volume,), _) = prepare(verify=verify)
        seen.append(len(whole))
    assert seen == [0, 0, 1, 1, 2]  # made, skipped, verified, known, asked for
    assert "1 volume: 0 to prepare, 1 cached, 1 of them to read in full (verify); headers took 0.0 s" in caplog.text
    os.utime(volume.cache_file)
    assert prepare()[1] == [] and len(whole) == 3 and prepare()[1] == [] and len(whole) == 3


@pytest.mark.parametrize("touched", [False, True])
def test_a_cache_whose_record_cannot_be_updated_is_used(write_nifti, prepare, monkeypatch, touched):
    path = write_nifti("data/a.nii.gz")
    prepare()
    if touched:
        os.utime(path)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module, "write_safely", full)
    assert prepare()[1] == []


@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_half_of_an_entry_is_no_entry(write_nifti, prepare, suffix):
    write_nifti("data/a.nii.gz")
    ((volume,), _) = prepare()
    volume.cache_file.with_suffix(suffix).unlink()
    assert prepare()[1] == ["a"]


def test_changed_source_is_prepared_again_in_the_same_place(write_nifti, prepare, ct):
    write_nifti("data/a.nii.gz")
    ((before,), _) = prepare()
    write_nifti("data/a.nii.gz", ct[::-1])
    ((after,), names) = prepare()
    assert names == ["a"]
    assert after.cache_file == before.cache_file and after.digest != before.digest
    np.testing.assert_array_equal(open_cached(after), ct[::-1])


def test_changed_source_with_its_old_size_and_time_is_noticed(write_nifti, prepare, ct):
    path = write_nifti("data/a.nii")
    ((before,), _) = prepare()
    old = path.stat()
    write_nifti("data/a.nii", ct[::-1])
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert path.stat().st_size == old.st_size
    assert prepare()[1] == ["a"]


def test_touched_source_is_only_hashed(write_nifti, prepare):
    path = write_nifti("data/a.nii.gz")
    prepare()
    later = time.time_ns() + 10**12
    os.utime(path, ns=(later, later))
    ((volume,), names) = prepare()
    assert names == []
    assert json.loads(volume.cache_file.with_suffix(".json").read_text())["state"]["modified_ns"] == later


def test_data_file_of_a_header_counts_as_source(tmp_path, prepare, ct):
    (tmp_path / "data").mkdir()
    head = "NDims = 3\nDimSize = 10 12 14\nElementType = MET_SHORT\nElementDataFile = a.raw\n"
    (tmp_path / "data" / "a.mhd").write_text(head)
    (tmp_path / "data" / "a.raw").write_bytes(ct.tobytes(order="F"))
    ((volume,), _) = prepare()
    assert volume.source_bytes == len(head) + 2 * ct.size
    (tmp_path / "data" / "a.raw").write_bytes(ct[::-1].tobytes(order="F"))
    assert prepare()[1] == ["a"]


def test_one_volume_in_three_types_gives_equal_caches(write_nifti, prepare):
    values = np.random.default_rng(0).integers(0, 256, (10, 12, 14))
    for dtype in ("uint8", "int16", "float32"):
        write_nifti(f"data/{dtype}.nii.gz", values.astype(dtype))
    volumes, _ = prepare()
    assert len({volume.cache_file.read_bytes() for volume in volumes}) == 1
    assert len({volume.cache_file for volume in volumes}) == 3


def test_no_temporary_file_is_left_and_old_ones_are_removed(tmp_path, write_nifti, prepare):
    write_nifti("data/a.nii.gz")
    (tmp_path / "cache").mkdir()
    old, new = tmp_path / "cache" / ".old.partial", tmp_path / "cache" / ".new.partial"
    old.write_bytes(b"x")
    new.write_bytes(b"x")
    os.utime(old, (0, 0))
    prepare()
    assert [path.name for path in (tmp_path / "cache").rglob("*.partial")] == [".new.partial"]


def test_failed_write_leaves_no_entry_and_names_the_cause(write_nifti, prepare, monkeypatch, tmp_path):
    write_nifti("data/a.nii.gz")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mim_components.data.cache.volumes.os.fsync", full)
    with pytest.raises(CacheError, match=r"\.npy: the cache cannot be written: No space left on device"):
        prepare()
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_too_small_a_disk_is_said_before_anything_is_written(write_nifti, prepare, monkeypatch, tmp_path, decoded):
    write_nifti("data/a.nii.gz")
    monkeypatch.setattr(
        "mim_components.data.cache.volumes.shutil.disk_usage", lambda folder: SimpleNamespace(free=2**29)
    )
    monkeypatch.setattr("mim_components.data.prepare.volumes.cache_bytes", lambda shape: 3 * 2**30)
    with pytest.raises(CacheError, match=r"cache: the cache needs 3.2 GB, 536.9 MB are free there, 2.7 GB are missing"):
        prepare()
    assert decoded == []


def test_cache_folder_that_cannot_be_made(write_nifti, tmp_path):
    path = write_nifti("data/a.nii.gz")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CacheError, match="file/cache: the cache folder cannot be written to: Not a directory"):
        prepare_volumes([VolumeSource(path, (path,))], tmp_path / "file" / "cache", progress=False)


def test_missing_cache_file_names_the_volume(tmp_path):
    volume = PreparedVolume("a", "a.nii", tmp_path / "x.npy", (1, 2, 3), (1.0, 1.0, 1.0), np.eye(4), "", 0)
    with pytest.raises(CacheError, match=r"x.npy: the cache file of a.nii cannot be read"):
        open_cached(volume)
    np.save(tmp_path / "x.npy", np.zeros((1, 2, 4), dtype=np.int16))
    with pytest.raises(CacheError, match=r"expected int16 \(1, 2, 3\) of a.nii, found int16 \(1, 2, 4\)"):
        open_cached(volume)
    np.save(tmp_path / "x.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(CacheError, match="cannot be read"):
        open_cached(volume)


def test_place_depends_on_path_and_series(tmp_path):
    cache = VolumeCache(tmp_path)
    identities = [("a", None), ("a", "1.2"), ("a", "1.3"), ("b", None)]
    assert len({cache.voxel_file(VolumeSource(tmp_path / name, (), uid)) for name, uid in identities}) == 4
