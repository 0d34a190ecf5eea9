import os
import pickle
import signal
import threading
import time
from functools import partial

import numpy as np
import pytest

from mim_components.data import (
    BadVolume,
    BadVolumesError,
    CacheError,
    DataError,
    FoundVolumes,
    PreparedDataset,
    PreparedVolume,
    VolumeSource,
    find_sources,
    open_cached,
    prepare_volumes,
)
from mim_components.data.cache.volumes import VolumeCache
from mim_components.data.find.walk import find_volumes
from mim_components.data.prepare import phase as phase_module
from mim_components.data.prepare import volumes as prepare_module
from mim_tools.prepare import main

EXCLUDE = {"on_bad": "exclude", "max_bad_fraction": 1}


@pytest.fixture
def mixed(tmp_path, write_nifti, ct):
    """Folder with two good volumes and three bad ones."""
    write_nifti("data/a.nii.gz")
    write_nifti("data/d.nii.gz", ct[::-1])
    write_nifti("data/b.nii.gz", np.zeros_like(ct))
    (tmp_path / "data" / "c.nii").write_bytes(b"")
    (tmp_path / "data" / "e.mha").write_text("<html>")
    return tmp_path / "data"


def test_stop_lists_every_bad_volume_at_once(mixed, tmp_path):
    with pytest.raises(BadVolumesError, match="3 of 5 volumes cannot be used") as raised:
        prepare_volumes(find_volumes(mixed), tmp_path / "cache", progress=False)
    text = str(raised.value)
    assert f"{mixed}/b.nii.gz: constant: every voxel is 0" in text
    assert f"{mixed}/c.nii: the file is empty (0 bytes)" in text
    assert f"{mixed}/e.mha: not a MetaImage header: '<html>'" in text
    assert "on_bad='exclude'" in text


def test_exclude_leaves_them_out_and_keeps_the_record(mixed, tmp_path, caplog):
    dataset = prepare_volumes(find_volumes(mixed), tmp_path / "cache", **EXCLUDE, progress=False)
    assert [volume.name for volume in dataset.volumes] == ["a", "d"]
    assert [item.path.rsplit("/")[-1] for item in dataset.bad] == ["b.nii.gz", "c.nii", "e.mha"]
    assert "3 left out:" in dataset.summary()
    assert caplog.text.count("left out:") == 3


def test_nothing_left_is_an_error_even_with_exclude(tmp_path, write_nifti, ct):
    write_nifti("data/b.nii.gz", np.zeros_like(ct))
    with pytest.raises(BadVolumesError, match="1 of 1 volumes"):
        prepare_volumes(find_volumes(tmp_path / "data"), tmp_path / "cache", **EXCLUDE, progress=False)
    with pytest.raises(DataError, match="no volumes were given"):
        prepare_volumes(FoundVolumes([]), tmp_path / "cache", progress=False)


@pytest.mark.slow
def test_workers_give_the_same_as_one_process(mixed, tmp_path):
    found = find_volumes(mixed)
    serial = prepare_volumes(found, tmp_path / "serial", **EXCLUDE, progress=False)
    parallel = prepare_volumes(found, tmp_path / "parallel", **EXCLUDE, progress=False, num_workers=2)
    assert parallel.bad == serial.bad
    assert parallel.digest == serial.digest
    assert [volume.name for volume in parallel.volumes] == [volume.name for volume in serial.volumes]
    for one, two in zip(parallel.volumes, serial.volumes, strict=True):
        assert one.cache_file.read_bytes() == two.cache_file.read_bytes()


def test_two_at_once_in_one_cache(mixed, tmp_path, ct):
    found = find_volumes(mixed)
    results = []

    def work():
        results.append(prepare_volumes(found, tmp_path / "cache", **EXCLUDE, progress=False))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({result.digest for result in results}) == 1 and len(results) == 4
    np.testing.assert_array_equal(open_cached(results[0].volumes[0]), ct)


