"""Two simulated devices: fake CUDA tensors, and a second device that errors when devices mix.

Each needs a small C++ extension, built for its test file, and a process of its own, since what it registers with
PyTorch cannot be undone. A test file therefore starts the program beside it, which writes its observations to a file.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


def start(name: str, folder: Path, *arguments: str, timeout: float = 600) -> str:
    """Run a program of this folder; returns its output."""
    command = [sys.executable, "-W", "ignore", str(HERE / f"{name}.py"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, cwd=folder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done.stdout


@pytest.fixture(scope="session")
def extension(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Build an extension; returns its file."""
    missing = [name for name in ("c++", "ninja") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no {' and no '.join(missing)} here, with which the extensions are built")
    return lambda name: start("build", tmp_path_factory.mktemp(name), name).splitlines()[-1]


@pytest.fixture(scope="session")
def program() -> Callable[..., Any]:
    """Run a program of this folder; returns the JSON that it wrote to the file of its last argument."""

    def run(name: str, folder: Path, *arguments: str) -> Any:
        result = folder / f"{name}.json"
        start(name, folder, *arguments, str(result))
        return json.loads(result.read_text())

    return run


collect_ignore = ["fake.py"]  # run by test_fake.py, with arguments
