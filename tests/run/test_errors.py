"""The last line of a failed command."""

from __future__ import annotations

import atexit
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ignite.engine import Engine

from mim_components.run import errors as module
from mim_components.run.errors import explain_errors, is_expected
from mim_components.tokens import token_grid
from mim_components.utils.files import FullDiskError
from mim_components.utils.text import root_cause


class NamedError(RuntimeError):
    """An error of this project."""


class NamedOfOurs(ValueError):
    """An error as if defined by a module of the package."""


NamedOfOurs.__module__ = "mim_components.data"


def chain(*errors: Exception) -> Exception:
    """A chain of errors, each raised from the next."""
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
    """A previous hook, and the order of its calls."""
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


def test_traceback_of_an_expected_error_goes_to_a_file(
    hook: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def raised(**settings: Any) -> str:
        monkeypatch.setattr(sys, "excepthook", before)
        explain_errors({"output_dir": str(tmp_path), **settings})
        try:
            token_grid((10, 10, 10), 4)
        except ValueError as error:
            uncaught(chain(RuntimeError("Failed to instantiate"), error))
        return capsys.readouterr().err

    before = sys.excepthook
    first, last = raised().strip().splitlines()
    assert first == f"Traceback: {tmp_path / 'error.log'}" and last.startswith(
        "ERROR: every side must be a multiple of"
    )
    assert "in token_grid" in (tmp_path / "error.log").read_text() and hook == []
    assert raised(debug=True).splitlines()[0] == "Traceback" and hook == ["RuntimeError"]
    assert len(raised(output_dir=str(tmp_path / "missing")).strip().splitlines()) == 1


def test_errors_of_others_are_not_expected() -> None:
    for kind in (ValueError, KeyError, TypeError):
        try:
            raise kind("here, in a test")
        except kind as error:
            assert not is_expected(error)
    assert not is_expected(ValueError("never raised"))
    assert is_expected(FullDiskError(28, "full"))


def test_error_without_text_is_named_by_its_kind(hook: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    explain_errors()
    uncaught(MemoryError())
    assert capsys.readouterr().err.splitlines()[-1] == "ERROR: MemoryError"


def test_interruption_is_no_error(hook: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    explain_errors()
    uncaught(KeyboardInterrupt())
    assert capsys.readouterr().err == "\nInterrupted. Prepared scans stay in the cache; the same command continues.\n"
    assert hook == []


@pytest.mark.usefixtures("hook")
def test_interruption_says_what_is_kept_in_every_phase(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest = tmp_path / "checkpoints" / "step_00000500.pt"
    training = {"folder": SimpleNamespace(path=tmp_path, how_to_continue="the same command continues")}
    explain_errors(known := dict[str, Any]())
    known |= training
    uncaught(KeyboardInterrupt())
    newest.parent.mkdir()
    newest.touch()
    uncaught(KeyboardInterrupt())
    known |= {"trained": object()}
    uncaught(KeyboardInterrupt())
    known |= {"results_dir": "out/inference"}
    uncaught(KeyboardInterrupt())
    assert capsys.readouterr().err.split("\n")[1::2] == [
        "Interrupted. There is no checkpoint yet. Prepared scans stay in the cache; the same command continues.",
        f"Interrupted. Newest checkpoint: {newest}. Prepared scans stay in the cache; the same command continues.",
        "Interrupted. Prepared scans stay in the cache; the same command starts again.",
        "Interrupted. Results so far stay in out/inference; the same command starts again.",
    ]


@pytest.mark.usefixtures("hook")
def test_ignite_says_nothing_of_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    def fail(engine: Engine, batch: None) -> None:
        raise ValueError("scan_7: broken")

    explain_errors()
    with pytest.raises(ValueError, match="scan_7"):
        Engine(fail).run([None])
    assert "ERROR" not in caplog.text


def test_passwords_are_masked(hook: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    explain_errors({"output_dir": tmp_path})
    uncaught(NamedOfOurs("no answer from https://me:secret@host/?token=abc"))
    shown = capsys.readouterr().err + (tmp_path / "error.log").read_text()
    assert shown.count("https://***@host/?token=***") == 2 and "secret" not in shown and "abc" not in shown


def test_called_twice_explains_once(hook: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    explain_errors()
    explain_errors()
    uncaught(ValueError("once"))
    assert capsys.readouterr().err.count("ERROR: once") == 1


@pytest.mark.usefixtures("hook")
def test_processes_that_fail_of_the_same_print_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    explain_errors()
    messages = {"0": "a.nii.gz: empty", "1": "process 0 could not prepare the volumes: a.nii.gz: empty", "2": "full"}
    for rank, text in messages.items():
        (tmp_path / rank).mkdir()
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / rank / "error.json"))
        uncaught(NamedOfOurs(text))
        assert quoted(tmp_path / rank / "error.json") == f"ERROR: {text}"
    assert capsys.readouterr().err == "\nERROR: a.nii.gz: empty\n\nERROR: full\n"


CLOSED = "[/gloo/pair.cc:553] Connection closed by peer [127.0.0.1]:23421. This is typically caused by a crash. GLHF!"
SILENT = "[/gloo/unbound_buffer.cc:78] Timed out waiting 15000ms for recv operation to complete"


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[Path, list[Callable[[], Any]]]]:
    """The file that torchrun quotes, and the functions registered to run at exit."""
    leaving: list[Callable[[], Any]] = []
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    monkeypatch.setattr(atexit, "register", lambda f, *args, **kwargs: leaving.append(lambda: f(*args, **kwargs)))
    yield tmp_path / "error.json", leaving


def quoted(path: Path) -> str:
    """The text that torchrun prints from its file."""
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    failure: Any = ProcessFailure(local_rank=1, pid=2, exitcode=1, error_file=str(path))
    assert abs(failure.timestamp - time.time()) < 5
    return str(failure.message["extraInfo"]["py_callstack"])


@pytest.mark.usefixtures("hook")
def test_torchrun_gets_traceback_and_cause(torchrun: tuple[Path, list[Any]]) -> None:
    explain_errors()
    uncaught(chain(RuntimeError("Failed to instantiate"), ValueError("scan_7: broken")))
    assert quoted(torchrun[0]).startswith("ValueError: scan_7: broken\n")
    assert quoted(torchrun[0]).endswith("RuntimeError: Failed to instantiate\n\nERROR: scan_7: broken")
    assert torchrun[1] == []


def test_process_that_lost_another_says_so_without_traceback_and_lets_the_other_be_first(
    hook: list[str], torchrun: tuple[Path, list[Any]], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    waited: list[float] = []
    monkeypatch.setattr(module.time, "sleep", waited.append)
    explain_errors()
    uncaught(chain(RuntimeError("Failed to instantiate"), RuntimeError(CLOSED)))
    (line,) = capsys.readouterr().err.split("\n")[1:-1]
    assert line.startswith(
        "This process ends because another one of this run has ended (Connection closed by peer [127"
    )
    assert ":23421). That one's ERROR line says why" in line and hook == []
    path, (leave,) = torchrun
    assert not path.exists()
    leave()
    assert waited == [10.0] and quoted(path) == line


def test_process_that_waited_in_vain_is_the_one_that_reports(
    hook: list[str], torchrun: tuple[Path, list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    explain_errors()
    uncaught(RuntimeError(SILENT))
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("ERROR: another process of this run does not answer (Timed out waiting 15000ms for recv")
    assert last.endswith("raise --process_timeout.") and hook == ["RuntimeError"] and torchrun[1] == []
    assert quoted(torchrun[0]).endswith(last)


@pytest.mark.usefixtures("hook")
def test_file_for_torchrun_that_cannot_be_written_hides_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "none" / "error.json"))
    explain_errors()
    uncaught(ValueError("once"))
    assert capsys.readouterr().err.endswith("ERROR: once\n")
