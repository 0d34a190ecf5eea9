"""Shared settings of all tests: few threads, and the real volumes if available."""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# before torch is imported: threads that spin while waiting compete for the few cores
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import monai
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

from tests.faults.runs import finish, server, start_each

torch.set_num_threads(2)

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_finish() -> None:
    """Exclude the million imported objects from later garbage collections, which saves a tenth of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of small real CT: MIM_TEST_DATA, or `shared/data` beside the repository."""
    folder = Path(os.environ.get("MIM_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real volumes at {folder}; set MIM_TEST_DATA to a folder of CT volumes")
    return folder


@pytest.fixture(scope="session")
def in_two_processes() -> Callable[[str, Path, int], list[dict[str, Any]]]:
    """Start a test file as a program in two processes (gloo), as torchrun does; each writes RANK.json to a folder."""

    def start(file: str, folder: Path, timeout: int) -> list[dict[str, Any]]:
        for run in start_each([str(folder)], folder, file):
            finish(run, timeout)
        return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]

    return start


@pytest.fixture(scope="session", autouse=True)
def closed_server() -> Iterator[None]:
    """End the fork server with the tests."""
    yield
    if server.cache_info().currsize:
        server().close()
        server.cache_clear()


@pytest.fixture(scope="session")
def rendered() -> Callable[[Axes], np.ndarray]:
    """RGB `(rows, columns, 3)` of the rendered inside of a panel, in 0..255."""

    def render(axes: Axes) -> np.ndarray:
        canvas = axes.figure.canvas
        assert isinstance(canvas, FigureCanvasAgg)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
        box = axes.get_window_extent()
        rows = slice(round(len(pixels) - box.y1) + 2, round(len(pixels) - box.y0) - 2)  # 2: inside the frame
        return pixels[rows, round(box.x0) + 2 : round(box.x1) - 2]

    return render


@pytest.fixture(autouse=True)
def unchanged_globals() -> Iterator[None]:
    """Restore what a bundle sets: seeds, flags, hooks of the interpreter, and the project's logging."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    flags = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    hook, paths = sys.excepthook, list(sys.path)
    loggers = {each: log_settings(each) for each in project_loggers()}
    yield
    monai.utils.set_determinism(None)
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = flags
    sys.excepthook, sys.path[:] = hook, paths
    for each in project_loggers():
        each.handlers[:], level, each.propagate, each.disabled = loggers.get(each, ([], logging.NOTSET, True, False))
        each.setLevel(level)


def project_loggers() -> list[logging.Logger]:
    """The root logger and the existing loggers of the project's packages."""
    packages = ("mim_components", "mim_tools", "studies", "benchmarks")
    known = logging.root.manager.loggerDict
    ours = (each for name, each in known.items() if name.split(".")[0] in packages)
    return [logging.root, *(each for each in ours if isinstance(each, logging.Logger))]


def log_settings(logger: logging.Logger) -> tuple[list[logging.Handler], int, bool, bool]:
    """The attributes of a logger that `logging.config` changes."""
    return list(logger.handlers), logger.level, logger.propagate, logger.disabled
