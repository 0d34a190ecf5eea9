"""With `anonymous_paths`, neither the files nor the messages of a run name a scan."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import monai
import nibabel as nib
import numpy as np
import pytest

from mim_components.data.names import path_name
from mim_tools.synthetic.layouts import write_synthetic_layout
from tests.personal import assert_none_in, everything_logged
from tests.small import SMALL

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
NAME = "MUELLER_ANNA_1961"
OPTIONS = SMALL | {
    "log_interval": 1,
    "global_batch_size": 1,
    "on_bad": "exclude",
    "prepared::max_bad_fraction": 0.5,
    "prepared::anonymous_paths": True,
}


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> Iterator[list[str]]:
    """Everything that is logged by any logger; neither it nor the printed output may contain the name."""
    with everything_logged() as records:
        yield records
    printed = capfd.readouterr()
    assert records and not [text for text in [*records, printed.out, printed.err] if "MUELLER" in text]


def assert_nobody_in(folder: Path, at_least: int) -> None:
    assert_none_in(folder, at_least, ["MUELLER".encode(code) for code in ("utf-8", "utf-16-le")], ["MUELLER"])


def run(bundle: str, *names: str, **options: Any) -> None:
    files = [str(BUNDLES / bundle / "configs" / f"{name}.json") for name in names]
    monai.bundle.run(config_file=files, logging_file=False, **options)


def artifacts(output: Path) -> set[str]:
    """Names of the artifacts that MLflow stores with the run."""
    run_id = json.loads((output / "run.json").read_text())["mlflow_run_id"]
    client = mlflow.MlflowClient(f"sqlite:///{output / 'mlruns.db'}")
    return {Path(each.path).name for each in client.list_artifacts(run_id)}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.slow
def test_pretraining_and_its_evaluation(tmp_path: Path, said: list[str]) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (44, 42, 36)), indexing="ij")
    noise = np.random.default_rng(0).normal(0, 20, x.shape)
    body = (np.where(x**2 + y**2 < 0.7, 40.0, -1000.0) + np.where(z**2 < 0.1, 300.0, 0) + noise).clip(-1024)
    for number in range(3):
        folder = scans / f"{NAME}_{number}"
        folder.mkdir(parents=True)
        voxels = np.full((44, 42, 36), -1000) if number == 2 else body
        nib.save(nib.Nifti1Image(voxels.astype(np.int16), np.diag([1.5, 1.5, 3, 1])), folder / f"{NAME}.nii.gz")
    (scans / f"{NAME}.mhd").write_text(
        f"ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_SHORT\nElementDataFile = {NAME}_x.raw\n"
    )
    levels = {"level_sizes": [[40, 40, 32], [16, 16, 16], [8, 8, 8]], "input_size": [32, 32, 32], "projection_dim": 16}
    given = {**OPTIONS, **levels, "dataset_dir": str(scans), "output_dir": str(out), "cache_dir": str(out / "cache")}
    given |= {"max_steps": 2, "warmup_steps": 1, "tracking_uri": f"sqlite:///{out / 'mlruns.db'}"}
    run("mim_pretrain", "train", **given)
    run("mim_pretrain", "train", "evaluate", **given)
    bad = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    paths = [scans / f"{NAME}.mhd", scans / f"{NAME}_2" / f"{NAME}.nii.gz"]
    assert [each["path"] for each in bad] == [path_name(path, scans) for path in paths]
    assert "quarantine.jsonl" in artifacts(out)
    twin = path_name(scans / f"{NAME}_1" / f"{NAME}.nii.gz", scans)
    assert f"{twin}: the same voxels as scan-" in (out / "data_notes.txt").read_text()
    assert "scan-" in (out / "evaluation" / "metrics.csv").read_text()
    assert_nobody_in(out, 20)


@pytest.mark.slow
def test_segmentation_and_its_evaluation(tmp_path: Path, said: list[str]) -> None:
    made = write_synthetic_layout(tmp_path / "made", "btcv", 5, spatial_size=(40, 40, 36))
    data, out, items = tmp_path / "data", tmp_path / "out", []
    data.mkdir()
    images, labels = (sorted(made.rglob(f"Training/{kind}/*.nii.gz")) for kind in ("img", "label"))
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        names = f"{NAME}_{number}.nii.gz", f"{NAME}_{number}_label.nii.gz"
        image.rename(data / names[0])
        label.rename(data / names[1])
        items.append({"image": names[0], "label": names[1], "group": f"{NAME}_{number % 4}", "fold": number % 4})
    (data / "list.json").write_text(json.dumps({"training": items}))
    cut(data / f"{NAME}_2_label.nii.gz")
    space = {"spacing": [9.0, 9.0, 9.0], "roi_size": [32, 32, 32], "overlap": 0.0, "num_samples": 1}
    given = {**OPTIONS, **space, "dataset_dir": str(data), "datalist": str(data / "list.json"), "output_dir": str(out)}
    given |= {"fold": 1, "pretrained": "none", "max_steps": 2, "validation_steps": 2, "cache_dir": str(out / "cache")}
    given["tracking_uri"] = f"sqlite:///{out / 'mlruns.db'}"
    run("mim_btcv_segmentation", "train", **given)
    run("mim_btcv_segmentation", "train", "evaluate", **given)
    (line,) = (out / "quarantine.jsonl").read_text().splitlines()
    scan, label = data / f"{NAME}_2.nii.gz", data / f"{NAME}_2_label.nii.gz"
    bad = json.loads(line)
    assert bad["path"] == path_name(scan, data) and len(bad["digest"]) == 64
    assert bad["reason"].startswith(f"{path_name(label, data, 'file-')}: truncated")
    assert {"quarantine.jsonl", "data_report.md"} <= artifacts(out) and not (out / "datalist.json").exists()
    assert path_name(data / f"{NAME}_1.nii.gz", data) in (out / "evaluation" / "cases.csv").read_text()
    assert_nobody_in(out, 20)
