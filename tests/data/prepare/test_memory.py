"""Cached results of checks are reused only for the same files and the same checker."""

import json
import os
from dataclasses import replace

import pytest

from mim_components.data import BadVolume, Case, CheckResult
from mim_components.data.prepare.memory import CheckMemory
from mim_components.data.state import state_of

FACTS = CheckResult("d" * 64, ("odd",), "c" * 64)


@pytest.fixture
def case(write):
    return Case("a", (write("i.nii"),), write("l.nii", "label"))


@pytest.fixture
def memory(tmp_path):
    """The memory of a new start, which reads what earlier ones left."""
    return lambda checker="checker": CheckMemory(tmp_path / "cache", checker)


def keep(memory, case, result):
    memory.keep(repr(case.label), case.source, case.files, state_of(case.files), result)


def recall(memory, case):
    return memory.recall(repr(case.label), case.source, case.files)


@pytest.fixture
def kept(case, memory):
    """A case whose facts were cached."""
    keep(memory(), case, FACTS)
    return case


def test_facts_come_back(kept, memory):
    assert recall(memory(), kept) == FACTS


def test_other_checker_other_case_and_other_label_are_new(kept, memory):
    assert recall(memory("another"), kept) is None
    assert recall(memory(), Case("b", kept.image, kept.image[0])) is None
    assert recall(memory(), Case("a", kept.image, 1)) is None


def test_changed_file_is_new(kept, memory):
    content = kept.label.read_bytes()
    info = kept.label.stat()
    kept.label.write_bytes(content[:-1] + b"x")
    os.utime(kept.label, ns=(info.st_atime_ns, info.st_mtime_ns))  # what `cp -p` does
    assert recall(memory(), kept) is None
    kept.label.unlink()
    assert recall(memory(), kept) is None


def test_folder_of_slices_is_its_files(tmp_path, memory):
    folder = tmp_path / "scan"
    folder.mkdir()
    case = Case("a", (folder,), 1)
    assert state_of(case.files) is None  # empty
    (folder / "0.png").write_bytes(b"12")
    (folder / "1.png").write_bytes(b"345")
    assert (state_of(case.files)["files"], state_of(case.files)["size"]) == (2, 5)
    keep(memory(), case, FACTS)
    assert recall(memory(), case) == FACTS
    (folder / "1.png").write_bytes(b"678")
    assert recall(memory(), case) is None


def test_last_line_counts(kept, memory):
    keep(memory(), kept, CheckResult("e"))
    assert recall(memory(), kept) == CheckResult("e")


@pytest.mark.parametrize("damage", ["cut", "flip", "binary", "empty", "other"])
def test_damaged_lines_are_passed_over(kept, memory, tmp_path, damage):
    path = tmp_path / "cache" / "checks.jsonl"
    content = path.read_bytes()
    path.write_bytes(
        {
            "cut": content[:-20],
            "flip": content.replace(b"dddd", b"ddde", 1),
            "binary": os.urandom(200),
            "empty": b"",
            "other": json.dumps({"key": 1}).encode(),
        }[damage]
    )
    assert recall(memory(), kept) is None
    keep(memory(), kept, FACTS)  # even after a line that was cut off
    assert recall(memory(), kept) == FACTS


def test_file_that_cannot_be_written_is_a_warning_once(case, memory, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    at_work = memory()
    keep(at_work, case, FACTS)
    keep(at_work, case, FACTS)
    assert caplog.text.count("results of checks cannot be kept: ") == 1


def test_case_whose_state_is_not_known_is_not_kept(case, memory):
    memory().keep(repr(case.label), case.source, case.files, None, FACTS)
    assert recall(memory(), case) is None


def test_bad_one_comes_back_where_it_has_the_same_name(case, memory):
    bad = BadVolume(case.source, f"{case.source}: damaged", "d" * 64, state_of(case.files), permanent=True)
    keep(memory(), case, bad)
    again = recall(memory(), case)
    assert again == bad and again.permanent and again.digest == bad.digest
    assert recall(memory(), replace(case, aliases=("scan-1", "file-1"))) is None  # the cause would name the file
    keep(memory(), case, replace(bad, cause="network", permanent=False))
    assert recall(memory(), case) == bad


def test_repaired_one_is_fit_and_a_bad_one_is_not(case, memory):
    """Each kind of result replaces the other when the files change."""
    keep(memory(), case, FACTS)
    case.label.write_bytes(b"damaged")
    bad = BadVolume(case.source, "damaged", None, state_of(case.files), permanent=True)
    keep(memory(), case, bad)
    assert recall(memory(), case) == bad
    case.label.write_bytes(b"repaired")
    assert recall(memory(), case) is None
    keep(memory(), case, FACTS)
    assert recall(memory(), case) == FACTS


def test_parts_of_the_same_files_are_apart(case, memory):
    memory().keep("header", "a", case.files, state_of(case.files), FACTS)
    assert memory().recall("voxels", "a", case.files) is None
    assert memory().recall("header", "a", case.files) == FACTS
