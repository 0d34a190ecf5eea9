"""End a failed command with one line that says what was wrong."""

from __future__ import annotations

import atexit
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from mim_components.run.processes import is_lost_process, is_silent_process
from mim_components.utils.text import root_cause

OURS = ("mim_components", "mim_tools")
WAIT_SECONDS = 10.0  # for torchrun, which sees the end of a process, not its error; leaving takes seconds


def explain_errors(settings: Mapping[str, Any] | None = None) -> None:
    """End a command that fails with its cause as the last line: `ERROR: ...`.

    The traceback of an error that a user can mend (a bad option, a bad scan, a full disk) goes to `error.log` in the
    output folder; `--debug True` prints it. Any other error prints it. Of several processes, the one that failed says
    so, also to `torchrun`, whose summary shows the same. The others, which only lost it, print no such line.

    Args:
        settings: values of the options `output_dir` and `debug`, looked up when an error comes.
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
        text = "".join(traceback.format_exception(kind, error, trace))
        known = settings or {}
        expected = is_expected(cause) and not known.get("debug")
        if not expected:
            before(kind, error, trace)
        if isinstance(error, Exception):
            line = f"ERROR: {_silent(cause) if is_silent_process(cause) else str(cause) or type(cause).__name__}"
            kept = _keep(known.get("output_dir"), text) if expected else ""
            sys.stderr.write(f"\n{kept}{line}\n")
            _tell_torchrun(line if expected else f"{text}\n{line}")

    if getattr(before, "__qualname__", "") != hook.__qualname__:
        sys.excepthook = hook


def is_expected(cause: BaseException) -> bool:
    """Whether our code raised an error on purpose: an error class of ours, or a ValueError or OSError raised in it."""
    if type(cause).__module__.startswith(OURS):
        return True
    frames = list(traceback.walk_tb(cause.__traceback__))
    return (
        isinstance(cause, (ValueError, OSError))
        and bool(frames)
        and frames[-1][0].f_globals.get("__name__", "").startswith(OURS)
    )


def _keep(folder: object, text: str) -> str:
    """Write a traceback to the output folder, and say where; nothing where there is no such folder."""
    rank = os.environ.get("RANK", "0")
    path = Path(str(folder)) / ("error.log" if rank == "0" else f"error_rank{rank}.log")
    try:
        if folder is None or not path.parent.is_dir():
            return ""
        path.write_text(text, encoding="utf-8")
    except OSError:  # the disk is full, say: the last line says so
        return ""
    return f"Traceback: {path}\n"


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
