"""End a failed command with one line that says what was wrong."""

from __future__ import annotations

import atexit
import json
import os
import re
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from mim_components.run.processes import is_lost_process, is_silent_process
from mim_components.utils.text import root_cause

WAIT_SECONDS = 10.0  # for torchrun, which sees the end of a process, not its error; leaving takes seconds


def explain_errors() -> None:
    """After the traceback of an uncaught error, print its cause as the last line: `ERROR: ...`.

    Of several processes, the one that failed says so, also to `torchrun`, whose summary shows its traceback and cause.
    The others, which only lost it, print no traceback and no such line.
    """
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        cause = root_cause(error)
        if isinstance(cause, KeyboardInterrupt):
            sys.stderr.write("\nInterrupted. Prepared scans stay in the cache; the same command goes on.\n")
            return
        if is_lost_process(cause):
            sys.stderr.write(f"\n{_lost(cause)}\n")
            atexit.register(_tell_torchrun, _lost(cause), wait=WAIT_SECONDS)
            return
        before(kind, error, trace)
        if isinstance(error, Exception):
            line = f"ERROR: {_silent(cause) if is_silent_process(cause) else str(cause) or type(cause).__name__}"
            sys.stderr.write(f"\n{line}\n")
            _tell_torchrun("".join(traceback.format_exception(kind, error, trace)) + f"\n{line}")

    if getattr(before, "__qualname__", "") != hook.__qualname__:
        sys.excepthook = hook


def _lost(cause: BaseException) -> str:
    return (
        f"This process ends because another one of this run has ended ({_short(cause)}). That one's ERROR line says "
        "why; if there is none it was killed, most likely because memory ran out. The same command continues from the "
        "last checkpoint."
    )


def _silent(cause: BaseException) -> str:
    return (
        f"another process of this run does not answer ({_short(cause)}). The same command continues from the last "
        "checkpoint. Where a process was only slow, raise --process_timeout."
    )


def _short(cause: BaseException) -> str:
    """The first sentence, without the place in the source."""
    return re.sub(r"^\[\S+\] ", "", str(cause)).split(". ")[0].splitlines()[0]


def _tell_torchrun(text: str, wait: float = 0.0) -> None:
    """Write the file that torchrun's summary quotes, see torch.distributed.elastic.multiprocessing.errors.

    Torchrun takes the process that ended first for the cause. One that is not must wait until torchrun has seen the
    other; torchrun ends it meanwhile.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return
    time.sleep(wait)
    message = {"message": text, "extraInfo": {"py_callstack": text, "timestamp": str(int(time.time()))}}
    with suppress(OSError):  # the text is on stderr
        Path(path).write_text(json.dumps({"message": message}))
