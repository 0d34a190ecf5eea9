"""The benchmark of the data path: all stores hold the same voxels, and its figures are checked by hand."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from benchmarks import data_path
from benchmarks.data_stores import low_level, map_store, monai_store, pages
from mim_components.data import find_sources, prepare_volumes

LEVELS = ((64, 64, 32), (16, 16, 16), (8, 8, 8))
INPUT = (32, 32, 32)


def test_low_level_by_hand():
    voxels = np.full((3, 2, 2), 3000, dtype=np.int16)
    voxels[0] = -1000
    # clipped to 1000 before the mean of 2 x 2 x 2: half of it -1000; the third slice is a rest
    assert low_level(voxels, (2, 2, 2)).tolist() == [[[0]]]


def test_pages_of_a_box():
    touched = pages((4, 4, 2048), itemsize=2)  # a row is one page
    assert touched((0, 0, 0), (2, 3, 1)) == 6 * 4096
    assert touched((0, 0, 0), (1, 1, 2048)) == 4096
    assert pages((4, 4, 1024), itemsize=2)((0, 0, 0), (1, 4, 10)) == 2 * 4096  # two rows share a page


def test_stores_give_the_same_volumes(tmp_path: Path):
    hu = np.random.default_rng(0).integers(-1200, 1200, (70, 66, 40)).astype(np.int16)
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.nii.gz"
    nib.save(nib.Nifti1Image(hu, np.diag([-1.0, -1.0, 1.0, 1.0])), path)
    volume = prepare_volumes(find_sources(tmp_path / "in"), tmp_path / "cache", progress=False).volumes[0]
    sampler = data_path.Sampler(volume.shape, LEVELS, INPUT)
    outs, samples = [], []
    for low in (False, True):
        for store in (monai_store(path, tmp_path, (2, 2, 1), low), map_store(volume, tmp_path, (2, 2, 1), low)):
            sampler.crop.set_random_state(1)
            outs.append(sampler.level1(store))
            samples.append(sampler.sample(store))
    torch.testing.assert_close(outs[0], outs[1])
    torch.testing.assert_close(outs[2], outs[3])
    for first, second in ((0, 1), (2, 3)):
        assert [len(volumes) for volumes in samples[first]] == [1, 4, 16]
        torch.testing.assert_close(samples[first], samples[second])


def test_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    threads = str(torch.get_num_threads())
    size = ["--size", "64", "64", "64", "--threads", threads, "--input_size", "32,32,32"]
    levels = ["--levels", "64,64,32", "16,16,16", "8,8,8"]
    data_path.main([*size, *levels, "--repetitions", "1", "--json", str(tmp_path / "a.json")])
    tables = json.loads((tmp_path / "a.json").read_text())["tables"]
    decode, caches, parts = tables.values()
    assert decode[0]["decoder"] == "zlib" and decode[0]["times faster"] == 1
    assert caches[0]["level-1 times faster"] == 1 and caches[0]["MiM MiB read"] == caches[0]["disk MiB"]
    assert [row["part"] for row in parts][-1] == "MultiLevelCropMask"
    assert "First decode, noisy synthetic CT 64x64x64" in capsys.readouterr().out
