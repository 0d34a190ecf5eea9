"""Weights of an older hybrid encoder are refused for that reason, in whatever file they come."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.transforms import ScaleIntensityRanged
from safetensors.torch import save_file
from torch import Tensor, nn

from mim_components.handlers.checkpoint import CheckpointHandler
from mim_components.networks import HybridEncoder, MiM, classification_network, segmentation_network
from mim_components.run.checkpoints import CheckpointStore
from mim_components.run.folder import RunFolder
from mim_components.utils.tensor_files import OtherVersionError, read_checkpoint
from mim_components.weights import ModelSettings, load_trained
from mim_components.weights.contract import InputContract
from mim_components.weights.pretrained import load_pretrained, save_encoder
from mim_components.weights.transfer import start_from

CONTRACT = InputContract("hybrid", "nano", 1, 8, (32, 32, 32), ((32, 32, 32),), step=7)
SETTINGS = ModelSettings("b", {"network": "hybrid_swin_unetr", "positions": "rescaled"}, ["spleen"])
ABDOMEN = ScaleIntensityRanged("image", -175.0, 250.0, 0.0, 1.0, clip=True)


def mim() -> MiM:
    return MiM(input_size=(32, 32, 32), preset="nano", num_levels=1, projection_dim=16)


def unetr_like() -> nn.Module:
    return segmentation_network("hybrid_swin_unetr", 1, 2, (64, 32, 32), "nano")


def old(network: nn.Module) -> dict[str, Tensor]:
    """A state dict of the older encoder: no projection, and no trained grid."""
    news = ("projection.weight", "projection.bias", "_extra_state")
    prefix = "" if isinstance(network, HybridEncoder) else "encoder."
    dropped = {prefix + each for each in news}
    return {name: value.contiguous() for name, value in network.state_dict().items() if name not in dropped}


def old_contract(path: Path) -> None:
    """Write an `encoder.safetensors` in the older form: its contract has no version."""
    metadata = {name: text for name, text in CONTRACT.to_metadata().items() if name != "contract_version"}
    save_file(old(HybridEncoder(preset="nano")), path, metadata=metadata)


def write(folder: Path) -> dict[str, Path]:
    """Write old weights in each of their file formats."""
    (folder / "beside").mkdir()
    paths = {name: folder / name for name in ("model.pt", "step.pt", "encoder.pt", "tuned.pt", "plain.safetensors")}
    paths["with contract"] = folder / "beside" / "encoder.safetensors"
    paths["beside"] = folder / "beside" / "model.pt"
    torch.save(old(mim()), paths["model.pt"])
    torch.save({"step": 4, "network": old(mim())}, paths["step.pt"])
    torch.save(old(HybridEncoder(preset="nano")), paths["encoder.pt"])
    torch.save(old(unetr_like()), paths["tuned.pt"])
    save_file(old(HybridEncoder(preset="nano")), paths["plain.safetensors"])
    old_contract(paths["with contract"])
    torch.save(mim().state_dict(), paths["beside"])  # its tensors are new, the contract beside is not
    return paths


def by_start(path: Path) -> None:
    start_from(unetr_like(), path, "RAS", ABDOMEN)


def by_pretrained(path: Path) -> None:
    load_pretrained(HybridEncoder(preset="nano"), path)


def by_trained(path: Path) -> None:
    load_trained(mim(), path, [], CONTRACT)


def by_model(path: Path) -> None:
    load_trained(unetr_like(), path, [], SETTINGS)


@pytest.mark.parametrize(
    ("load", "name"),
    [
        *((load, name) for load in (by_start, by_pretrained) for name in
          ("model.pt", "step.pt", "encoder.pt", "plain.safetensors", "with contract", "beside")),
        *((by_trained, name) for name in ("model.pt", "step.pt", "beside")),
        *((by_model, name) for name in ("tuned.pt", "step.pt")),
        (read_checkpoint, "model.pt"),
    ],
)  # fmt: skip
def test_old_weights_are_refused_in_one_line(load: Callable[[Path], Any], name: str, tmp_path: Path) -> None:
    path = write(tmp_path)[name]
    source = re.escape(str(path.with_name("encoder.safetensors") if name == "beside" else path))
    found = "1" if name == "beside" else r"1( \(no (encoder\.)?projection\.weight\))?"
    text = f"^{source}: contract version {found}, but this package takes only version 2: .*; pre-train .*wrote it"
    with pytest.raises(OtherVersionError, match=text) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_an_old_checkpoint_is_not_continued_and_not_passed_over(tmp_path: Path) -> None:
    network = mim()
    folder = RunFolder(tmp_path)
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(4, {"step": 4, "network": old(network), "optimizer": {}, "lr_scheduler": {}})
    handler = CheckpointHandler(folder, network, None, None, None)  # type: ignore[arg-type]
    with pytest.raises(OtherVersionError, match=r"step_00000004.pt: contract version 1 \(no encoder.projection"):
        handler.restore(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(("entry", "found"), [({}, 1), ({"contract_version": 3}, 3)])
def test_a_run_of_another_version_is_not_continued(entry: dict[str, int], found: int, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).begin("data")
    folder.release()
    state = json.loads((tmp_path / "run.json").read_text())
    assert state.pop("contract_version") == 2
    (tmp_path / "run.json").write_text(json.dumps({**state, **entry}))
    again = RunFolder(tmp_path)
    with pytest.raises(
        OtherVersionError, match=f"the run in {tmp_path} .use --resume never.*contract version {found},"
    ):
        again.begin("data")
    RunFolder(tmp_path).release()  # is free again


def test_weights_of_other_networks_are_none_of_it(tmp_path: Path) -> None:
    torch.save({"embeddings.0.weight": torch.ones(2), "network.weight": torch.ones(2)}, tmp_path / "other.pt")
    assert len(read_checkpoint(tmp_path / "other.pt")) == 2


# --- positions go with the weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_a_fine_tuned_model_has_the_positions_of_its_pre_training(task: str, tmp_path: Path) -> None:
    def make(positions: str = "rescaled") -> Any:
        if task == "classification":
            return classification_network("hybrid", 1, 2, (64, 32, 32), "nano", positions)
        return segmentation_network("hybrid_swin_unetr", 1, 2, (64, 32, 32), "nano", positions)

    torch.manual_seed(0)
    path = save_encoder(mim().encoder, tmp_path / "encoder.safetensors", CONTRACT)
    tuned = make()
    assert tuned.encoder.trained_grid == (8, 4, 4)  # from scratch: its own
    start_from(tuned, path, "RAS", ABDOMEN)
    assert tuned.encoder.trained_grid == (4, 4, 4)
    torch.save(tuned.state_dict(), tmp_path / "model.pt")
    (tmp_path / "model.json").write_text(
        json.dumps({**SETTINGS.as_dict(), "step": 1, "metric": "m", "metric_value": 1})
    )
    again = make()
    load_trained(again, tmp_path / "model.pt", [], SETTINGS)
    image = torch.rand(1, 1, 64, 32, 32)
    other = make("index")
    other.load_state_dict(tuned.state_dict())
    with torch.no_grad():
        wanted = tuned.eval()(image)
        assert torch.equal(again(image), wanted)
        assert not torch.equal(other.eval()(image), wanted)


def test_facts_from_before_an_option_do_not_contradict_it(tmp_path: Path) -> None:
    network = nn.Linear(1, 1)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    facts = {**ModelSettings("b", {"network": "swin_unetr"}, ["spleen"]).as_dict(), "step": 1, "metric": "m"}
    (tmp_path / "model.json").write_text(json.dumps({**facts, "metric_value": 1.0}))
    expected = ModelSettings("b", {"network": "swin_unetr", "positions": "rescaled"}, ["spleen"])
    assert load_trained(network, tmp_path / "model.pt", [], expected).facts["step"] == 1
