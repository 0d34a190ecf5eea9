"""What a check found out is used again only for the same files and the same checker."""

import json
import os

import pytest

from mim_components.data import Case, CaseFacts
from mim_components.data.prepare.memory import CheckMemory, state_of

FACTS = CaseFacts("d" * 64, ("odd",), "c" * 64)


@pytest.fixture
def case(write):
    return Case("a", (write("i.nii"),), write("l.nii", "label"))


@pytest.fixture
def memory(tmp_path):
    """A new start that reads what earlier ones left."""
    return lambda checker="checker": CheckMemory(tmp_path / "cache" / "memory.jsonl", checker)


@pytest.fixture
def kept(case, memory):
    """A case whose facts were kept."""
    memory().keep(case, state_of(case), FACTS)
    return case


def test_facts_come_back(kept, memory):
    assert memory().recall(kept) == FACTS


def test_other_checker_other_case_and_other_label_are_new(kept, memory):
    assert memory("another").recall(kept) is None
    assert memory().recall(Case("b", kept.image, kept.image[0])) is None
    assert memory().recall(Case("a", kept.image, 1)) is None


def test_changed_file_is_new(kept, memory):
    content = kept.label.read_bytes()
    info = kept.label.stat()
    kept.label.write_bytes(content[:-1] + b"x")
    os.utime(kept.label, ns=(info.st_atime_ns, info.st_mtime_ns))  # what `cp -p` does
    assert memory().recall(kept) is None
    kept.label.unlink()
    assert memory().recall(kept) is None


def test_folder_of_slices_is_its_files(tmp_path, memory):
    folder = tmp_path / "scan"
    folder.mkdir()
    case = Case("a", (folder,), 1)
    assert state_of(case) is None  # empty
    (folder / "0.png").write_bytes(b"12")
    (folder / "1.png").write_bytes(b"345")
    assert (state_of(case)["files"], state_of(case)["size"]) == (2, 5)
    memory().keep(case, state_of(case), FACTS)
    assert memory().recall(case) == FACTS
    (folder / "1.png").write_bytes(b"678")
    assert memory().recall(case) is None


def test_last_line_counts(kept, memory):
    memory().keep(kept, state_of(kept), CaseFacts("e"))
    assert memory().recall(kept) == CaseFacts("e")


@pytest.mark.parametrize("damage", ["cut", "flip", "binary", "empty", "other"])
def test_damaged_lines_are_passed_over(kept, memory, tmp_path, damage):
    path = tmp_path / "cache" / "memory.jsonl"
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
    assert memory().recall(kept) is None
    memory().keep(kept, state_of(kept), FACTS)  # also behind a line that was cut off
    assert memory().recall(kept) == FACTS


def test_file_that_cannot_be_written_is_a_warning_once(case, memory, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    at_work = memory()
    at_work.keep(case, state_of(case), FACTS)
    at_work.keep(case, state_of(case), FACTS)
    assert caplog.text.count("results of checks cannot be kept: ") == 1


def test_case_whose_state_is_not_known_is_not_kept(case, memory):
    memory().keep(case, None, FACTS)
    assert memory().recall(case) is None
