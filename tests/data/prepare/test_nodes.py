"""Joint work of two processes (gloo on the CPU).

The file is its own program: the fixture starts it twice, as torchrun does, and each process records its observations.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest

pytestmark = pytest.mark.slow
TwoProcesses = Callable[[str, Path, int], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, in_two_processes: TwoProcesses) -> list[dict[str, Any]]:
    """Observations of process 0 and process 1."""
    folder = tmp_path_factory.mktemp("processes")
    for name in ("good", "bad"):
        (folder / name).mkdir()
        for number in range(2):
            voxels = np.random.default_rng(number).integers(-1000, 1000, (8, 9, 10)).astype(np.int16)
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / name / f"{number}.nii.gz")
    damaged = folder / "bad" / "0.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:300])
    (folder / "out").mkdir()
    (folder / "out" / "run.json").write_text(json.dumps({"status": "running", "config": {}, "data_digest": ""}))
    return in_two_processes(__file__, folder, 120)


def test_volumes_are_divided_and_both_have_the_same(seen: list[dict[str, Any]]) -> None:
    assert [each["decoded"] for each in seen] == [["0"], ["1"]]
    assert seen[0]["digest"] == seen[1]["digest"] and seen[0]["volumes"] == seen[1]["volumes"] == ["0", "1"]


def test_bad_volume_is_an_error_in_both(seen: list[dict[str, Any]]) -> None:
    assert "1 of 2 volumes cannot be used" in seen[0]["bad"] and "0.nii.gz" in seen[0]["bad"]
    assert seen[1]["bad"] == seen[0]["bad"]


def test_machines_with_caches_of_their_own_prepare_everything_each(seen: list[dict[str, Any]]) -> None:
    assert [sorted(each["own"]) for each in seen] == [["0", "1"], ["0", "1"]]
    assert seen[0]["own_volumes"] == seen[1]["own_volumes"] == ["0", "1"]


def test_each_verifies_its_share_once(seen: list[dict[str, Any]]) -> None:
    assert [each["verified"] for each in seen] == [[1, 0], [1, 0]]  # at the second and the third start


def test_error_in_one_process_is_one_in_both(seen: list[dict[str, Any]]) -> None:
    assert seen[0]["broken"] == f"process 1 could not prepare the volumes: {seen[1]['broken']}"
    assert seen[1]["broken"] == "no cache here"


def test_what_a_process_died_in_leaves_no_marks(seen: list[dict[str, Any]]) -> None:
    assert [each["left_over"] for each in seen] == [[], []]


def test_bad_volume_is_left_out_by_both(seen: list[dict[str, Any]]) -> None:
    assert seen[0]["left"] == seen[1]["left"] == ["1"]


def test_different_volumes_are_an_error_in_both(seen: list[dict[str, Any]]) -> None:
    assert seen[0]["different"] == seen[1]["different"]
    assert seen[0]["different"].startswith("processes of this run found different volumes; 1 against 0: ")


def test_samples_of_a_step_are_divided(seen: list[dict[str, Any]]) -> None:
    first, second = (each["samples"] for each in seen)
    assert len(first) == len(second) == 4
    assert sorted(first + second) == [[epoch, index] for epoch in (0, 1) for index in range(4)]


def test_gradient_is_the_mean_over_processes_and_micro_batches(seen: list[dict[str, Any]]) -> None:
    # gradients 1, 2 in process 0 and 3, 10 in process 1: mean 4; w = 1 - 0.1 * 4, in both
    assert [each["weight"] for each in seen] == pytest.approx([0.6, 0.6])
    assert [each["norm"] for each in seen] == pytest.approx([4.0, 4.0])
    assert [each["loss"] for each in seen] == pytest.approx([1.5, 6.5])
    assert [each["mean_loss"] for each in seen] == pytest.approx([4.0, 4.0])  # what StepMetrics writes
    assert [each["exchanges"] for each in seen] == [1, 1]  # with the last micro-batch only


def test_gradient_that_is_not_finite_stops_both_and_names_the_volumes_of_both(seen: list[dict[str, Any]]) -> None:
    named = [[line for line in each["not_finite"].splitlines() if line.startswith("  ")] for each in seen]
    assert named == [["  scan_0", "  scan_1"]] * 2
    assert [each["weight_after"] for each in seen] == [each["weight"] for each in seen]


def test_folder_is_what_the_first_process_decides(seen: list[dict[str, Any]]) -> None:
    assert seen[0]["folder"] == seen[1]["folder"] and Path(seen[0]["folder"]).name == "run_002"


def test_preparation_of_days_is_waited_for_however_short_the_time_out_of_the_training(
    seen: list[dict[str, Any]],
) -> None:
    assert [each["hours"] for each in seen] == [7 * 24, 7 * 24] and [each["time_out"] for each in seen] == [60, 60]


def test_different_checkpoints_are_an_error_in_both(seen: list[dict[str, Any]]) -> None:
    assert seen[0]["restored"] == seen[1]["restored"]
    assert seen[0]["restored"].startswith("processes of this run found different checkpoints in ")
    assert "of steps 4, 0: --output_dir must be on a disk that all machines share" in seen[0]["restored"]


def test_signal_to_one_process_stops_both_after_the_same_step(seen: list[dict[str, Any]]) -> None:
    assert [each["stopped"] for each in seen] == [[143, 3], [143, 3]]


def test_only_the_first_process_is_talkative(seen: list[dict[str, Any]]) -> None:
    assert [each["level"] for each in seen] == [logging.INFO, logging.WARNING]


def data_path(folder: Path, rank: int) -> dict[str, Any]:
    """Prepare good, bad and different volumes."""
    from mim_components.data.cache import volumes as cache
    from mim_components.data.find.walk import find_volumes
    from mim_components.data.prepare import nodes, team
    from mim_components.data.prepare import volumes as prepare
    from mim_components.data.volumes import CacheError, DataError

    decoded: list[str] = []
    decode = prepare.decode_volume
    prepare.decode_volume = lambda source, *rest: (decoded.append(source.name), decode(source, *rest))[1]
    good, bad = find_volumes(folder / "good"), find_volumes(folder / "bad")
    new_group, waits = team.dist.new_group, []
    team.dist.new_group = lambda *ranks, **how: (waits.append(how.get("timeout")), new_group(*ranks, **how))[1]
    prepared = nodes.prepare_on_nodes(good, folder / "cache")
    team.dist.new_group = new_group
    out: dict[str, Any] = {"decoded": [*decoded], "digest": prepared.digest}
    out["hours"] = max(wait.total_seconds() for wait in waits if wait) / 3600
    out["volumes"] = [volume.name for volume in prepared.volumes]
    decoded.clear()
    own = nodes.prepare_on_nodes(good, folder / f"cache_{rank}")
    out |= {"own": [*decoded], "own_volumes": [volume.name for volume in own.volumes], "verified": []}
    whole, crc = [], cache._crc_to_end
    cache._crc_to_end = lambda file: (whole.append(1), crc(file))[1]
    for _ in range(2):
        whole.clear()
        nodes.prepare_on_nodes(good, folder / "cache")
        out["verified"].append(len(whole))
    cache._crc_to_end = crc
    usable = cache.VolumeCache.check_usable

    def broken(self: Any) -> None:
        if rank == 1:
            raise CacheError("no cache here")

    cache.VolumeCache.check_usable = broken  # type: ignore[method-assign]
    try:
        nodes.prepare_on_nodes(good, folder / "cache")
    except DataError as error:
        out["broken"] = str(error)
    cache.VolumeCache.check_usable = usable  # type: ignore[method-assign]
    out["left_over"] = [str(path) for path in folder.glob("cache*/.*")]
    for name, found in (("bad", bad), ("different", find_volumes(folder / "good"))):
        del found.sources[2 - (rank if name == "different" else 0) :]
        try:
            nodes.prepare_on_nodes(found, folder / "cache")
        except DataError as error:
            out[name] = str(error)
    left = nodes.prepare_on_nodes(bad, folder / "cache", on_bad="exclude", max_bad_fraction=1)
    return out | {"left": [volume.name for volume in left.volumes]}


def step(rank: int) -> dict[str, Any]:
    """One optimizer step of one weight, and one that is not finite."""
    import torch
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
    from torch.nn.parallel import DistributedDataParallel

    from mim_components.data.load.sampler import StepSampler
    from mim_components.engines.nonfinite import NonFiniteError
    from mim_components.engines.pretraining import PretrainStep
    from mim_components.handlers.metrics import _over_processes
    from mim_components.networks import MiMOutput

    class OneWeight(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, images: Any, masked: Any, num_visible: int | None) -> MiMOutput:
            return MiMOutput(prediction=(self.weight * images[0].mean(),), context=(), patches=(), latent=())

    exchanges: list[int] = []

    def exchange(group, bucket):  # type: ignore[no-untyped-def]  # DDP compares annotations with its own types
        exchanges.append(1)
        return allreduce_hook(group, bucket)

    network = DistributedDataParallel(OneWeight())
    network.register_comm_hook(None, exchange)
    engine: Any = SimpleNamespace(
        network=network, optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=lambda output, levels, progress: {"loss": output.prediction[0].mean()},
        state=SimpleNamespace(device=torch.device("cpu"), iteration=1),
    )  # fmt: skip

    def batch(value: float) -> dict[str, Any]:
        image, masked = torch.full((1, 1, 1, 2, 2, 2), value), torch.zeros(1, 1, 8, dtype=torch.bool)
        return {"image_level1": image, "masked_level1": masked, "name": [f"scan_{rank}"]}

    two, one = (SimpleNamespace(sampler=StepSampler(1, 1, size)) for size in (4, 2))  # micro-batches per process
    output = PretrainStep(1, two)(engine, [batch(value) for value in ((1.0, 2.0), (3.0, 10.0))[rank]])
    out = {"weight": network.module.weight.item(), "norm": float(output["gradient_norm"])}
    out |= {"loss": float(output["loss"]), "mean_loss": _over_processes({"loss": output["loss"]})["loss"]}
    out["exchanges"] = len(exchanges)
    try:  # bad in process 1 alone
        PretrainStep(1, one)(engine, [batch((1.0, float("nan"))[rank])])
    except NonFiniteError as error:
        out["not_finite"] = str(error)
    return out | {"weight_after": network.module.weight.item()}


def stop(rank: int) -> list[int]:
    """A signal to process 1 in step 3 of 5."""
    from ignite.engine import Engine

    from mim_components.handlers.signals import StopSignals

    def one(engine: Engine, batch: None) -> None:
        if rank == 1 and engine.state.iteration == 3:
            signal.raise_signal(signal.SIGTERM)

    engine = Engine(one)
    checkpoints = SimpleNamespace(save=lambda engine: None)
    folder: Any = SimpleNamespace(checkpoints=checkpoints, at_end=lambda handler: None, how_to_continue="")
    handler = StopSignals(folder)
    handler.attach(engine)
    try:
        engine.run([None] * 5)
    except SystemExit as stopped:
        return [int(str(stopped.code)), engine.state.iteration]
    finally:
        handler.close()
    return []


def restore(folder: Path, rank: int) -> str:
    """Continue from checkpoints that only process 0 has."""
    from mim_components.handlers.checkpoint import CheckpointHandler, DifferentStepsError
    from mim_components.run.checkpoints import CheckpointStore

    own: Any = SimpleNamespace(path=folder / f"own_{rank}", state={}, on_full_disk="stop", kept={}, kept_if_there={})
    if rank == 0:
        CheckpointStore(own.path / "checkpoints").save(4, {"step": 4, **dict.fromkeys(("network", "optimizer"), {})})
    part: Any = SimpleNamespace()
    handler = CheckpointHandler(own, part, part, part, part)
    del handler.own["lr_scheduler"]
    try:
        handler.restore(part)
    except DifferentStepsError as error:
        return str(error).replace(f"own_{rank}", "own")
    return ""


def main(folder: Path) -> None:
    """Run one process."""
    import torch
    import torch.distributed as dist

    from mim_components.data.load.sampler import StepSampler
    from mim_components.run import RunFolder, start_processes, stop_processes

    logging.getLogger("mim_components").setLevel(logging.INFO)
    start_processes("gloo", timeout=60, worker_timeout=50)
    rank = int(os.environ["RANK"])
    out: dict[str, Any] = {"level": logging.getLogger("mim_components").level}
    out |= data_path(folder, rank) | step(rank)
    out["samples"] = list(StepSampler(4, num_steps=2, global_batch_size=4, batch_size=1))
    out["folder"] = str(RunFolder(folder / "out", "never").path)
    out["stopped"] = stop(rank)
    out["restored"] = restore(folder, rank)
    gloo: Any = dist.group.WORLD._get_backend(torch.device("cpu"))
    out["time_out"] = gloo.options._timeout.total_seconds()
    (folder / f"{rank}.json").write_text(json.dumps(out))
    stop_processes()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
