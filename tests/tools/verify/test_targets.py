from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mim_tools.verify import targets
from tests.tools.verify.good import only, with_config


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.run",
        "eval",
        "print",
        "builtins.eval",
        "torch.load",
        "torch.hub.load",
        "torch.jit.load",
        "torch.nn.functional.os.system",
        "torch.nn.init.normal_",
        "monai.bundle.download",
        "monai.bundle.scripts.run",
        "monai.bundle.load",
        "run",  # bare: monai.bundle.scripts.run
        "download_url",
        "optional_import",
        "monai.data.utils.os.system",
        "monai.data.utils.pickle.loads",
        "monai.data.dataset.torch.load",
        "monai.transforms.io.array.locate",
        "monai.transforms.Compose.__call__",
        "monai.transforms.Compose.flatten",
        "monai.handlers.MLFlowHandler",
        "monai.losses.PerceptualLoss",
        "ignite.handlers.WandBLogger",
        "monai.apps.download_url",
        "mim_components.utils.files.write_text_safely",
        "mim_components.utils.tensor_files.save_to",
        "mim_components.run.folder.uuid.uuid4",
        "mim_components.no_such_thing",
        "mim_components.utils.text.shorten",
        "mim_components.data.prepare.quarantine.write_passed_over",
        "mim_components.run.options.convert",
        "TorchVisionFCModel",
        "scripts.evil",
        "@name",
        "$print",
        "%name",
        "monai.transforms.",
        "",
        7,
        {"_target_": "os.system"},
    ],
)
def test_targets(bundle: Path, target: Any) -> None:  # F2
    assert only(with_config(bundle, x={"_target_": target})).key == "x::_target_"


@pytest.mark.parametrize(
    "target",
    ["Compose", "monai.data.list_data_collate", "monai.utils.set_determinism", "torch.ne", "torch.optim.SGD",
     "torch.utils.data.DistributedSampler", "ignite.handlers.ProgressBar", "mim_components.losses.MiMLoss"],
)  # fmt: skip
def test_accepted_targets(target: str) -> None:
    assert targets.why_not(target) == ""
