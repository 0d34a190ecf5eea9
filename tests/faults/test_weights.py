"""Checkpoints and pre-trained weights that are damaged, hostile, or not what they should be."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mim_components.networks import HybridEncoder
from mim_components.run.checkpoints import CheckpointStore
from mim_components.utils.tensor_files import read_checkpoint
from mim_components.weights.contract import InputContract
from mim_components.weights.pretrained import save_encoder
from tests.faults.runs import PRETRAIN, SEGMENTATION, Bundle, Run, assert_same, finish, hold, losses, start

pytestmark = pytest.mark.slow

Data = Callable[[Bundle], dict[str, str]]
Reference = Callable[..., Path]
Interrupted = Callable[[Bundle, Path], Path]
PREVIOUS = (
    "the file is named, the checkpoint before it serves; losses and weights equal to an undisturbed run, bit for bit"
)
REFUSED = "refused before the first step, exit 1, the last line names the file and says what it is"


class RunsCode:
    """An attacker's pickle: loading it creates a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4  # inside a weight or moment
    path.write_bytes(content)


def put_nan(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    name = next(name for name, value in state["network"].items() if value.ndim > 1)
    state["network"][name].view(-1)[0] = torch.nan
    torch.save(state, path)


def put_code(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    torch.save({**state, "more": RunsCode(path.parents[1] / "ran")}, path)


def drop_optimizer(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    del state["optimizer"]
    torch.save(state, path)


def row(bundle: Bundle, damage: Callable[[Path], None], said: str, id: str, fault: str, injection: str) -> Any:
    marker = pytest.mark.fault(id, fault=fault, injection=injection, expected=PREVIOUS)
    return pytest.param(bundle, damage, said, marks=marker, id=f"{damage.__name__}-{bundle.name}")


@pytest.mark.parametrize(
    ("bundle", "damage", "said"),
    [
        row(PRETRAIN, cut, "not a readable checkpoint", "B1", "newest checkpoint truncated", "cut in half"),
        row(SEGMENTATION, cut, "not a readable checkpoint", "B1s", "newest checkpoint truncated, segmentation",
            "cut in half"),
        row(PRETRAIN, empty, "the file is empty", "B2", "newest checkpoint of 0 byte", "truncated to nothing"),
        row(PRETRAIN, flip_bit, "fails the checksum", "B3", "bit flip in the newest checkpoint",
            "one bit in the middle"),
        row(PRETRAIN, put_nan, "weights are not finite", "B4", "NaN weights in the newest checkpoint",
            "one weight set to NaN, saved as a whole file"),
        row(SEGMENTATION, put_nan, "weights are not finite", "B4s",
            "NaN weights in the newest checkpoint, segmentation", "one weight set to NaN, saved as a whole file"),
        row(PRETRAIN, put_code, "not a readable checkpoint", "B5",
            "pickle payload in the newest checkpoint; no code runs", "an object whose `__reduce__` makes a folder"),
        row(PRETRAIN, drop_optimizer, "has no optimizer", "B8", "no optimizer in the newest checkpoint",
            "key deleted, saved as a whole file"),
    ],
)  # fmt: skip
def test_newest_checkpoint(
    bundle: Bundle, damage: Callable[[Path], None], said: str, data_of: Data, reference: Reference,
    interrupted: Interrupted, tmp_path: Path,
) -> None:  # fmt: skip
    output = interrupted(bundle, tmp_path / "run")
    newest = CheckpointStore(output / "checkpoints").paths()[-1]
    damage(newest)
    run = finish(start(bundle, output, **data_of(bundle)))
    named = [line for line in run.text.splitlines() if "Checkpoint skipped" in line]
    assert len(named) == 1 and str(newest) in named[0]
    assert said in named[0] or "digest" in named[0]
    assert f"from step 2 of {bundle.steps}" in run.text
    assert not (output / "ran").exists()
    assert_same(output, reference(bundle))


@pytest.mark.fault("B9", fault="all checkpoints damaged", injection="both cut in half",
                   expected="exit 1 with all files named, nothing is begun anew silently; with --resume never a new "
                   "folder, equal to an undisturbed run, bit for bit")  # fmt: skip
def test_all_checkpoints(scans: dict[str, str], reference: Reference, interrupted: Interrupted, tmp_path: Path) -> None:
    output = interrupted(PRETRAIN, tmp_path / "run")
    paths = CheckpointStore(output / "checkpoints").paths()
    for path in paths:
        cut(path)
    run = start(PRETRAIN, output, **scans)
    assert run.wait() == 1
    assert f"all 2 checkpoints in {output / 'checkpoints'} are damaged, use --resume never" in run.error
    assert all(f"{path}: not a readable checkpoint" in run.error for path in paths)
    assert CheckpointStore(output / "checkpoints").paths() == paths
    finish(start(PRETRAIN, output, **scans, resume="never"))
    assert_same(output / "run_002", reference(PRETRAIN))


@pytest.mark.fault("B10", fault="resume from before the best validation",
                   injection="the checkpoints after the best model are removed",
                   expected="the best model is not written again by a later and no better one; losses and weights "
                   "equal to an undisturbed run, bit for bit")  # fmt: skip
def test_best_model(labelled: dict[str, str], reference: Reference, tmp_path: Path) -> None:
    often = {**labelled, "checkpoint_interval": 1}
    held = tmp_path / "held"
    run = start(SEGMENTATION, tmp_path / "run", **often, **{"train::progress": hold(3, held)})
    run.wait_held(held)
    run.kill()
    assert run.wait() == -9
    best = run.output / "models" / "model.pt"
    before, content = best.stat(), best.read_bytes()
    (run.output / "checkpoints" / "step_00000002.pt").unlink()
    again = finish(start(SEGMENTATION, run.output, **often))
    assert "from step 1 of 8" in again.text
    facts = [json.loads((each / "models" / "model.json").read_text()) for each in (run.output, reference(SEGMENTATION))]
    names = [each.pop("run") for each in facts]
    assert facts[0] == facts[1] and names[0] != names[1]
    if facts[0]["step"] == 2:  # the best of the whole run: not even rewritten
        assert best.stat().st_mtime_ns == before.st_mtime_ns and best.read_bytes() == content
    assert_same(run.output, reference(SEGMENTATION))


@pytest.mark.fault("B12", fault="resume in a new folder", injection="the checkpoints are copied, nothing else",
                   expected="goes on from them; weights equal to an undisturbed run, bit for bit")  # fmt: skip
def test_new_folder(scans: dict[str, str], reference: Reference, interrupted: Interrupted, tmp_path: Path) -> None:
    old = interrupted(PRETRAIN, tmp_path / "old")
    shutil.copytree(old / "checkpoints", tmp_path / "new" / "checkpoints")
    run = finish(start(PRETRAIN, tmp_path / "new", **scans))
    assert "from step 4 of 8" in run.text
    assert losses(run.output) == losses(reference(PRETRAIN))[4:]
    both = read_checkpoint(run.output / "models" / "model.pt"), read_checkpoint(reference(PRETRAIN) / "models/model.pt")
    assert [name for name in both[0] if not torch.equal(both[0][name], both[1][name])] == []


# weights of a pre-training


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tiny pre-training."""
    contract = InputContract("hybrid", "nano", 1, 8, (32, 32, 32), ((40, 40, 32), (16, 16, 16), (8, 8, 8)), step=6)
    return save_encoder(HybridEncoder(preset="nano"), tmp_path_factory.mktemp("encoder") / "a.safetensors", contract)


def refused(path: Path, labelled: dict[str, str], output: Path, said: str) -> Run:
    """A fine-tuning from a file, which must be refused by name."""
    run = start(SEGMENTATION, output, **{**labelled, "pretrained": str(path)})
    assert run.wait() == 1
    assert str(path) in run.error and re.search(said, run.error), run.error
    assert losses(output) == [] and not (output / "models").exists()
    return run


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        pytest.param("model.pt", b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page, not weights",
                     marks=pytest.mark.fault("B6", fault="an HTML page as weights", injection="text in model.pt",
                                             expected=REFUSED)),
        pytest.param("encoder.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 4\n",
                     "a Git LFS pointer, the weights were not fetched; run: git lfs pull",
                     marks=pytest.mark.fault("B6p", fault="a Git LFS pointer as weights",
                                             injection="text in encoder.safetensors", expected=REFUSED)),
    ],
    ids=["HTML", "LFS"],
)  # fmt: skip
def test_no_weights(name: str, content: bytes, said: str, labelled: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, labelled, tmp_path / "run", said)


@pytest.mark.fault("B5p", fault="pickle payload in pre-trained weights",
                   injection="an object whose `__reduce__` makes a folder, in model.pt",
                   expected="no code runs; " + REFUSED)  # fmt: skip
def test_code_in_weights(labelled: dict[str, str], tmp_path: Path) -> None:
    torch.save({"encoder.weight": RunsCode(tmp_path / "ran")}, tmp_path / "model.pt")
    refused(tmp_path / "model.pt", labelled, tmp_path / "run", "not a readable checkpoint")
    assert not (tmp_path / "ran").exists()


@pytest.mark.fault("B7", fault="pre-trained keys with a wrong prefix", injection="every key renamed",
                   expected="refused before the first step, exit 1, \"0 of N tensors fit\", with names found and "
                   "expected")  # fmt: skip
def test_wrong_prefix(labelled: dict[str, str], tmp_path: Path) -> None:
    state = {f"backbone.{name}": value for name, value in HybridEncoder(preset="nano").state_dict().items()}
    torch.save(state, tmp_path / "weights.pt")
    said = rf"0 of {len(state)} tensors fit the network's encoder; found names such as \['backbone"
    refused(tmp_path / "weights.pt", labelled, tmp_path / "run", said)


@pytest.mark.fault("B11", fault="pre-trained weights cut short", injection="safetensors cut in half", expected=REFUSED)
def test_weights_cut(labelled: dict[str, str], encoder: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(encoder, tmp_path))
    cut(path)
    refused(path, labelled, tmp_path / "run", "a.safetensors: ")


@pytest.mark.fault("B13", fault="pre-trained weights of another size", injection="preset tiny for weights of nano",
                   expected="refused before the first step, exit 1, found and expected named")  # fmt: skip
def test_weights_of_another_size(labelled: dict[str, str], encoder: Path, tmp_path: Path) -> None:
    other = {**labelled, "preset": "tiny", "roi_size": "[64,64,64]"}
    refused(encoder, other, tmp_path / "run", "preset: nano in the file, tiny in the network")
