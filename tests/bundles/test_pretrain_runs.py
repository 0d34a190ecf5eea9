"""The bundle `mim_pretrain` from a folder of scans to weights: outputs, reproducibility, resume, refusals."""

from __future__ import annotations

import json
import logging
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mim_components.networks import HybridEncoder, MiM
from mim_components.run.folder import FolderInUseError, SettingsChangedError
from mim_components.utils.text import root_cause
from mim_components.weights.contract import read_contract
from mim_components.weights.pretrained import load_pretrained
from mim_tools.rebuild_batch import main
from tests.faults.runs import NOTHING, Bundle, configs, finish, ranks, start
from tests.small import SMALL_PRETRAIN_RUN

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "bundles" / "mim_pretrain" / "configs"
# pictures take most of the time of a short run: only `finished` and the ablations draw them. None: the bundle's own
OPTIONS = SMALL_PRETRAIN_RUN | {"max_steps": 6, "prepare_workers": 0, "train::pictures": NOTHING}
DRAWN = {"train::pictures": None, "picture_interval": 100}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options that all runs of this file share: three small scans, a cache and an MLflow store."""
    folder = tmp_path_factory.mktemp("shared")
    scans = folder / "scans"
    scans.mkdir()
    random = np.random.RandomState(0)
    for number in range(3):
        x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (44, 42, 36)), indexing="ij")
        body = np.where(x**2 + y**2 < 0.7, 40.0, -1000.0) + np.where((x - 0.2 * number) ** 2 + z**2 < 0.1, 300.0, 0)
        voxels = (body + random.randn(*body.shape) * 20).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, np.diag([1.5, 1.5, 3.0, 1.0])), scans / f"scan_{number}.nii.gz")
    store = f"sqlite:///{folder / 'mlruns.db'}"
    return {"dataset_dir": str(scans), "cache_dir": str(folder / "cache"), "tracking_uri": store}


def pretrain(shared: dict[str, Any], output: Path, **options: Any) -> Path:
    """Run the bundle in this process."""
    monai.bundle.run(
        config_file=str(CONFIGS / "train.json"),
        logging_file=False,
        **{**OPTIONS, **shared, "output_dir": str(output), **options},
    )
    return output


def losses(output: Path) -> list[dict[str, float]]:
    """The logged losses, without times."""
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("samples_per_second", "data_wait_share")} for row in rows]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return torch.load(output / "models" / "model.pt", weights_only=True)


def assert_same_weights(first: Path, second: Path) -> None:
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.fixture
def log() -> Iterator[list[str]]:
    """The messages logged by the project, as they come in."""
    records: list[str] = []
    handler, logger = logging.Handler(), logging.getLogger("mim_components")
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield records
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture(scope="module")
def finished(shared: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One undisturbed run of 6 steps."""
    return pretrain(shared, tmp_path_factory.mktemp("finished"), **DRAWN)


def test_products(finished: Path) -> None:
    network = MiM(input_size=(32, 32, 32), preset="nano", projection_dim=16)
    network.load_state_dict(weights(finished))  # plain state dict with the network's keys
    contract = read_contract(finished / "models" / "encoder.safetensors")
    assert (contract.preset, contract.encoder, contract.patch_size, contract.step) == ("nano", "hybrid", 8, 6)
    assert contract.level_sizes == ((40, 40, 32), (16, 16, 16), (8, 8, 8))
    assert (contract.orientation, contract.hu_window, contract.axes) == ("RAS", (-1000.0, 1000.0), "BCHWD")
    encoder = HybridEncoder(preset="nano")
    assert load_pretrained(encoder, finished / "models" / "encoder.safetensors").share == 1.0
    assert all(torch.equal(value, network.encoder.state_dict()[name]) for name, value in encoder.state_dict().items())
    names = sorted(path.name for path in (finished / "pictures").iterdir())
    assert names == ["crops.png", *(f"step_00000006_level{level}.png" for level in (1, 2, 3))]
    assert json.loads((finished / "run.json").read_text())["status"] == "finished"
    rows = losses(finished)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "reconstruction_level1", "reconstruction_level3", "alignment_level2_3"} <= rows[0].keys()
    # 2 of 3 volumes a step
    assert [row["epoch"] for row in rows] == pytest.approx([2 / 3, 4 / 3, 2, 8 / 3, 10 / 3, 4])


