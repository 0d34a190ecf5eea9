"""Start `python -m monai.bundle` or a program without seconds of imports, by forking a process that has done them.

Reads requests from stdin, one JSON object a line: `program` (file; null for the module), `argv` (after its name),
`environment` (added), `cwd`, `log` (file for stdout and stderr). Answers with the process id. When that process ends,
the exit code (negative: the signal that ended it) is written to `log` + ".exit".
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import sys
from pathlib import Path
from typing import Any

POLL = 0.02  # seconds
# what a training imports
PRELOADED = """
ignite.engine fire mlflow.store.tracking.sqlalchemy_store monai.bundle monai.engines monai.networks.nets
monai.transforms matplotlib.pyplot
mim_components.data mim_components.handlers mim_components.networks
mim_components.engines mim_components.metrics mim_components.transforms
""".split()


def serve() -> tuple[str | None, list[str]]:
    """Fork for every request until stdin closes; returns in a child only, with its program and arguments."""
    logs: dict[int, Path] = {}
    pending = b""
    while True:
        if select.select([0], [], [], POLL)[0]:
            got = os.read(0, 1 << 20)
            if not got:
                os._exit(0)
            pending += got
        *lines, pending = pending.split(b"\n")
        for line in lines:
            request = json.loads(line)
            pid = os.fork()
            if pid == 0:
                return become(request)
            logs[pid] = Path(request["log"])
            os.write(1, f"{pid}\n".encode())
        write_exits(logs)


def write_exits(logs: dict[int, Path]) -> None:
    """Record the exit codes of children that have ended."""
    for pid in list(logs):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            log = logs.pop(pid)
            partial = log.with_suffix(".partial")
            partial.write_text(str(os.waitstatus_to_exitcode(status)))
            partial.replace(f"{log}.exit")


def become(request: dict[str, Any]) -> tuple[str | None, list[str]]:
    """Turn a child into what a new process would be: its own session, files, environment and folder."""
    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    sys.path[0] = request["cwd"]
    return request["program"], list(request["argv"])


if __name__ == "__main__":
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # garbage collections in the children skip the imported objects, and copy none of them
    program, sys.argv[1:] = serve()
    if program is None:
        runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(program, run_name="__main__")
