"""Shared fixtures of the rows of the fault table, and the page written from their results."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import nibabel as nib
import numpy as np
import pytest

from mim_tools.synthetic import write_synthetic_layout
from tests.faults.page import OPTION, rows_of, write_page
from tests.faults.runs import PRETRAIN, SEGMENTATION, Bundle, finish, hold, start

RESULTS: dict[str, str] = {}  # by row
# rows that take 10 to 50 s and have a shorter sibling
LONG = set("A1p A1s A2s A3 A11s A17s A21b A21ds A21e A21f A21s A23s A24s B1s E2 E3 E5".split())


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow store with its tables, which take seconds to create."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlruns.db'}"
    mlflow.MlflowClient(uri).search_experiments()
    return uri


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory, store: str) -> dict[str, str]:
    """Options of a pre-training: three small scans, their cache and an MLflow store."""
    folder = tmp_path_factory.mktemp("scans")
    (folder / "scans").mkdir()
    random = np.random.RandomState(0)
    for number in range(3):
        x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (44, 42, 36)), indexing="ij")
        body = np.where(x**2 + y**2 < 0.7, 40.0, -1000.0) + np.where((x - 0.2 * number) ** 2 + z**2 < 0.1, 300.0, 0)
        voxels = (body + random.randn(*body.shape) * 20).astype(np.int16)
        path = folder / "scans" / f"scan_{number}.nii.gz"
        nib.save(nib.Nifti1Image(voxels, np.diag([1.5, 1.5, 3.0, 1.0])), path)
    return {"dataset_dir": str(folder / "scans"), "cache_dir": str(folder / "cache"), "tracking_uri": store}


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory, store: str) -> dict[str, str]:
    """Options of a fine-tuning: five small synthetic cases of the spleen, their cache and an MLflow store."""
    folder = tmp_path_factory.mktemp("labelled")
    data = write_synthetic_layout(folder / "data", "msd_spleen", 5, spatial_size=(40, 40, 36))
    return {"dataset_dir": str(data), "cache_dir": str(folder / "cache"), "tracking_uri": store}


@pytest.fixture(scope="session")
def data_of(request: pytest.FixtureRequest) -> Callable[[Bundle], dict[str, str]]:
    """Data options of a bundle: `scans` or `labelled`."""
    names = {PRETRAIN: "scans", SEGMENTATION: "labelled"}
    return lambda bundle: dict(request.getfixturevalue(names[bundle]))


@pytest.fixture(scope="session")
def reference(
    data_of: Callable[[Bundle], dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Output folder of an undisturbed run of a bundle, which runs on first use."""
    outputs: dict[str, Path] = {}

    def run(bundle: Bundle, **options: Any) -> Path:
        key = f"{bundle.name} {options}"
        if key not in outputs:
            output = tmp_path_factory.mktemp("reference") / bundle.name
            outputs[key] = finish(start(bundle, output, **{**data_of(bundle), **options})).output
        return outputs[key]

    return run


@pytest.fixture(scope="session")
def interrupted(
    data_of: Callable[[Bundle], dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Bundle, Path], Path]:
    """Give an output folder the state of a run killed in step 5, with checkpoints of steps 2 and 4."""
    outputs: dict[str, Path] = {}

    def copy(bundle: Bundle, output: Path) -> Path:
        if bundle.name not in outputs:
            folder = tmp_path_factory.mktemp("interrupted")
            held = {"train::progress": hold(5, folder / "held")}
            run = start(bundle, folder / "run", **data_of(bundle), **held)
            run.wait_held(folder / "held")
            run.kill()
            assert run.wait() == -9
            outputs[bundle.name] = run.output
        return Path(shutil.copytree(outputs[bundle.name], output))

    return copy


# the page


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names the page."""
    parser.addoption(OPTION, type=Path, help="write the table of faults with the results to this page")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark long rows, so that they can be deselected."""
    for item in items:
        if LONG & {row.id for row in rows_of(item.iter_markers())}:
            item.add_marker(pytest.mark.long)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Store the rows in the report of a test, which may come from another process."""
    report: Any = yield
    report.user_properties.append(("faults", [row.id for row in rows_of(item.iter_markers())]))
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Record the result of a row."""
    if report.skipped:
        result = f"skipped: {str(report.longrepr[2]).removeprefix('Skipped: ')}" if report.longrepr else "skipped"
    else:
        result = "failed" if report.failed else "passed"
    for row in dict(report.user_properties).get("faults", []):
        if RESULTS.get(row, "passed") == "passed":  # the result of an earlier phase: set-up, call or tear-down
            RESULTS[row] = result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Write the page."""
    page = config.getoption(OPTION, None)
    if page is not None:
        terminalreporter.write_line(write_page(page, RESULTS))
