"""Files are written atomically: the old content survives every failure, and the message names the file."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mim_components.utils.files import write_safely
from mim_components.utils.tensor_files import save_to


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_writes_and_makes_the_folder(tmp_path: Path) -> None:
    path = write_safely(tmp_path / "a" / "b" / "file.txt", lambda partial: partial.write_text("new"))
    assert path == tmp_path / "a" / "b" / "file.txt" and path.read_text() == "new"
    assert names(path.parent) == ["file.txt"]


def test_reader_sees_the_old_file_while_the_new_one_is_written(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    seen = []

    def write(partial: Path) -> None:
        partial.write_text("new")
        seen.append((partial.parent, path.read_text()))  # beside the file: a rename needs the same file system

    write_safely(path, write)
    assert seen == [(tmp_path, "old")] and path.read_text() == "new"


def test_content_is_on_the_disk_before_the_name_and_the_name_before_returning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(
        os, "fsync", lambda number: (done.append(Path(f"/proc/self/fd/{number}").resolve()), fsync(number))
    )
    monkeypatch.setattr(Path, "replace", lambda self, other: (done.append("rename"), replace(self, other))[1])
    write_safely(tmp_path / "file", lambda partial: partial.write_text("new"))
    assert len(done) == 3 and done[0].name.endswith(".partial") and done[1:] == ["rename", tmp_path.resolve()]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_disk_error_names_path_and_cause_and_leaves_the_old_file(tmp_path: Path, code: int) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail(partial: Path) -> None:
        partial.write_text("ne")
        raise OSError(code, os.strerror(code))

    with pytest.raises(OSError, match=f"cannot write {path}: {os.strerror(code)}") as failed:
        write_safely(path, fail)
    assert failed.value.errno == code
    assert path.read_text() == "old" and names(tmp_path) == ["file.txt"]


def test_disk_error_when_the_content_is_brought_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"cannot write {path}: No space left on device"):
        write_safely(path, lambda partial: partial.write_text("new"))
    assert path.read_text() == "old" and names(tmp_path) == ["file.txt"]


def test_any_other_error_passes_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail(partial: Path) -> None:
        partial.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_safely(path, fail)
    assert path.read_text() == "old" and names(tmp_path) == ["file.txt"]


@pytest.fixture
def small_files_only() -> Iterator[None]:
    """Limit files of this process to 100 kB, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files_only")
def test_file_beyond_the_limit_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot write .*file: File too large"):
        write_safely(tmp_path / "file", lambda partial: partial.write_bytes(bytes(200_000)))
    assert names(tmp_path) == []


@pytest.mark.usefixtures("small_files_only")
def test_checkpoint_beyond_the_limit_of_the_system_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot write .*file"):
        write_safely(tmp_path / "file", lambda partial: save_to(partial, {"a": torch.zeros(100_000)}))
