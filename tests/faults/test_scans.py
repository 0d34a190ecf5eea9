"""Bad scans among good ones: all are listed at once, and left out on request."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mim_components.utils.tensor_files import read_checkpoint, save_to
from mim_components.utils.text import printable
from tests.faults.damage import BOMBS, LABEL_MAPS, SCANS, SERIES, Damage, affine_of, write
from tests.faults.dicom_series import voxels_of
from tests.faults.pairs import PAIRS, PairDamage
from tests.faults.runs import (
    PRETRAIN,
    SEGMENTATION,
    Bundle,
    Run,
    assert_same,
    environment_of_runs,
    finish,
    losses,
    start,
)

pytestmark = pytest.mark.slow

LISTED = "before step 1, listed with all others: "
ALL = {"on_bad": "exclude", "prepared::max_bad_fraction": 1.0}
Data = dict[str, str]
Reference = Callable[[Bundle], Path]


def rows(table: Sequence[Damage | PairDamage], expected: str = LISTED) -> list[Any]:
    """Parameters, one per row."""
    return [
        pytest.param(
            each,
            id=each.id,
            marks=pytest.mark.fault(
                each.id, fault=each.fault, injection=each.injection, expected=f"{expected}{each.cause}"
            ),
        )
        for each in table
    ]


def causes(text: str) -> dict[str, str]:
    """Cause given in an error for every file, by name."""
    return {Path(path).name: cause for path, cause in re.findall(r"(?m)^  (/.*?): (.*)$", text)}


def assert_refused(run: Run) -> None:
    """Check that it ended with an error before the first step, and left no weights."""
    assert run.wait() == 1, run.text[-3000:]
    assert losses(run.output) == [] and not list(run.output.rglob("*.pt"))


# scans for pre-training


@pytest.fixture(scope="module")
def bad_scans(scans: Data, tmp_path_factory: pytest.TempPathFactory) -> Data:
    """The good scans and every bad file, with a cache of its own."""
    folder = tmp_path_factory.mktemp("bad") / "scans"
    shutil.copytree(scans["dataset_dir"], folder)
    for each in (*SCANS, *BOMBS, *SERIES, *LABEL_MAPS):
        each.make(folder / each.name, folder / "scan_0.nii.gz")
    return {**scans, "dataset_dir": str(folder), "cache_dir": str(folder.parent / "cache")}


@pytest.fixture(scope="module")
def refused(bad_scans: Data, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A pre-training that stopped because of them."""
    run = start(PRETRAIN, tmp_path_factory.mktemp("refused") / "run", **bad_scans)
    assert_refused(run)
    return run


