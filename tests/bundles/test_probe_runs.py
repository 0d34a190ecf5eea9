"""The probe of the bundle `mim_pretrain`: during a training, and on its weights afterwards."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import monai.bundle
import nibabel as nib
import numpy as np
import pytest

from mim_components.weights.contract import read_contract
from tests.faults.runs import NOTHING
from tests.small import SMALL_PRETRAIN_RUN

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "bundles" / "mim_pretrain" / "configs"
OPTIONS = SMALL_PRETRAIN_RUN | {
    "max_steps": 4,
    "train::pictures": NOTHING,
    "probe::voxels_per_class": 16,
    "probe::neighbours": 3,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five scans of a body with an organ, and the list of them."""
    return write_scans(tmp_path_factory.mktemp("place"))


def write_scans(folder: Path) -> Path:
    random = np.random.RandomState(0)
    (folder / "scans").mkdir()
    items = []
    for number in range(5):
        x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (44, 42, 36)), indexing="ij")
        organ = (x - 0.1 * number) ** 2 + y**2 + z**2 < 0.15
        voxels = np.where(x**2 + y**2 < 0.7, 40.0, -1000.0) + 300.0 * organ + random.randn(*x.shape) * 20
        affine = np.diag([1.5, 1.5, 3.0, 1.0])
        nib.save(nib.Nifti1Image(voxels.astype(np.int16), affine), folder / "scans" / f"scan_{number}.nii.gz")
        nib.save(nib.Nifti1Image(organ.astype(np.uint8), affine), folder / f"organ_{number}.nii.gz")
        items.append({"image": f"scans/scan_{number}.nii.gz", "label": f"organ_{number}.nii.gz"})
    (folder / "list.json").write_text(json.dumps({"training": items[:3], "validation": items[3:]}))
    return folder


def run(place: Path, output: Path, *overlays: str, **options: Any) -> Path:
    shared = {"dataset_dir": str(place / "scans"), "cache_dir": str(place / "cache"), "output_dir": str(output)}
    monai.bundle.run(
        config_file=[str(CONFIGS / f"{name}.json") for name in ("train", *overlays)],
        logging_file=False,
        **{**OPTIONS, **shared, "tracking_uri": f"sqlite:///{place / 'mlruns.db'}", **options},
    )
    return output


def probed(place: Path) -> dict[str, Any]:
    return {"probe::datalist": str(place / "list.json"), "probe_interval": 2}


@pytest.fixture(scope="module")
def plain(place: Path) -> Path:
    return run(place, place / "plain")


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    return run(place, place / "probed", **probed(place))


def lines(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "probe.jsonl").read_text().splitlines()]


def test_training_is_the_same_with_and_without(plain: Path, finished: Path) -> None:
    assert (plain / "models" / "model.pt").read_bytes() == (finished / "models" / "model.pt").read_bytes()
    assert not (plain / "probe.jsonl").exists() and not (plain / "models" / "encoder_best.safetensors").exists()


def test_figures_and_best_encoder(place: Path, finished: Path) -> None:
    rows = lines(finished)
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert rows[0]["raw_knn"] > 0.5 and all(0 <= row["probe_dice"] <= 1 for row in rows)
    best = max(rows[1:], key=lambda row: row["probe_dice"])
    assert read_contract(finished / "models" / "encoder_best.safetensors").step == best["step"]
    state = json.loads((finished / "run.json").read_text())
    client = mlflow.MlflowClient(f"sqlite:///{place / 'mlruns.db'}")
    history = client.get_metric_history(state["mlflow_run_id"], "probe_dice")
    assert [(each.step, each.value) for each in history] == [(row["step"], row["probe_dice"]) for row in rows]
    assert "probe.jsonl" in {each.path for each in client.list_artifacts(state["mlflow_run_id"])}


