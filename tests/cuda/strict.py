"""The bundles of the three tasks on a second device that errors when devices mix; run by test_strict.py.

Training to an error, continued to its end, evaluation, inference. `python strict.py EXTENSION RESULT`.
"""

import json
import sys
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow

from mim_tools.synthetic import write_synthetic_layout

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
LAST, STOP = 8, 5  # steps; a checkpoint after step 3
COMMON: dict[str, Any] = {"preset": "nano", "num_workers": 0, "device": "$torch.device('strict:0')", "amp": False}
TRAINING: dict[str, Any] = {
    "max_steps": LAST, "global_batch_size": 1, "learning_rate": 1e-3, "log_interval": 4, "checkpoint_interval": 3,
}  # fmt: skip
PRETRAINING: dict[str, Any] = {
    "level_sizes": [[40, 40, 32], [16, 16, 16], [8, 8, 8]], "input_size": [32, 32, 32], "projection_dim": 16,
    "warmup_steps": 2, "picture_interval": 100,
}  # fmt: skip
SEGMENTATION: dict[str, Any] = {"spacing": [9.0, 9.0, 9.0], "roi_size": [32, 32, 32], "overlap": 0.0}
CLASSIFICATION: dict[str, Any] = {"input_size": [48, 48, 16]}


def name_the_device(extension: str) -> None:
    """Register a device module with PyTorch that describes the device as `torch.cuda` describes CUDA."""
    torch.ops.load_library(extension)
    torch.utils.rename_privateuse1_backend("strict")
    torch.ops.strict.begin()
    module: Any = types.ModuleType("torch.strict")
    module.is_available = module.is_initialized = lambda: True
    module._is_in_bad_fork = lambda: False
    module.device_count, module.current_device = lambda: 1, lambda: 0
    module.get_amp_supported_dtype = lambda: [torch.bfloat16]
    module.manual_seed = module.manual_seed_all = lambda seed: None
    module.get_rng_state = lambda device=0: torch.zeros(1, dtype=torch.uint8)
    module.set_rng_state = lambda state, device=0: None
    torch._register_device_module("strict", module)
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=False, for_packed_sequence=False)
    storage_cpu = torch.UntypedStorage.cpu

    def cpu(self: torch.UntypedStorage) -> torch.UntypedStorage:
        if self.device.type != "strict":
            return storage_cpu(self)
        empty = torch.empty(0, dtype=torch.uint8, device="strict:0")
        return empty.set_(self, 0, (self.nbytes(),), (1,)).cpu().untyped_storage()

    torch.UntypedStorage.cpu = cpu  # type: ignore[method-assign]


class Stopped(Exception):
    """Ends a training deliberately."""


def run(bundle: str, *names: str, stop: int | None = None, **options: Any) -> dict[int, dict[str, int]]:
    """Run a workflow; returns the operations that made the host wait in every step of a training."""
    folder = BUNDLES / bundle / "configs"
    workflow = ConfigWorkflow(
        config_file=[str(folder / f"{name}.json") for name in names],
        meta_file=str(folder / "metadata.json"),
        logging_file=False,
        workflow_type="inference" if names == ("inference",) else "train",
        **{**COMMON, **options},
    )
    workflow.initialize()
    waits: dict[int, dict[str, int]] = {}
    if names == ("train",):
        trainer: Any = workflow.parser.get_parsed_content("train::trainer")

        def count(engine: Any) -> None:
            waits[engine.state.iteration] = dict(torch.ops.strict.waits())
            if engine.state.iteration == stop:
                raise Stopped

        trainer.add_event_handler(Events.ITERATION_COMPLETED, count)
        trainer.add_event_handler(Events.STARTED, lambda engine: torch.ops.strict.waits())
    try:
        workflow.run()
    except Exception as error:
        if stop is None or "Stopped" not in "".join(traceback.format_exception(error)):
            raise
    workflow.finalize()
    return waits


def scans(folder: Path) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(2):
        voxels = rng.integers(-1000, 1000, (44, 42, 36)).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, np.diag([1.5, 1.5, 3.0, 1.0])), folder / f"scan_{number}.nii.gz")
    return folder


def task(bundle: str, data: Path, one: Path, work: Path, own: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Run all workflows of a bundle; returns the steps of the continued training with their waits."""
    output = work / bundle
    own = {**own, "dataset_dir": str(data), "output_dir": str(output)}
    cache = {"cache_dir": str(work / f"{bundle}_cache")}
    training = {**own, **TRAINING, **cache, **more, "tracking_uri": f"sqlite:///{work / 'mlruns.db'}"}
    first = run(bundle, "train", stop=STOP, **training)
    second = run(bundle, "train", **training)
    evaluated = {"checkpoint": str(output / "models" / "model.pt"), "output_dir": str(work / f"{bundle}_evaluated")}
    run(bundle, "train", "evaluate", **{**own, **cache, **evaluated})
    run(bundle, "inference", **{**own, **evaluated, "dataset_dir": str(one)})
    return {"first": first, "second": second}


def pretraining(work: Path) -> dict[str, Any]:
    data = scans(work / "ct")
    options = {"validation_dir": str(data)}
    return task("mim_pretrain", data, data, work, {**PRETRAINING, **options}, {})


def segmentation(work: Path) -> dict[str, Any]:
    data = write_synthetic_layout(work / "spleen", "msd_spleen", 5, spatial_size=(40, 40, 36))
    one = next(data.rglob("spleen_*.nii.gz"))
    more = {"pretrained": str(work / "mim_pretrain" / "models" / "encoder.safetensors"), "validation_steps": LAST}
    return task("mim_msd_spleen_segmentation", data, one, work, SEGMENTATION, {**more, "num_samples": 1})


def classification(work: Path) -> dict[str, Any]:
    data = write_synthetic_layout(work / "ccccii", "ccccii", 5, spatial_size=(40, 40, 36))
    one = next(path.parent for path in sorted(data.rglob("*.png")))
    options = {"pretrained": "none", "validation_steps": LAST}
    return task("mim_ccccii_classification", data, one, work, CLASSIFICATION, options)


def mixes() -> list[str]:
    """Errors of the device for operators that CUDA refuses; it must raise none for those that CUDA allows."""
    x = torch.arange(12.0).view(3, 4).to("strict:0")
    scalar, index = torch.ones(()), torch.tensor([0, 1])
    refused: list[Callable[[], Any]] = [
        lambda: x + torch.ones(3, 4), lambda: torch.stack([x.sum(), scalar]), lambda: torch.cat([x, torch.ones(1, 4)]),
        lambda: torch.nn.functional.conv1d(x, torch.ones(1, 3, 2)),
    ]  # fmt: skip
    said = []
    for operation in refused:
        try:
            operation()
            said.append("allowed")
        except RuntimeError as error:
            said.append(str(error).splitlines()[0])
    assert (x + scalar)[index].cpu().tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    return said


def main(result: Path) -> None:
    torch.set_num_threads(1)
    seen: dict[str, Any] = {"mixes": mixes()}
    for each in (pretraining, segmentation, classification):
        try:
            seen[each.__name__] = each(result.parent)
        except Exception:
            seen[each.__name__] = traceback.format_exc()
    result.write_text(json.dumps(seen))


if __name__ == "__main__":
    name_the_device(sys.argv[1])
    main(Path(sys.argv[2]))
