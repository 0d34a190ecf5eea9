"""The cache of transformed scans: equal to no cache, never stale, never damaged."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, ScaleIntensityRanged, Transform

from mim_components.data import TransformCache
from mim_components.data.state import state_of, state_text
from mim_components.data.volumes import ItemError

MODULE = "mim_components.data.cache.transforms"


def write(path: Path, value: int) -> None:
    nib.save(nib.Nifti1Image(np.full((3, 4, 5), value, dtype=np.int16), np.eye(4)), path)


def transform(top: float = 100.0) -> Compose:
    scale = ScaleIntensityRanged("image", 0.0, top, 0.0, 1.0)
    return Compose([LoadImaged("image"), EnsureChannelFirstd("image"), scale])


class Read(Transform):
    """The text of a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, data: Any) -> dict[str, str]:
        return {"image": self.path.read_text()}


def first(folder: Path, top: float = 100.0, **item: Any) -> Any:
    items = [{"image": str(folder / "scan.nii"), "source": "scan", **item}]
    return TransformCache(items, transform(top), folder / "cache")[0]


def files(folder: Path) -> list[Path]:
    return sorted((folder / "cache").iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "scan.nii", 50)
    return tmp_path


def test_second_time_comes_from_the_cache(folder: Path) -> None:
    item = first(folder)
    assert item["image"].shape == (1, 3, 4, 5) and bool((item["image"] == 0.5).all())
    assert not isinstance(item["image"], MetaTensor)
    assert len(files(folder)) == 1
    torch.save({"image": torch.full((1, 1, 1, 1), 7.0)}, files(folder)[0])  # the file is what is read
    assert first(folder)["image"].item() == 7.0


@pytest.mark.parametrize("named_content", [False, True], ids=["by size and time", "by digest"])
def test_changed_scan_or_transform_is_made_anew(folder: Path, named_content: bool) -> None:
    first(folder, **({"digest": "a"} if named_content else {}))
    assert first(folder, top=200.0, **({"digest": "a"} if named_content else {}))["image"].max() == 0.25
    write(folder / "scan.nii", 20)
    assert first(folder, **({"digest": "b"} if named_content else {}))["image"].max() == pytest.approx(0.2)
    assert len(files(folder)) == 3


@pytest.mark.parametrize("name", ["monai.__version__", *(f"{MODULE}.{each}" for each in ("__version__", "FORMAT"))])
def test_another_version_makes_it_anew(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first(folder, digest="a")
    write(folder / "scan.nii", 20)
    assert first(folder, digest="a")["image"].max() == 0.5
    monkeypatch.setattr(name, "9.9.9")
    assert first(folder, digest="a")["image"].max() == pytest.approx(0.2)


def test_slice_or_file_that_only_the_time_of_its_inode_tells_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "scan" / "series").mkdir(parents=True)
    path = tmp_path / "scan" / "series" / "0.dcm"

    def made(image: Path) -> str:
        return TransformCache([{"image": str(image)}], Read(path), tmp_path / "cache")[0]["image"]

    for image in (tmp_path / "scan", path):
        path.write_bytes(b"first")
        assert made(image) == made(image) == "first"
        old = path.stat()
        path.write_bytes(b"other")
        os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))  # what `cp -p` does
        assert made(image) == "other"


def test_item_whose_files_have_no_state_is_not_cached(tmp_path: Path) -> None:
    (tmp_path / "scan").mkdir()
    (tmp_path / "scan" / "1.png").symlink_to("nowhere")
    path = tmp_path / "text"
    cache = TransformCache([{"image": str(tmp_path / "scan")}], Read(path), tmp_path / "cache")
    for text in ("a", "b"):
        path.write_text(text)
        assert cache[0]["image"] == text
    with pytest.raises(ItemError, match="^scan: "):
        first(tmp_path)  # there is no such file


def test_same_item_has_the_same_file_in_another_process(folder: Path) -> None:
    names = []
    for _ in range(2):
        cache = TransformCache([{"image": "x", "digest": "a"}], transform(), folder / "cache")
        names.append(cache._path(cache.data[0]))
    assert names[0] == names[1]


def test_damaged_file_is_made_anew_and_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    first(folder)
    path = files(folder)[0]
    path.write_bytes(path.read_bytes()[:-100])
    with caplog.at_level("WARNING"):
        assert first(folder)["image"].max() == 0.5
    assert str(path) in caplog.text and "it is regenerated" in caplog.text
    caplog.clear()
    assert first(folder)["image"].max() == 0.5 and "regenerated" not in caplog.text


def test_full_disk_costs_the_cache_only(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, write: Any) -> None:
        raise OSError(28, f"cannot write {path}: No space left on device")

    monkeypatch.setattr("mim_components.data.cache.transforms.write_safely", full)
    cache = TransformCache([{"image": str(folder / "scan.nii")}] * 2, transform(), folder / "cache")
    assert [item["image"].max() for item in cache] == [0.5, 0.5]  # type: ignore[attr-defined]
    assert caplog.text.count("No space left on device; the run continues without writing to the cache") == 1


def test_unreadable_scan_is_named(folder: Path) -> None:
    (folder / "scan.nii").write_bytes(b"no scan")
    with pytest.raises(ItemError, match=r"^scan: "):
        first(folder)


def test_without_a_cache(folder: Path) -> None:
    cache = TransformCache([{"image": str(folder / "scan.nii")}], transform(), None)
    assert cache[0]["image"].max() == 0.5 and list(folder.iterdir()) == [folder / "scan.nii"]


# the scan, in the middle of a run


def checked(folder: Path) -> dict[str, Any]:
    """The result of the preparation's check of the scan."""
    return {"digest": "a", "state": state_text(state_of([folder / "scan.nii"]))}


@pytest.mark.parametrize("how", ["cut", "deleted", "another shape of file"])
def test_bad_file_is_made_again_from_a_scan_that_is_unchanged(how: str, folder: Path) -> None:
    item = checked(folder)
    first(folder, **item)
    path = files(folder)[0]
    before = path.read_bytes()
    {"cut": lambda: path.write_bytes(before[:50]), "deleted": path.unlink}.get(how, lambda: torch.save([1], path))()
    assert first(folder, **item)["image"].max() == 0.5 and path.read_bytes() == before


@pytest.mark.parametrize("lost", ["deleted", "cut"])
@pytest.mark.parametrize("source", ["changed", "gone"])
def test_scan_that_changed_matters_only_where_the_cache_has_it_not(lost: str, source: str, folder: Path) -> None:
    item = checked(folder)
    first(folder, **item)
    path = files(folder)[0]
    if source == "gone":
        (folder / "scan.nii").unlink()
    else:
        write(folder / "scan.nii", 20)
    assert first(folder, **item)["image"].max() == 0.5  # the run reads the cache
    if lost == "deleted":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ItemError, match=rf"^scan: .*\(In the cache: {path}: ") as failed:
        first(folder, **item)
    said = "its files have changed since they were checked" if source == "changed" else "No such file"
    assert said in str(failed.value)
    assert files(folder) == ([] if lost == "deleted" else [path])  # nothing of the changed scan is cached
