"""Bad volumes: listed in a file, cached until their files change, and left out only if they are few."""

import json
import os
from hashlib import sha256

import pytest

from mim_components.data import BadVolumesError, DataError, prepare_volumes
from mim_components.data.find.walk import find_volumes
from mim_components.data.names import name_sources
from mim_components.data.prepare import volumes as prepare_module
from mim_components.data.prepare.memory import RecordLines, bad_volume, digest_of_files
from mim_components.data.prepare.quarantine import check_on_bad, refuse_bad, write_quarantine
from mim_components.data.state import state_of
from mim_components.data.volumes import BadVolume, VolumeError


@pytest.fixture
def scans(tmp_path, write_nifti, ct):
    """One good volume, one that is cut, one that holds no file at all."""
    write_nifti("data/good.nii.gz")
    cut = write_nifti("data/cut.nii.gz", ct[::-1])
    cut.write_bytes(cut.read_bytes()[:-8])
    (tmp_path / "data" / "gone.nii").symlink_to(tmp_path / "nowhere")
    return tmp_path / "data"


@pytest.fixture
def prepare(scans, tmp_path, monkeypatch):
    """Prepare, leaving out bad volumes; returns the result and the names of the decoded volumes."""

    def run(output="out", found=None, **options):
        decoded, decode = [], prepare_module.decode_volume
        monkeypatch.setattr(
            prepare_module, "decode_volume", lambda s, *rest: decoded.append(s.path.name) or decode(s, *rest)
        )
        options = {"on_bad": "exclude", "max_bad_fraction": 1, "progress": False, **options}
        try:
            found = find_volumes(scans) if found is None else found
            return prepare_volumes(found, tmp_path / "cache", output_dir=tmp_path / output, **options), decoded
        finally:
            monkeypatch.setattr(prepare_module, "decode_volume", decode)

    return run


def rows(folder):
    return [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]


def test_file_names_path_digest_state_and_reason(prepare, scans, tmp_path):
    prepare()
    cut, gone = rows(tmp_path / "out")
    path = scans / "cut.nii.gz"
    assert cut["path"] == str(path) and cut["reason"].startswith("truncated: ")
    assert cut["digest"] == sha256(path.read_bytes()).hexdigest()
    assert (cut["state"]["files"], cut["state"]["size"]) == (1, path.stat().st_size)
    assert gone == {
        "path": str(scans / "gone.nii"),
        "digest": None,
        "state": None,
        "reason": "a link to a file that does not exist",
    }


def test_file_is_written_when_the_run_stops_and_goes_when_nothing_is_bad(prepare, scans, tmp_path):
    with pytest.raises(BadVolumesError, match="2 of 3 volumes cannot be used:\n"):
        prepare(on_bad="stop")
    assert len(rows(tmp_path / "out")) == 2
    for name in ("cut.nii.gz", "gone.nii"):
        (scans / name).unlink()
    prepare(on_bad="stop")
    assert not (tmp_path / "out" / "quarantine.jsonl").exists()


def test_folder_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    write_quarantine(tmp_path / "file", [BadVolume("a", "b")])
    assert "the list of bad volumes cannot be written" in caplog.text


def test_known_bad_file_is_not_decoded_again_until_it_changes(prepare, scans, tmp_path, write_nifti, ct):
    first, decoded = prepare()
    assert sorted(decoded) == ["cut.nii.gz", "good.nii.gz"]
    again, decoded = prepare("another")
    assert decoded == [] and again.bad == first.bad
    assert rows(tmp_path / "another") == rows(tmp_path / "out")
    os.utime(scans / "cut.nii.gz")
    assert prepare()[1] == ["cut.nii.gz"]
    write_nifti("data/cut.nii.gz", ct[::-1])
    repaired, decoded = prepare()
    assert decoded == ["cut.nii.gz"] and [volume.name for volume in repaired.volumes] == ["cut", "good"]


def test_memory_that_is_damaged_costs_time_only(prepare, tmp_path):
    first, _ = prepare()
    memory = tmp_path / "cache" / "checks.jsonl"
    memory.write_bytes(memory.read_bytes().replace(b"truncated", b"trunkated"))
    again, decoded = prepare()
    assert decoded == ["cut.nii.gz"] and again.bad == first.bad