@pytest.fixture(scope="module")
def left_out(bad_scans: Data, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A pre-training that left them out."""
    return finish(start(PRETRAIN, tmp_path_factory.mktemp("left_out") / "run", **bad_scans, **ALL))


@pytest.mark.parametrize("damage", rows([*SCANS, *BOMBS]))
def test_bad_scan(damage: Damage, refused: Run) -> None:
    assert damage.cause in causes(refused.error)[printable(damage.name)]


def test_all_and_no_other(refused: Run) -> None:
    bad = {each.name for each in (*SCANS, *BOMBS)}
    assert causes(refused.error).keys() == {printable(name) for name in bad}
    assert f"{len(bad)} of {len(bad) + 3} volumes cannot be used" in refused.error
    records = [json.loads(line) for line in (refused.output / "quarantine.jsonl").read_text().splitlines()]
    assert {Path(record["path"]).name for record in records} == bad


@pytest.mark.fault("C13", fault="all of these among good scans",
                   injection="--on_bad exclude --prepared::max_bad_fraction 1.0",
                   expected="runs to the end without them: weights equal to a run on the good ones, bit for bit",
)  # fmt: skip
def test_left_out(left_out: Run, reference: Reference) -> None:
    assert_same(left_out.output, reference(PRETRAIN))
    assert f"{len(SCANS) + len(BOMBS)} volumes left out" in left_out.text


@pytest.mark.parametrize("damage", rows(SERIES, "skipped, with a note in the log and in data_notes.txt: "))
def test_passed_over(damage: Damage, left_out: Run) -> None:
    assert damage.cause in left_out.text
    assert damage.cause in (left_out.output / "data_notes.txt").read_text()


@pytest.mark.parametrize("damage", rows(LABEL_MAPS, "passed over, counted in the log, listed in passed_over.jsonl: "))
def test_label_map_is_passed_over(damage: Damage, left_out: Run) -> None:
    assert f"{len(LABEL_MAPS)} passed over that are not scans" in left_out.text
    records = [json.loads(line) for line in (left_out.output / "passed_over.jsonl").read_text().splitlines()]
    assert damage.cause in {Path(record["path"]).name: record["reason"] for record in records}[damage.name]


@pytest.mark.fault("C13b", fault="more bad scans than may be left out", injection="--on_bad exclude",
                   expected="stops and lists all: more than max_bad_fraction=0.05")  # fmt: skip
def test_too_many_to_leave_out(bad_scans: Data, tmp_path: Path) -> None:
    run = start(PRETRAIN, tmp_path / "run", **bad_scans, on_bad="exclude")
    assert_refused(run)
    assert "max_bad_fraction=0.05" in run.error and len(causes(run.error)) == len(SCANS) + len(BOMBS)


MEMORY = """
import resource, sys
from mim_tools.prepare import main

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

good, bad, cache = sys.argv[1:]
assert main([good, "--cache_dir", cache]) == 0
before = peak()
assert main([bad, "--cache_dir", cache]) == 1
print("GROWTH", peak() - before)
"""


@pytest.mark.fault("C12c", fault="memory of the check of such headers", injection="all of C11 and C12 in one folder",
                   expected="the process grows by less than 100 MB")  # fmt: skip
def test_headers_cost_no_memory(scans: Data, tmp_path: Path) -> None:
    for each in BOMBS:
        (tmp_path / "bad").mkdir(exist_ok=True)
        each.make(tmp_path / "bad" / each.name, Path(scans["dataset_dir"]) / "scan_0.nii.gz")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, scans["dataset_dir"], str(tmp_path / "bad"), str(tmp_path / "cache")],
        env=environment_of_runs(), capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.rpartition("GROWTH ")[2]) < 100e6


@pytest.mark.fault("C25", fault="file and folder without permission",
                   injection="chmod 000; root gives up its right to read all",
                   expected="both are listed: Permission denied")  # fmt: skip
def test_no_permission(scans: Data, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mim_tools.prepare"]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("needs setpriv, or another user than root")
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    (tmp_path / "data" / "locked").mkdir(parents=True)
    for path in ("a.nii.gz", "b.nii.gz", "locked/c.nii.gz"):
        shutil.copy(Path(scans["dataset_dir"]) / "scan_0.nii.gz", tmp_path / "data" / path)
    locked = [tmp_path / "data" / "b.nii.gz", tmp_path / "data" / "locked"]
    for each in locked:
        each.chmod(0)
    done = subprocess.run(
        [*command, str(tmp_path / "data"), "--cache_dir", str(tmp_path / "cache")], cwd=tmp_path,
        env=environment_of_runs(), capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    for each in locked:
        each.chmod(0o755)
    assert done.returncode == 1, done.stderr[-3000:]
    found = {Path(line.split()[0]).name: line for line in done.stdout.splitlines() if "Permission denied" in line}
    assert found.keys() == {"b.nii.gz", "locked"}
    assert done.stderr.splitlines()[-1].startswith("ERROR ")


# labelled cases


@pytest.fixture(scope="module")
def bad_cases(labelled: Data, reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Data:
    """A list of the cases that the reference run used and of every bad one."""
    root = tmp_path_factory.mktemp("bad_cases") / "data"
    shutil.copytree(labelled["dataset_dir"], root)
    content = json.loads((reference(SEGMENTATION) / "datalist.json").read_text())
    good = content["training"][0]
    for each in PAIRS:
        paths = [f"{key}s_bad/{each.id}_{key}.nii.gz" for key in ("image", "label")]
        for key, path in zip(("image", "label"), paths, strict=True):
            (root / path).parent.mkdir(exist_ok=True)
            shutil.copy(root / good[key], root / path)
        image = voxels_of(root / paths[0]).copy()
        image[0, 0, 0] = -900 - int(each.id[1:3])  # not a copy of another case
        write(root / paths[0], image, affine_of(root / paths[0]))
        each.make(*(root / path for path in paths))
        content["training"].append({"name": f"z_{each.id}", "image": paths[0], "label": paths[1], "fold": 1})
    (root / "list.json").write_text(json.dumps(content))
    options = {"dataset_dir": str(root), "datalist": str(root / "list.json"), "cache_dir": str(root.parent / "cache")}
    return {**labelled, **options}


@pytest.fixture(scope="module")
def refused_cases(bad_cases: Data, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A fine-tuning that stopped because of them."""
    run = start(SEGMENTATION, tmp_path_factory.mktemp("refused_cases") / "run", **bad_cases)
    assert_refused(run)
    return run


@pytest.mark.parametrize("damage", rows(PAIRS))
def test_bad_case(damage: PairDamage, refused_cases: Run) -> None:
    assert damage.cause in causes(refused_cases.error)[f"{damage.id}_image.nii.gz"]


@pytest.mark.fault("C13c", fault="all of these among good cases",
                   injection="--on_bad exclude --prepared::max_bad_fraction 1.0",
                   expected="runs to the end without them: weights equal to a run on the good ones, bit for bit",
)  # fmt: skip
def test_cases_left_out(bad_cases: Data, refused_cases: Run, reference: Reference, tmp_path: Path) -> None:
    assert len(causes(refused_cases.error)) == len(PAIRS)
    run = finish(start(SEGMENTATION, tmp_path / "run", **bad_cases, **ALL))
    assert_same(run.output, reference(SEGMENTATION))


# if one gets through


def with_images(labelled: Data, folder: Path, value: float) -> Data:
    """The options, with a copy of the cache whose images hold another value everywhere."""
    shutil.copytree(labelled["cache_dir"], folder)
    for path in folder.glob("*.pt"):
        item = read_checkpoint(path)
        save_to(path, {**item, "image": torch.full_like(item["image"], value)})
    return {**labelled, "cache_dir": str(folder)}


@pytest.mark.fault("C7b", fault="NaN in the cache", injection="images in the cache replaced after the checks",
                   expected="noticed, regenerated: weights equal to an undisturbed run, bit for bit")  # fmt: skip
def test_nan_in_the_cache(labelled: Data, reference: Reference, tmp_path: Path) -> None:
    reference(SEGMENTATION)  # has filled the cache
    run = finish(start(SEGMENTATION, tmp_path / "run", **with_images(labelled, tmp_path / "cache", float("nan"))))
    assert "are not finite: image" in run.text and "regenerated" in run.text
    assert_same(run.output, reference(SEGMENTATION))


@pytest.mark.fault("C8b", fault="values that overflow reach the network", injection="3e38 in the images of the cache",
                   expected="stops at that step, weights not updated, the volumes of the step named")  # fmt: skip
def test_guard(labelled: Data, reference: Reference, tmp_path: Path) -> None:
    reference(SEGMENTATION)
    run = start(SEGMENTATION, tmp_path / "run", **with_images(labelled, tmp_path / "cache", 3e38))
    assert run.wait() == 1
    assert "of step 1 is not finite" in run.error and "the weights were not updated" in run.error
    assert re.search(r"Volumes of this step:\n  spleen_\d", run.error)
    assert not list(run.output.rglob("*.pt")) and (run.output / "nonfinite_step_00000001.json").exists()


@pytest.mark.fault("C8c", fault="a run that diverges", injection="--learning_rate 1e30",
                   expected="stops at the first step that is not finite, volumes and last good checkpoint named",
)  # fmt: skip
def test_guard_of_the_pre_training(scans: Data, tmp_path: Path) -> None:
    # its cache holds int16, so that no NaN of a scan can reach the network
    run = start(PRETRAIN, tmp_path / "run", **scans, learning_rate=1e30)
    assert run.wait() == 1
    assert "is not finite" in run.error and re.search(r"Volumes of this step:\n  .*scan_\d\.nii\.gz", run.error)
    for path in run.output.glob("checkpoints/*.pt"):
        assert all(bool(torch.isfinite(each).all()) for each in read_checkpoint(path)["network"].values())
