from __future__ import annotations

import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mim_tools.verify import bundle as bundles
from mim_tools.verify import judge_bundle
from tests.tools.verify.good import only, write


def zipped(bundle: Path, extra: Callable[[zipfile.ZipFile], object] | None = None) -> Path:
    path = bundle.parent / "bundle.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for each in sorted(bundle.rglob("*")):
            archive.write(each, each.relative_to(bundle.parent))
        if extra is not None:
            extra(archive)
    return path


def link(archive: zipfile.ZipFile) -> None:
    info = zipfile.ZipInfo("bundle/models")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(info, "/etc")


def test_archive_is_judged_like_a_folder(bundle: Path) -> None:
    assert judge_bundle(zipped(bundle)) == []
    write(bundle, "configs/x.json", '{"x": "$exec(1)"}')
    assert only(judge_bundle(zipped(bundle))).file == "configs/x.json"


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        (lambda archive: archive.writestr("../evil.py", "x"), "leads out"),  # F6
        (lambda archive: archive.writestr("/tmp/evil.py", "x"), "absolute"),
        (lambda archive: archive.writestr("C:/evil.py", "x"), "absolute"),
        (lambda archive: archive.writestr("bundle\\..\\evil.py", "x"), "absolute"),
        (link, "link"),
        (lambda archive: archive.writestr("bundle/CONFIGS/train.json", "{}"), "two members"),
        (lambda archive: archive.writestr("bundle/zeros", bytes(2**24 + 1)), "unpacks from"),
    ],
    ids=["dots", "absolute", "drive", "backslash", "link", "twice", "bomb"],
)
def test_archive_that_does_more_than_unpack(bundle: Path, extra: Callable[[zipfile.ZipFile], object], why: str) -> None:
    before = sorted(bundle.parent.rglob("*"))
    findings = judge_bundle(zipped(bundle, extra))
    assert any(why in f"{found.what} {found.why}" for found in findings), findings
    assert sorted(bundle.parent.rglob("*")) == sorted([*before, bundle.parent / "bundle.zip"])


def test_archive_that_cannot_be_judged(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zipped(bundle)
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1  # in the central directory: encrypted
    path.write_bytes(content)
    assert only(judge_bundle(path)).why == "is encrypted and cannot be judged"
    monkeypatch.setattr(bundles, "MOST_FILES", 2)
    monkeypatch.setattr(bundles, "MOST_BYTES", 10)
    monkeypatch.setattr(bundles, "_SMALL", 10)
    monkeypatch.setattr(bundles, "MOST_RATIO", 0)
    found = [found.what for found in judge_bundle(zipped(bundle)) if not found.key]
    assert found[0] == "3 members" and len(found) == 3


def test_archive_for_which_there_is_no_room(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(bundle)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ValueError, match="unpacks to .* bytes, 10 are free"):
        judge_bundle(zipped(bundle))