def test_mr_beside_its_label_maps(shared: dict[str, Any], tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    (scans / "labels").mkdir(parents=True)
    voxels = np.random.RandomState(0).gamma(2, 1500, (40, 40, 36)).astype(np.uint16)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), scans / "mr.nii.gz")
    nib.save(nib.Nifti1Image((voxels > 3000).astype(np.uint8), np.eye(4)), scans / "labels" / "mr.nii.gz")
    run = pretrain(shared, tmp_path / "run", dataset_dir=str(scans), modality="mr", max_steps=1)
    contract = read_contract(run / "models" / "encoder.safetensors")
    assert (contract.modality, contract.hu_window, contract.percentiles) == ("mr", None, (0.5, 99.5))
    (row,) = [json.loads(line) for line in (run / "passed_over.jsonl").read_text().splitlines()]
    assert row == {
        "path": str(scans / "labels" / "mr.nii.gz"), "how": "content",
        "reason": "not MR: 2 different values from 0 to 1 (a label map?)",
    }  # fmt: skip
    state = json.loads((run / "run.json").read_text())
    assert state["status"] == "finished"
    with pytest.raises(RuntimeError) as raised:
        pretrain(shared, tmp_path / "other", dataset_dir=str(scans), modality="mr", hu_window=[-1000, 1000])
    assert "hu_window is [-1000, 1000] with modality mr" in str(root_cause(raised.value))


def test_learning_rate_of_each_step(finished: Path) -> None:
    # 2 warm-up steps from half the rate: 0.5, 0.75, then cos over 4 steps: 1, (1+cos(pi/4))/2, 1/2, (1-cos(pi/4))/2
    half = 0.5 / 2**0.5
    expected = [0.5e-3, 0.75e-3, 1e-3, (0.5 + half) * 1e-3, 0.5e-3, (0.5 - half) * 1e-3]
    assert [row["learning_rate"] for row in losses(finished)] == pytest.approx(expected)


def test_mlflow_run_is_whole(finished: Path, shared: dict[str, Any]) -> None:
    state = json.loads((finished / "run.json").read_text())
    client = mlflow.MlflowClient(shared["tracking_uri"])
    run = client.get_run(state["mlflow_run_id"])
    assert (run.info.status, run.info.run_name) == ("FINISHED", state["name"])
    assert run.data.params["seed"] == "0" and run.data.params["num_volumes"] == "3"
    assert {"git_commit", "version_torch", "data_digest"} <= run.data.params.keys()
    history = client.get_metric_history(run.info.run_id, "reconstruction_level2")
    assert [(point.step, point.value) for point in history] == [
        (row["step"], row["reconstruction_level2"]) for row in losses(finished)
    ]
    artifacts = {each.path for each in client.list_artifacts(run.info.run_id)}
    assert {"configuration.json", "metrics.jsonl", "pictures"} <= artifacts


def test_same_seed_same_numbers_with_workers(finished: Path, shared: dict[str, Any], tmp_path: Path) -> None:
    again = pretrain(shared, tmp_path / "workers", num_workers=2)
    assert losses(again) == losses(finished)
    # bit for bit, as files too, except that safetensors writes its metadata in any order
    assert (again / "models" / "model.pt").read_bytes() == (finished / "models" / "model.pt").read_bytes()
    one, two = (path / "models" / "encoder.safetensors" for path in (again, finished))
    assert read_contract(one) == read_contract(two)
    assert all(torch.equal(value, load_file(two)[name]) for name, value in load_file(one).items())