@pytest.fixture
def stopped(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Run with these options up to step 3 of 4."""
    from mim_components.engines.pretraining import PretrainStep

    step = PretrainStep.__call__

    def call(self: PretrainStep, engine: Any, batches: Any) -> dict[str, Any]:
        if engine.state.iteration == 3:
            signal.raise_signal(signal.SIGTERM)
        return step(self, engine, batches)

    def make(**options: Any) -> Path:
        with monkeypatch.context() as patch:
            patch.setattr(PretrainStep, "__call__", call)
            with pytest.raises(BaseException, match="143"):
                run(place, tmp_path / "run", **options)
        return tmp_path / "run"

    return make


def test_stopped_and_continued_equals_undisturbed(place: Path, finished: Path, stopped: Callable[..., Path]) -> None:
    output = run(place, stopped(**probed(place)), **probed(place))
    assert lines(output) == lines(finished)
    one, two = (path / "models" / "model.pt" for path in (finished, output))
    assert one.read_bytes() == two.read_bytes()
    assert read_contract(output / "models" / "encoder_best.safetensors") == read_contract(
        finished / "models" / "encoder_best.safetensors"
    )


def test_probe_that_begins_later_has_the_same_scores_of_step_0(
    place: Path, finished: Path, stopped: Callable[..., Path]
) -> None:
    output = run(place, stopped(), **probed(place))
    assert lines(output) == [row for row in lines(finished) if row["step"] != 2]


def test_probe_of_weights(place: Path, finished: Path, tmp_path: Path) -> None:
    options = {
        "probe::datalist": str(place / "list.json"),
        "probe::labels": {"organ": 1},
        "checkpoint": str(finished / "models" / "encoder.safetensors"),
        "preset": "base",  # ignored: the file states its kind
    }
    run(place, tmp_path, "probe", **options)
    folder = tmp_path / "probe"
    report = json.loads((folder / "metrics.json").read_text())
    assert list(report["features"]) == ["encoder", "random weights", "intensity and position"]
    assert report["settings"]["classes"] == {"organ": 1} and report["settings"]["validation_scans"] == 2
    # the encoder of the last step, as probed by the training
    last = lines(finished)[-1]
    assert report["features"]["encoder"]["dice"] == last["probe_dice"]
    assert report["features"]["encoder"]["knn"] == last["probe_knn"]
    rows = list(csv.DictReader((folder / "cases.csv").read_text().splitlines()))
    assert [(row["features"], row["case"]) for row in rows][:2] == [("encoder", "scan_3"), ("encoder", "scan_4")]
    mean = sum(float(row["dice_organ"]) for row in rows[:2]) / 2
    assert mean == pytest.approx(report["features"]["encoder"]["dice"], rel=1e-4)
    text = (folder / "report.md").read_text()
    # the pre-training had all five scans
    assert "pre-trained on 2 of the 2 validation scans, with the same voxels" in text
    assert report["settings"]["seen_in_training"] == ["scan_3", "scan_4"]
    assert "encoder.safetensors, step 4" in text and "guessing gives 50.0 %" in text
    assert (folder / "best.png").exists() and "![worst scan](worst.png)" in text
    state = json.loads((folder / "run.json").read_text())
    client = mlflow.MlflowClient(f"sqlite:///{place / 'mlruns.db'}")
    found = client.get_run(state["mlflow_run_id"])
    assert (state["status"], found.info.status) == ("finished", "FINISHED")
    assert found.data.metrics["probe_dice"] == report["features"]["encoder"]["dice"]
    assert {"random_knn", "raw_dice"} <= found.data.metrics.keys()
    again = run(place, tmp_path, "probe", **options) / "probe" / "run_002" / "metrics.json"
    assert json.loads(again.read_text())["features"] == report["features"]


def test_two_processes_train_as_one(in_two_processes: Callable[..., Any], finished: Path, tmp_path: Path) -> None:
    first, second = in_two_processes(__file__, tmp_path, 300)
    assert first == second
    rows, alone = lines(tmp_path / "place" / "both"), lines(finished)
    assert [row["step"] for row in rows] == [0, 2, 4]
    # the network before the first step is the same one
    assert rows[0]["probe_dice"] == pytest.approx(alone[0]["probe_dice"], abs=1e-3)
    assert first["best"] == max(row["probe_dice"] for row in rows[1:])


def on_one_rank(folder: Path) -> None:
    """Train in this process, one of two, and write its record of the best encoder."""
    rank = int(os.environ["RANK"])
    place = folder / "place"
    if rank == 0:
        place.mkdir()
        write_scans(place)
        (folder / "ready").touch()
    while not (folder / "ready").exists():
        pass
    from mim_components.handlers.probe import ProbeHandler

    known: dict[str, float] = {}
    call = ProbeHandler.__call__

    def remember(self: ProbeHandler, engine: Any) -> None:
        call(self, engine)
        known["best"] = self.best

    ProbeHandler.__call__ = remember  # type: ignore[method-assign]
    run(place, place / "both", "multi_gpu_train", **probed(place))
    (folder / f"{rank}.json").write_text(json.dumps(known))


if __name__ == "__main__":
    on_one_rank(Path(sys.argv[1]))
