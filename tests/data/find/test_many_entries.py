"""Folders and lists with many entries: memory use is constant, and work is linear in the number of entries."""

import json
import os
import resource
from pathlib import Path
from time import process_time

import numpy as np
import pytest

from mim_components.data import FoundVolumes, VolumeSource
from mim_components.data.cache import volumes as cache_module
from mim_components.data.cache.volumes import VolumeCache
from mim_components.data.find.datalist import load_cases, load_datalist
from mim_components.data.find.walk import find_volumes
from mim_components.data.names import unique_names
from mim_components.data.prepare import volumes as prepare_module
from mim_components.data.prepare.memory import CheckMemory

ENTRIES = 10_000
MIB = 2**20


def resident() -> int:
    """Resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.slow
def test_folder_of_many_scans_takes_little_memory(tmp_path, write_nifti):
    """The files are one file under many names, whose header is read 10,000 times."""
    first = write_nifti("data/000/scan.nii.gz")
    for number in range(1, ENTRIES):
        folder = tmp_path / "data" / f"{number % 100:03d}"
        folder.mkdir(exist_ok=True)
        os.link(first, folder / f"scan_{number}.nii.gz")
    cache = VolumeCache(tmp_path / "cache")
    how, known = prepare_module._How(cache.folder, "full"), CheckMemory(cache.folder, "volumes")
    warm = find_volumes(tmp_path / "data" / "000")
    assert [prepare_module._inspect(source, known, how) for source in warm]
    before = resident()
    found = find_volumes(tmp_path / "data")
    tasks = [prepare_module._inspect(source, known, how) for source in found]
    missing = [task for task in tasks if cache.read(task.source, task.header, "quick") is None]
    assert len(missing) == ENTRIES
    assert resident() - before < 50 * MIB


@pytest.mark.slow
def test_voxels_of_many_scans_are_not_kept(tmp_path, write_nifti, monkeypatch):
    """Every volume decodes to 1 MiB; of 300 of them, only the facts about them stay in memory."""
    path = write_nifti("data/scan.nii.gz")
    sources = [VolumeSource(path, (path,), alias=f"scan {number}") for number in range(300)]
    decode = prepare_module.decode_volume

    def large(source, *rest):
        decoded = decode(source, *rest)
        object.__setattr__(decoded, "voxels", np.full((128, 64, 64), len(str(source)), np.int16))
        return decoded

    def forget(self, source, header, state, decoded):
        record = {"intensity_range": [0, 1], "shape": decoded.voxels.shape, "spacing": [1, 1, 1], "affine": np.eye(4)}
        record |= {"digest": "0" * 64, "state": vars(state), "notes": [], "crc32": 0}
        return cache_module._as_volume(source, path, record)

    monkeypatch.setattr(prepare_module, "decode_volume", large)
    monkeypatch.setattr(VolumeCache, "write", forget)
    prepare_module.prepare_volumes(FoundVolumes(sources[:20]), tmp_path / "cache", progress=False)
    before = resident()
    assert len(prepare_module.prepare_volumes(FoundVolumes(sources), tmp_path / "cache", progress=False)) == 300
    assert resident() - before < 50 * MIB


@pytest.mark.slow
@pytest.mark.parametrize("load", [load_datalist, load_cases])
def test_work_of_a_list_grows_with_its_entries_only(tmp_path, load):
    """Many volumes have the same file name, and must get distinct names."""
    seconds = []
    for count in (ENTRIES, 10 * ENTRIES):
        items = [{"image": f"p{n % 500}/ct_{n // 500}.nii", "label": f"p{n % 500}/l.nii"} for n in range(count)]
        path = tmp_path / f"{count}.json"
        path.write_text(json.dumps({"training": items}))
        start = process_time()
        assert len(load(path)) == count
        seconds.append(process_time() - start)
    assert seconds[1] < 20 * seconds[0]


def test_names_that_only_a_number_tells_apart():
    files = [Path(f"/elsewhere/{number}/ct.nii") for number in range(500)]
    names = unique_names([VolumeSource(path, (path,)) for path in files], Path("/data"))
    assert names[:3] == ["ct_2", "ct_3", "ct_4"] and len(set(names)) == 500