def test_unforeseen_error_is_listed_with_the_others(mixed, tmp_path, monkeypatch):
    def fail(source, header, modality):
        raise KeyError("surprise")

    monkeypatch.setattr(prepare_module, "decode_volume", fail)
    with pytest.raises(BadVolumesError, match="5 of 5 volumes(.|\n)*cannot be read: KeyError: 'surprise'"):
        prepare_volumes(find_volumes(mixed), tmp_path / "cache", progress=False)


def test_error_of_bad_volumes_survives_a_process_boundary():
    error = pickle.loads(pickle.dumps(BadVolumesError([BadVolume("a.nii", "constant")], 3)))
    assert str(error).startswith("1 of 3 volumes cannot be used:\n  a.nii: constant\n")


def test_duplicates_are_found_by_content_whatever_their_format(tmp_path, write_nifti, ct):
    write_nifti("data/a.nii.gz")
    write_nifti("data/copy.nii")
    write_nifti("data/other.nii", ct[::-1])
    dataset = prepare_volumes(find_volumes(tmp_path / "data"), tmp_path / "cache", progress=False)
    assert len(dataset) == 3
    assert len(dataset.notes) == 1
    assert "copy.nii: the same voxels as" in dataset.notes[0] and "a.nii.gz" in dataset.notes[0]


def test_digest_names_the_data_not_their_place(tmp_path, write_nifti, ct):
    for folder in ("one", "two"):
        write_nifti(f"{folder}/{folder}.nii")
    write_nifti("three/x.nii", ct[::-1])
    digests = [
        prepare_volumes(find_volumes(tmp_path / folder), tmp_path / "cache", progress=False).digest
        for folder in ("one", "two", "three")
    ]
    assert digests[0] == digests[1] != digests[2]


def test_max_voxels_is_a_limit(tmp_path, write_nifti):
    write_nifti("data/a.nii")
    with pytest.raises(BadVolumesError, match="is 1,680 voxels, more than max_voxels=1,679"):
        prepare_volumes(find_volumes(tmp_path / "data"), tmp_path / "cache", progress=False, max_voxels=1679)


@pytest.fixture
def meanwhile(monkeypatch):
    """Do something after the headers were read, before a volume is decoded."""

    def do(action):
        monkeypatch.setattr(VolumeCache, "check_space", lambda cache, needed: action())

    return do


def test_file_replaced_after_its_header_was_read_has_its_own_affine(tmp_path, write_nifti, ct, meanwhile):
    path = write_nifti("data/a.nii")
    turned = np.diag([-1.0, 1.0, 3.0, 1.0])
    meanwhile(lambda: write_nifti("data/a.nii", ct + 1, turned))
    first, again = (
        prepare_volumes([VolumeSource(path, (path,))], tmp_path / "cache", progress=False, verify="full").volumes[0]
        for _ in range(2)
    )
    for volume in (first, again):
        assert volume.spacing == (1.0, 1.0, 3.0)
        np.testing.assert_array_equal(open_cached(volume), (ct + 1)[::-1])


def test_data_file_named_after_the_header_was_read_is_watched(tmp_path, ct, meanwhile):
    path = tmp_path / "a.mhd"
    head = "NDims = 3\nDimSize = 10 12 14\nElementType = MET_SHORT\nElementDataFile = "
    for name, voxels in (("a.raw", ct), ("b.raw", ct + 1)):
        (tmp_path / name).write_bytes(voxels.tobytes(order="F"))
    path.write_text(f"{head}a.raw\n")
    meanwhile(lambda: path.write_text(f"{head}b.raw\n"))

    def prepare():
        return open_cached(prepare_volumes([VolumeSource(path, (path,))], tmp_path / "c", progress=False).volumes[0])

    np.testing.assert_array_equal(prepare(), (ct + 1)[::-1, ::-1])
    (tmp_path / "b.raw").write_bytes((ct + 2).tobytes(order="F"))
    np.testing.assert_array_equal(prepare(), (ct + 2)[::-1, ::-1])