def test_bad_header_is_judged_anew_but_hashed_once(prepare, scans, monkeypatch):
    (scans / "page.nii").write_text("<html>")
    first, _ = prepare()
    monkeypatch.setattr("mim_components.data.prepare.memory.sha256", lambda *_: pytest.fail("hashed again"))
    again, _ = prepare()
    assert [item.digest for item in again.bad] == [item.digest for item in first.bad]
    assert again.bad[2].digest == sha256(b"<html>").hexdigest() and "web page" in again.bad[2].cause


@pytest.mark.parametrize("cause", [OSError(5, "Input/output error"), MemoryError()])
def test_what_the_system_refused_is_tried_again(tmp_path, cause):
    path = tmp_path / "a.nii"
    path.write_bytes(b"x")
    error = VolumeError("cannot be read")
    assert bad_volume("a", error, [path]).permanent
    error.__cause__ = VolumeError("inner")
    assert bad_volume("a", error, [path]).permanent
    error.__cause__.__cause__ = cause
    assert not bad_volume("a", error, [path]).permanent
    assert not bad_volume("a", KeyError("x"), [path]).permanent


def test_no_files_have_neither_state_nor_digest(tmp_path, monkeypatch):
    assert state_of([]) is None and digest_of_files([]) is None
    os.mkfifo(tmp_path / "pipe")
    assert digest_of_files([tmp_path / "pipe"]) is None  # opening it would wait for ever
    (tmp_path / "file").write_bytes(b"x")

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("mim_components.data.prepare.memory.sha256", fail)
    assert digest_of_files([tmp_path / "file"]) is None


@pytest.mark.parametrize(
    ("count", "total", "fraction", "fits"),
    [(1, 20, 0.05, True), (2, 20, 0.05, False), (1, 19, 0.05, False), (3, 5, 0.6, True), (0, 0, 0, True), (1, 9, 0, 0)],
)
def test_share_that_may_be_left_out(count, total, fraction, fits):
    bad = [BadVolume(str(number), "cut") for number in range(count)]
    if fits:
        return refuse_bad(bad, total, "exclude", fraction)
    allowed = int(fraction * total + 1e-9)
    text = f"{count} of {total} volumes cannot be used; max_bad_fraction={fraction:g} allows leaving out {allowed}:\n"
    with pytest.raises(BadVolumesError) as raised:
        refuse_bad(bad, total, "exclude", fraction)
    message = str(raised.value)
    assert message.startswith(text + "  0: cut\n") and "raise --prepared::max_bad_fraction" in message


@pytest.mark.parametrize("value", ["0.1", None, float("nan"), -0.1, 2, True])
def test_share_must_be_a_share(value):
    with pytest.raises(DataError, match="max_bad_fraction must be from 0 to 1"):
        check_on_bad("exclude", value)


def test_more_than_the_share_stops_before_training(prepare, tmp_path):
    with pytest.raises(BadVolumesError, match="2 of 3 volumes cannot be used; max_bad_fraction=0.05 allows .* 0:"):
        prepare(max_bad_fraction=0.05)
    assert len(rows(tmp_path / "out")) == 2


def test_names_can_be_digests(prepare, scans, tmp_path):
    found = find_volumes(scans)
    hidden, _ = prepare(found=name_sources(found))
    names = [volume.source for volume in hidden.volumes] + [item.path for item in hidden.bad]
    assert all(name.startswith("scan-") and len(name) == 17 for name in names) and len(set(names)) == 3
    texts = [path.read_text() for path in (tmp_path / "out").iterdir()]
    texts += [path.read_text() for path in (tmp_path / "cache").rglob("*.json*")]
    assert texts and not any("cut" in text.replace("truncated", "") or "good" in text for text in texts)
    assert prepare(found=found)[1] == ["cut.nii.gz"]  # what is kept of it would not name it


def test_last_record_of_a_key_counts(tmp_path):
    lines = RecordLines(tmp_path / "a.jsonl")
    lines.keep("k", {"value": 1})
    lines.keep("k", {"value": 2})
    assert lines.get("k") == {"value": 2}
    assert RecordLines(tmp_path / "a.jsonl").get("k") == {"key": "k", "value": 2}
    assert lines.get("other") is None
