"""The last line of a failed command."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from mim_components.runs.errors import explain_errors, root_cause


class NamedError(RuntimeError):
    """An error of this project."""


def chain(*errors: Exception) -> Exception:
    """Each error raised from the next."""
    for error, cause in zip(errors, errors[1:], strict=False):
        error.__cause__ = cause
    return errors[0]


def test_root_cause_looks_through_what_monai_wraps() -> None:
    cause = ValueError("patch_size must divide input_size")
    assert root_cause(chain(RuntimeError("Failed to instantiate"), RuntimeError("Failed to evaluate"), cause)) is cause


def test_root_cause_stops_at_an_error_that_says_what_it_is() -> None:
    named = NamedError("the gradient is not finite")
    chain(named, KeyError("inner"))
    assert root_cause(chain(RuntimeError("Failed"), named)) is named
    plain = RuntimeError("alone")
    assert root_cause(plain) is plain
    read = ValueError("x.pt: not a readable checkpoint")
    assert root_cause(chain(read, OSError("inner"))) is read


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hook as it was before, and the order in which it was called."""
    called: list[str] = []

    def before(kind: type[BaseException], error: BaseException, traceback: object) -> None:
        called.append(kind.__name__)
        sys.stderr.write("Traceback\n")

    monkeypatch.setattr(sys, "excepthook", before)
    yield called


def uncaught(error: BaseException) -> None:
    sys.excepthook(type(error), error, None)


def test_cause_is_the_last_line_after_the_traceback(hook: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    explain_errors()
    uncaught(chain(RuntimeError("Failed to instantiate"), FileNotFoundError(2, "No such file", "scan.nii.gz")))
    assert hook == ["RuntimeError"]
    assert capsys.readouterr().err == "Traceback\n\nERROR: [Errno 2] No such file: 'scan.nii.gz'\n"


def test_error_without_text_is_named_by_its_kind(hook: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    explain_errors()
    uncaught(MemoryError())
    assert capsys.readouterr().err.splitlines()[-1] == "ERROR: MemoryError"


def test_interruption_is_no_error(hook: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    explain_errors()
    uncaught(KeyboardInterrupt())
    assert capsys.readouterr().err == "Traceback\n" and hook == ["KeyboardInterrupt"]


def test_called_twice_explains_once(hook: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    explain_errors()
    explain_errors()
    uncaught(ValueError("once"))
    assert capsys.readouterr().err.count("ERROR: once") == 1