def test_header_that_became_bad_is_judged_again_at_the_next_start(tmp_path, write_nifti, ct, meanwhile):
    path = write_nifti("data/a.nii")
    options = {"cache_dir": tmp_path / "cache", "progress": False}
    meanwhile(lambda: write_nifti("data/a.nii", np.concatenate([ct, ct])))
    with pytest.raises(BadVolumesError, match="is 3,360 voxels, more than max_voxels=1,680"):
        prepare_volumes([VolumeSource(path, (path,))], max_voxels=1680, **options)
    assert prepare_volumes([VolumeSource(path, (path,))], **options).volumes[0].shape == (20, 12, 14)


def test_summary_and_small_volumes(tmp_path):
    def volume(shape, spacing):
        return PreparedVolume("a", "a", tmp_path, shape, spacing, np.eye(4), "", 2**30)

    dataset = PreparedDataset([volume((100, 90, 80), (1, 1, 5)), volume((50, 90, 200), (2, 1, 1))])
    assert dataset.summary().splitlines() == [
        "2 volumes, 2.00 GiB of files, 0.00 GiB of cache",
        "size    median 75 x 90 x 140 voxels, from 50 x 90 x 80 to 100 x 90 x 200",
        "spacing median 1.50 x 1.00 x 3.00 mm, from 1.00 x 1.00 x 1.00 to 2.00 x 1.00 x 5.00",
    ]
    assert [dataset.count_smaller_than(size) for size in ((50, 90, 80), (96, 90, 80), (96, 96, 96))] == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_bad": "skip"}, "on_bad must be one of"),
        ({"max_bad_fraction": 1.5}, "max_bad_fraction must be from 0 to 1, got 1.5"),
        ({"max_bad_fraction": True}, "max_bad_fraction must be from 0 to 1, got True"),
        ({"verify": "none"}, "verify must be one of"),
        ({"num_workers": -1}, "num_workers must not be negative"),
    ],
)
def test_wrong_options(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        prepare_volumes(FoundVolumes([]), tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {},
            r"one way:\n  --dataset_dir .*\n  --datalist .*\n.*\n  --collection 1k --data_root (.*\n){2}.*demo\.json",
        ),
        ({"dataset_dir": "a", "collection": "1k", "data_root": "b"}, "exactly one way"),
        ({"datalist": "a", "collection": "1k", "data_root": "b"}, "exactly one way"),
        ({"collection": "1k"}, "collection and data_root belong together"),
        ({"data_root": "b", "dataset_dir": "a"}, "collection and data_root belong together"),
    ],
)
def test_sources_are_given_in_exactly_one_way(options, message):
    with pytest.raises(DataError, match=message):
        find_sources(**options)


def test_the_three_ways_to_find_sources(tmp_path, write_nifti):
    write_nifti("data/img0001.nii.gz")
    (tmp_path / "list.json").write_text('{"training": [{"image": "img0001.nii.gz"}]}')
    for found in (
        find_sources(tmp_path / "data"),
        find_sources(tmp_path / "data", tmp_path / "list.json"),
        find_sources(collection="1k", data_root=tmp_path),
    ):
        assert [source.name for source in found] == ["img0001"]


def test_command_succeeds_and_prints_the_summary(tmp_path, write_nifti, capsys):
    write_nifti("data/img0001.nii.gz")
    cache = ["--cache_dir", str(tmp_path / "cache")]
    assert main([str(tmp_path / "data"), *cache]) == 0
    assert "1 volume, 0.00 GiB of files" in capsys.readouterr().out
    assert main(["--collection", "1k", "--data_root", str(tmp_path / "data"), *cache]) == 0
    assert "BTCV                   1        24" in capsys.readouterr().out