def test_another_seed_gives_other_numbers(finished: Path, shared: dict[str, Any], tmp_path: Path) -> None:
    other = pretrain(shared, tmp_path / "other", seed=1, max_steps=1)
    assert losses(other)[0]["loss"] != losses(finished)[0]["loss"]


def test_accumulation_gives_the_same_gradient(finished: Path, shared: dict[str, Any], tmp_path: Path) -> None:
    together = pretrain(shared, tmp_path / "together", batch_size=2, max_steps=1)
    first, one = losses(finished)[0], losses(together)[0]
    for name in ("loss", "gradient_norm", "alignment_level1_2"):
        assert one[name] == pytest.approx(first[name], rel=1e-5)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGTERM) -> None:
    """Send this process a signal in the middle of a step."""
    from mim_components.engines.pretraining import PretrainStep

    run = PretrainStep.__call__

    def call(self: PretrainStep, engine: Any, batches: Any) -> dict[str, Any]:
        if engine.state.iteration == step:
            signal.raise_signal(number)
        return run(self, engine, batches)

    monkeypatch.setattr(PretrainStep, "__call__", call)


@pytest.mark.parametrize(("step", "number", "code"), [(3, signal.SIGTERM, 143), (4, signal.SIGINT, 130)])
def test_stopped_and_continued_equals_undisturbed(
    step: int, number: int, code: int, finished: Path, shared: dict[str, Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        interrupt_at(patch, step, number)
        with pytest.raises(SystemExit) as stopped:
            pretrain(shared, tmp_path / "run")
    assert stopped.value.code == code
    assert not (tmp_path / "run" / "models").exists()
    state = json.loads((tmp_path / "run" / "run.json").read_text())
    client = mlflow.MlflowClient(shared["tracking_uri"])
    assert (state["status"], client.get_run(state["mlflow_run_id"]).info.status) == ("interrupted", "KILLED")
    assert len(losses(tmp_path / "run")) == step  # the step was finished and saved
    pretrain(shared, tmp_path / "run")
    assert losses(tmp_path / "run") == losses(finished)
    assert_same_weights(tmp_path / "run", finished)
    assert client.get_run(state["mlflow_run_id"]).info.status == "FINISHED"  # one MLflow run


def test_crash_between_checkpoints_repeats_the_lost_steps(
    finished: Path, shared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mim_components.engines.pretraining import PretrainStep

    run = PretrainStep.__call__

    def call(self: PretrainStep, engine: Any, batches: Any) -> dict[str, Any]:
        if engine.state.iteration == 6:
            raise MemoryError("no more")
        return run(self, engine, batches)

    with monkeypatch.context() as patch:
        patch.setattr(PretrainStep, "__call__", call)
        with pytest.raises(RuntimeError) as failed:
            pretrain(shared, tmp_path / "run")
    assert isinstance(root_cause(failed.value), MemoryError)
    state = json.loads((tmp_path / "run" / "run.json").read_text())
    client = mlflow.MlflowClient(shared["tracking_uri"])
    assert (state["status"], client.get_run(state["mlflow_run_id"]).info.status) == ("failed", "FAILED")
    assert len(losses(tmp_path / "run")) == 5  # checkpoint of step 4, so step 5 is repeated
    newest = tmp_path / "run" / "checkpoints" / "step_00000004.pt"
    newest.write_bytes(newest.read_bytes()[:-1000])  # and damaged, so the run continues from step 2
    pretrain(shared, tmp_path / "run")
    assert losses(tmp_path / "run") == losses(finished)
    assert_same_weights(tmp_path / "run", finished)


def test_finished_run_is_left_alone(finished: Path, shared: dict[str, Any], log: list[str]) -> None:
    before = (finished / "models" / "model.pt").stat().st_mtime_ns
    pretrain(shared, finished)
    assert any("is finished; use --resume never" in record for record in log)
    assert (finished / "models" / "model.pt").stat().st_mtime_ns == before


def test_resume_never_starts_in_a_new_folder(finished: Path, shared: dict[str, Any]) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    pretrain(shared, finished, resume="never", max_steps=1)
    assert (finished / "metrics.jsonl").read_bytes() == before
    assert len(losses(finished / "run_002")) == 1


def test_changed_settings_are_refused_by_name(finished: Path, shared: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError) as refused:
        pretrain(shared, finished, mask_ratio=0.75, num_workers=1)
    cause = root_cause(refused.value)
    assert isinstance(cause, SettingsChangedError)
    assert "mask_ratio: 0.6 -> 0.75" in str(cause) and "num_workers" not in str(cause)


def test_volumes_of_one_spacing(shared: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """44 x 42 x 36 voxels of 1.5 x 1.5 x 3 mm, trained at 2 mm: 33 x 32 x 54."""
    with caplog.at_level(logging.INFO, "mim_components"):
        pretrain(shared, tmp_path / "run", max_steps=1, warmup_steps=0, spacing=[2, 2, 2])
    assert "median 2.00 x 1.97 x 2.00 mm" in caplog.text and "resampled to 2 x 2 x 2 mm" in caplog.text
    assert "3 of 3 volumes are smaller than level 1 (40x40x32 voxels)" in caplog.text
    assert read_contract(tmp_path / "run" / "models" / "encoder.safetensors").spacing == (2, 2, 2)
    with pytest.raises(RuntimeError) as refused:
        pretrain(shared, tmp_path / "run", max_steps=1, warmup_steps=0, spacing=[2, 2, 3])
    cause = root_cause(refused.value)
    assert isinstance(cause, SettingsChangedError) and "spacing: [2, 2, 2] -> [2, 2, 3]" in str(cause)


def test_changed_data_are_refused(finished: Path, shared: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to(Path(shared["dataset_dir"]) / "scan_0.nii.gz")
    (tmp_path / "scans").mkdir()
    (tmp_path / "one").rename(tmp_path / "scans" / "scan_0.nii.gz")
    with pytest.raises(RuntimeError) as refused:
        pretrain({**shared, "dataset_dir": str(tmp_path / "scans")}, finished)
    text = str(root_cause(refused.value))
    assert "data: missing: " in text and "scan_2.nii.gz" in text


def test_bad_volumes_stop_the_run_or_are_left_out_and_recorded(
    shared: dict[str, Any], tmp_path: Path, log: list[str]
) -> None:
    scans = tmp_path / "scans"
    shutil.copytree(shared["dataset_dir"], scans)
    shutil.copy(scans / "scan_1.nii.gz", scans / "twin.nii.gz")
    whole = (scans / "scan_0.nii.gz").read_bytes()
    (scans / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    options = {**shared, "dataset_dir": str(scans), "cache_dir": str(tmp_path / "cache")}
    with pytest.raises(RuntimeError) as refused:
        pretrain(options, tmp_path / "run", max_steps=1)
    assert "1 of 5 volumes cannot be used" in str(root_cause(refused.value))
    assert f"{scans / 'cut.nii.gz'}: truncated" in str(root_cause(refused.value))
    output = pretrain(options, tmp_path / "other", max_steps=1, on_bad="exclude", **{"prepared::max_bad_fraction": 0.2})
    (line,) = (output / "quarantine.jsonl").read_text().splitlines()
    bad = json.loads(line)
    assert bad["path"] == str(scans / "cut.nii.gz") and bad["reason"].startswith("truncated")
    assert "the same voxels as" in (output / "data_notes.txt").read_text()
    end = next(record for record in log if "Finished at step 1" in record)
    assert "1 volume left out, see quarantine.jsonl" in end and "1 remark on the data" in end
    run = mlflow.MlflowClient(shared["tracking_uri"]).get_run(
        json.loads((output / "run.json").read_text())["mlflow_run_id"]
    )
    assert (run.data.params["num_volumes"], run.data.params["excluded_volumes"]) == ("4", "1")


def test_server_that_refuses_does_not_stop_the_training(shared: dict[str, Any], tmp_path: Path, log: list[str]) -> None:
    output = pretrain(shared, tmp_path / "run", tracking_uri="http://127.0.0.1:9", max_steps=2)
    assert len(losses(output)) == 2 and (output / "models" / "encoder.safetensors").exists()
    text = "Tracking stopped, the training continues: http://127.0.0.1:9"
    assert any(record.startswith(text) for record in log)
    left = "http://127.0.0.1:9 did not answer: "  # stated in the summary
    assert any("Finished at step 2" in record and left in record for record in log)
    spool = [json.loads(line) for line in (output / "tracking_spool.jsonl").read_text().splitlines()]
    assert [record["step"] for record in spool if "numbers" in record] == [1, 2]


def test_real_ct(real_data: Path, shared: dict[str, Any], tmp_path: Path) -> None:
    scans = {"dataset_dir": str(real_data / "openkbp" / "unlabelled"), "cache_dir": str(tmp_path / "cache")}
    output = pretrain(
        {**shared, **scans}, tmp_path / "run", max_steps=30, level_sizes=[[96, 96, 64], [32] * 3, [8] * 3]
    )
    rows = losses(output)
    for level in (1, 2, 3):
        name = f"reconstruction_level{level}"
        assert sum(row[name] for row in rows[-5:]) < 0.7 * sum(row[name] for row in rows[:5])


def test_folder_in_use_is_refused(shared: dict[str, Any], tmp_path: Path) -> None:
    from mim_components.run.folder import RunFolder

    running = RunFolder(tmp_path)
    with pytest.raises(FolderInUseError, match="another process, or this one, is running in"):
        RunFolder(tmp_path)
    running.release()
    RunFolder(tmp_path).release()


def test_misspelt_option_is_refused(shared: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as refused:
        pretrain(shared, tmp_path, datset_dir="/nowhere")
    assert "unknown option --datset_dir" in str(root_cause(refused.value))
    assert "--dataset_dir" in str(root_cause(refused.value))


def test_output_that_cannot_be_written_is_named(shared: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeError) as refused:
        pretrain(shared, tmp_path / "file" / "out")
    assert f"output folder {tmp_path / 'file' / 'out'} cannot be written" in str(root_cause(refused.value))


def test_global_batch_that_does_not_divide_is_refused(shared: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as refused:
        pretrain(shared, tmp_path, global_batch_size=5, batch_size=2)
    assert "got 5; nearest valid values: 4, 6" in str(root_cause(refused.value))


def test_gradient_that_is_not_finite_stops_before_the_update(
    shared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mim_components.losses import MiMLoss

    forward = MiMLoss.forward

    def poisoned(self: MiMLoss, output: Any, batch: Any, progress: float = 0.0) -> dict[str, torch.Tensor]:
        terms = forward(self, output, batch, progress)
        return {**terms, "loss": terms["loss"] * (float("nan") if progress >= 0.5 else 1.0)}

    monkeypatch.setattr(MiMLoss, "forward", poisoned)
    with pytest.raises(RuntimeError) as failed:
        pretrain(shared, tmp_path / "run")
    message = str(root_cause(failed.value))
    assert "the gradient of step 4 is not finite" in message and "weights were not updated" in message
    assert message.count("\n  ") == 2  # both volumes of the step
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("*.pt")] == ["step_00000002.pt"]
    report = tmp_path / "run" / "nonfinite_step_00000004.json"
    assert main([str(report)]) == 0  # recreates the batch from the report and the stored configuration
    printed = capsys.readouterr().out
    assert printed.count("image_level1 ") == 2 and "step 4, first: loss of " in printed
    pretrain(shared, tmp_path / "run", **{"train::step::on_nonfinite": "skip"})  # the same run, from step 2 on
    rows = losses(tmp_path / "run")
    assert [row.get("skipped_steps") for row in rows] == [None, None, 0, 1, 2, 3]
    assert [row["loss"] is None for row in rows] == [False, False, False, True, True, True]


def test_volume_smaller_than_level_1_is_padded_and_counted(
    shared: dict[str, Any], tmp_path: Path, log: list[str]
) -> None:
    sizes = [[48, 48, 40], [16, 16, 16], [8, 8, 8]]
    pretrain(shared, tmp_path / "run", level_sizes=sizes, max_steps=1)
    text = "3 of 3 volumes are smaller than level 1 (48x48x40 voxels) and are padded with air"
    assert any(record.startswith(text) for record in log)
    assert any("Finished at step 1" in record and text in record for record in log)  # repeated in the summary


@pytest.mark.parametrize(
    "options",
    [  # each option once; options that affect different parts of a step share a run
        {"level_sizes": [[40, 40, 32]], "normalize_target": True},
        {
            "level_sizes": [[40, 40, 32], [16, 16, 16]],
            "child_source": "visible",
            "alignment": "byol",
            "level_schedule": "coarse_to_fine",
        },
        {"level_sizes": [[40, 40, 32], [16, 16, 16], [8, 8, 8], [1, 1, 1]], "num_children": 2},
        {"encoder": "vit", "level_schedule": "fine_to_coarse", "network_def::stop_gradient": False},
        {"encoder": "vit", "level_sizes": [[32, 32, 32]]},
        {"reconstruction_weights": [1, 0, 0], "alpha": 0},
        {
            "alignment_weights": [0, 0.1],
            "max_volumes_per_pass": 2,
            "checkpoint_activations": True,
            "child_content": "any",
        },
    ],
    ids=lambda options: "-".join(options),
)
def test_ablations_run(options: dict[str, Any], shared: dict[str, Any], tmp_path: Path) -> None:
    pretrain(shared, tmp_path / "run", max_steps=2, **DRAWN, **options)
    levels = len(options.get("level_sizes", OPTIONS["level_sizes"]))
    names = {name for name in losses(tmp_path / "run")[1] if "_level" in name}
    assert names == {f"reconstruction_level{level}" for level in range(1, levels + 1)} | {
        f"{name}_level{level}_{level + 1}" for level in range(1, levels) for name in ("alignment", "context_std")
    } | {f"empty_children_level{level}" for level in range(2, levels + 1)}
    drawn = {path.name for path in (tmp_path / "run" / "pictures").glob("step_*")}
    assert drawn == {f"step_00000002_level{level}.png" for level in range(1, levels + 1)}


def test_weights_of_terms_reach_the_loss(shared: dict[str, Any], tmp_path: Path) -> None:
    row = losses(pretrain(shared, tmp_path, max_steps=1, reconstruction_weights=[2, 0, 1], alignment_weights=[0, 0.5]))[
        0
    ]
    expected = 2 * row["reconstruction_level1"] + row["reconstruction_level3"] + 0.5 * row["alignment_level2_3"]
    assert row["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_two_processes_equal_one(finished: Path, shared: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "run"
    bundle = Bundle("mim_pretrain", {**OPTIONS, **shared, "device": None})
    for run in [start(bundle, output, *configs(bundle), environment=each) for each in ranks()]:
        finish(run)
    # global batch 2 = 1 per process x 2 processes: the same samples in the same step, the mean of their gradients
    for one, two in zip(losses(finished), losses(output), strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    state = json.loads((output / "run.json").read_text())
    experiment = mlflow.MlflowClient(shared["tracking_uri"]).get_experiment_by_name("mim_pretrain")
    runs = mlflow.MlflowClient(shared["tracking_uri"]).search_runs([experiment.experiment_id])
    assert [run.info.run_id for run in runs if run.info.run_name == state["name"]] == [state["mlflow_run_id"]]
    assert {path.name for path in (output / "models").iterdir()} >= {"encoder.safetensors", "model.pt"}
    # Adam makes steps up to the learning rate from rounding where the true gradient is 0 (bias of attention keys)
    for name, value in weights(finished).items():
        torch.testing.assert_close(weights(output)[name], value, rtol=1e-3, atol=1e-4)
