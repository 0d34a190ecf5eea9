"""End a failed command with one line that says what went wrong."""

from __future__ import annotations

import atexit
import inspect
import json
import logging
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

from mim_components.run.checkpoints import CheckpointStore
from mim_components.run.processes import is_lost_process, is_silent_process
from mim_components.utils.text import CONTINUES, mask_secrets, root_cause, sentence

OURS = ("mim_components", "mim_tools")
WAIT_SECONDS = 10.0  # for torchrun, which sees the end of a process, not its error; exiting takes seconds


def explain_errors(settings: Mapping[str, Any] | None = None) -> None:
    """End a command that fails with its cause as the last line: `ERROR: ...`.

    The traceback of an error that a user can fix (a bad option, a bad scan, a full disk) goes to `error.log` in the
    output folder; `--debug True` prints it. Any other error prints it. Of several processes, the one that failed
    reports it, also to `torchrun`, whose summary shows the same. The others, which only lost it or fail likewise, print
    no such line. An interrupted command says what is kept. Ignite's own line about a failure is suppressed.

    Args:
        settings: objects that the configuration has created so far (`output_dir`, `debug`, `folder`, `results_dir`),
            looked up when an error occurs.
    """
    logging.getLogger("ignite.engine.engine").setLevel(logging.CRITICAL)
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        cause = root_cause(error)
        if isinstance(cause, KeyboardInterrupt):
            sys.stderr.write(f"\n{_interrupted(settings or {})}\n")
            return
        if is_lost_process(cause):
            sys.stderr.write(f"\n{_lost(cause, settings or {})}\n")
            atexit.register(_tell_torchrun, _lost(cause, settings or {}), wait=WAIT_SECONDS)
            return
        text = "".join(traceback.format_exception(kind, error, trace))
        known = settings or {}
        expected = is_expected(cause) and not known.get("debug")
        if not expected:
            before(kind, error, trace)
        if isinstance(error, Exception):
            line = f"ERROR: {_silent(cause, known) if is_silent_process(cause) else str(cause) or type(cause).__name__}"
            line, text = mask_secrets(line), mask_secrets(text)
            kept = _keep(known.get("output_dir"), text) if expected else ""
            if not expected or _is_first_to_say(line):
                sys.stderr.write(f"\n{kept}{line}\n")
            _tell_torchrun(line if expected else f"{text}\n{line}")

    # torch wraps the hook when processes are joined, and prefixes each line with the rank
    wrapped = inspect.getclosurevars(before).nonlocals.get("old_hook") if inspect.isfunction(before) else None
    if hook.__qualname__ not in (getattr(each, "__qualname__", "") for each in (before, wrapped)):
        sys.excepthook = hook


def is_expected(cause: BaseException) -> bool:
    """Whether our code raised an error deliberately: one of our classes, or a ValueError or OSError raised in it."""
    if type(cause).__module__.startswith(OURS):
        return True
    frames = list(traceback.walk_tb(cause.__traceback__))
    return (
        isinstance(cause, (ValueError, OSError))
        and bool(frames)
        and frames[-1][0].f_globals.get("__name__", "").startswith(OURS)
    )


def _interrupted(known: Mapping[str, Any]) -> str:
    """What an interrupted command leaves, and how to continue."""
    if "results_dir" in known:
        return f"Interrupted. Results so far stay in {known['results_dir']}; {_how_to_continue(known)}."
    folder = None if "trained" in known or "probed" in known else known.get("folder")
    newest = "" if folder is None else f"{CheckpointStore(folder.path / 'checkpoints').newest_named()} "
    return f"Interrupted. {newest}Prepared scans stay in the cache; {_how_to_continue(known)}."


def _how_to_continue(known: Mapping[str, Any], where: str = "") -> str:
    """What the same command does; `where` a training continues from."""
    if any(name in known for name in ("results_dir", "trained", "probed")):
        return "the same command starts again"
    how = known["folder"].how_to_continue if "folder" in known else CONTINUES
    return f"{how}{where}"


def _is_first_to_say(line: str) -> bool:
    """Whether no process that torchrun started here has said the same: one may quote the other, or both fail alike."""
    own = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not own:
        return True
    said = Path(own).parents[1] / "said"  # in the folder of this start of all processes
    try:
        with said.open("x", encoding="utf-8") as file:
            file.write(line)
        return True
    except FileExistsError:
        before, new = (each.removeprefix("ERROR: ") for each in (said.read_text(encoding="utf-8"), line))
        return before not in new and new not in before
    except OSError:
        return True


def _keep(folder: object, text: str) -> str:
    """Write a traceback to the output folder and return a line with its path; nothing if there is no such folder."""
    rank = os.environ.get("RANK", "0")
    path = Path(str(folder)) / ("error.log" if rank == "0" else f"error_rank{rank}.log")
    try:
        if folder is None or not path.parent.is_dir():
            return ""
        path.write_text(text, encoding="utf-8")
    except OSError:  # such as a full disk, which the last line reports
        return ""
    return f"Traceback: {path}\n"


def _lost(cause: BaseException, known: Mapping[str, Any]) -> str:
    return (
        f"This process ends because another one of this run has ended ({_short(cause)}). That one's ERROR line says "
        "why; if there is none, it was killed, most likely because memory ran out. "
        f"{sentence(_how_to_continue(known, ' from the last checkpoint'))}."
    )


def _silent(cause: BaseException, known: Mapping[str, Any]) -> str:
    return (
        f"another process of this run does not answer ({_short(cause)}). "
        f"{sentence(_how_to_continue(known, ' from the last checkpoint'))}. If a process was only slow, raise "
        "--process_timeout."
    )


def _short(cause: BaseException) -> str:
    """The first sentence of an error, without the place in the source."""
    return re.sub(r"^\[\S+\] ", "", str(cause)).split(". ")[0].splitlines()[0]


def _tell_torchrun(text: str, wait: float = 0.0) -> None:
    """Write the file that torchrun's summary quotes, see torch.distributed.elastic.multiprocessing.errors.

    Torchrun takes the process that ended first for the cause. A surviving one must wait until torchrun has seen the
    failed one; torchrun ends it meanwhile.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return
    time.sleep(wait)
    message = {"message": text, "extraInfo": {"py_callstack": text, "timestamp": str(int(time.time()))}}
    with suppress(OSError):  # the text is on stderr
        Path(path).write_text(json.dumps({"message": message}))
