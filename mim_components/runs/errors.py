"""End a failed command with one line that says what was wrong."""

from __future__ import annotations

import sys
from types import TracebackType


def root_cause(error: BaseException) -> BaseException:
    """The error that started a chain: MONAI wraps what a configuration's component raises."""
    while error.__cause__ is not None and type(error) is RuntimeError:
        error = error.__cause__
    return error


def explain_errors() -> None:
    """After the traceback of an uncaught error, print its cause as the last line: `ERROR: ...`."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        before(kind, error, traceback)
        if isinstance(error, Exception):
            cause = root_cause(error)
            sys.stderr.write(f"\nERROR: {str(cause) or type(cause).__name__}\n")

    if getattr(before, "__qualname__", "") != hook.__qualname__:
        sys.excepthook = hook