def test_command_lists_bad_volumes_and_exits_1(mixed, tmp_path, capsys):
    command = [str(mixed), "--cache_dir", str(tmp_path / "cache")]
    assert main(command) == 1
    captured = capsys.readouterr()
    assert "3 of 5 volumes are bad:" in captured.out and "constant: every voxel is 0" in captured.out
    last = captured.err.splitlines()[-1]
    assert last.startswith(f"ERROR {mixed}/b.nii.gz: constant: every voxel is 0. Do: ")
    exclude = [*command, "--on_bad", "exclude", "--output_dir", str(tmp_path / "out"), "--max_bad_fraction"]
    assert main([*exclude, "0.5"]) == 1
    captured = capsys.readouterr()
    assert "3 of 5 volumes are bad, --max_bad_fraction is 0.5:" in captured.out
    assert "Do: repair or remove the bad ones, or raise --max_bad_fraction above 0.600." in captured.err
    assert main([*exclude, "0.6"]) == 0
    assert len((tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()) == 3
    assert "3 left out:" in capsys.readouterr().out


def test_command_takes_any_name(tmp_path, write_nifti, capsys):
    write_nifti("data/a.nii.gz")
    names = ("M\udcfcller.nii", "x\x1b[2J\nERROR: faked.nii")  # Latin-1; escape codes and a line break
    for name in names:
        (tmp_path / "data" / name).write_bytes(b"")
    assert main([str(tmp_path / "data"), "--cache_dir", str(tmp_path / "cache")]) == 1
    captured = capsys.readouterr()
    assert "M\\udcfcller.nii  " in captured.out and "x\\x1b[2J\\nERROR: faked.nii  " in captured.out
    assert [line for line in captured.err.splitlines() if line.startswith("ERROR")] == [captured.err.splitlines()[-1]]


def test_command_without_data_exits_2(tmp_path, capsys):
    assert main([]) == 2
    assert "ERROR Give the data in exactly one way" in capsys.readouterr().err
    with pytest.raises(SystemExit) as raised:
        main(["--on_bad", "ignore"])
    assert raised.value.code == 2


def test_killed_worker_is_reported(mixed, tmp_path, monkeypatch):
    class Broken:
        def __init__(self, *args, **kwargs):
            pass

        def map(self, *args):
            raise phase_module.BrokenProcessPool("died")

        def shutdown(self, cancel_futures):
            pass

    monkeypatch.setattr(phase_module, "ProcessPoolExecutor", Broken)
    with pytest.raises(
        DataError, match=r"a worker that prepares volumes was killed \(out of memory\?\); num_workers=2"
    ):
        prepare_volumes(find_volumes(mixed), tmp_path / "cache", progress=False, num_workers=2)


def test_cache_errors_are_not_taken_for_bad_volumes(mixed, tmp_path, monkeypatch):
    def fail(*args):
        raise CacheError("disk full")

    monkeypatch.setattr("mim_components.data.cache.volumes.VolumeCache.write", fail)
    with pytest.raises(CacheError, match="disk full"):
        prepare_volumes(find_volumes(mixed), tmp_path / "cache", progress=False)


def test_real_volumes(real_data, tmp_path):
    folder = real_data / "tptbox_spine"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    dataset = prepare_volumes(find_volumes(folder), tmp_path / "cache", **EXCLUDE, progress=False)
    (volume,) = dataset.volumes
    assert volume.name == "sub-ct_label-22_ct"
    assert volume.shape == (73, 73, 47)  # stored as P, I, R: 73 x 47 x 73 is turned to R, A, S
    assert not dataset.bad and [item.how for item in dataset.passed] == ["content", "content"]


def test_ctrl_c_is_answered_by_the_first_process_alone() -> None:
    blocked = partial(signal.pthread_sigmask, signal.SIG_BLOCK)  # a worker's answer: what it has blocked
    before = blocked(())
    masks = list(phase_module.run_each(blocked, [(), ()], 2, "prepare", "volume", progress=False))
    assert all(signal.SIGINT in mask for mask in masks) and blocked(()) == before


def test_ctrl_c_ends_the_workers_at_once() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it starts with & ignore it
    start = time.monotonic()
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            list(phase_module.run_each(time.sleep, [600, 600], 2, "prepare", "volume", progress=False))
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - start < 60
