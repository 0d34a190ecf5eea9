from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mim_tools.verify import judge_bundle, weights
from tests.tools.verify.good import only, write


class RunsCode:
    """An attacker's pickle: loading it creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


def make_bad(kind: str, path: Path) -> Path:
    payload = RunsCode(path.parent / "ran")
    if kind == "zip":
        torch.save({"a": payload}, path)
    elif kind == "old form":
        torch.save({"a": payload}, path, _use_new_zipfile_serialization=False)
    elif kind == "protocol 4":
        torch.save({"a": payload}, path, pickle_protocol=4)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(payload))
    elif kind == "object array":
        path = path.with_suffix(".npy")
        np.save(path, np.array([payload], dtype=object), allow_pickle=True)
    elif kind == "object arrays":
        path = path.with_suffix(".npz")
        np.savez(path, a=np.array([payload], dtype=object))
    elif kind == "script":
        module = torch.jit.trace(torch.nn.Identity(), torch.zeros(1))
        module.save(str(path))
    elif kind == "HTML":
        path.write_text("<html>")
    elif kind == "pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1")
    elif kind == "two pickles":
        torch.save({"a": torch.zeros(1)}, path)
        with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr(f"{path.stem}/data.pkl", b".")
    elif kind == "damaged":
        torch.save({"a": torch.zeros(1)}, path)
        path.write_bytes(path.read_bytes()[:200])
    elif kind == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file({"a": torch.zeros(2)}, path)
        path.write_bytes(path.read_bytes()[:-1])
    elif kind == "no safetensors":
        path = path.with_suffix(".safetensors")
        path.write_bytes(b"<html>")
    else:
        path = path.with_suffix(f".{kind}")
        path.write_bytes(b"anything")
    return path


BAD = {
    "zip": "calls posix.mkdir",
    "protocol 4": "STACK_GLOBAL",
    "old form": "old form",
    "pickle": "old form",
    "object array": "array of objects",
    "object arrays": "array of objects",
    "script": "TorchScript",
    "HTML": "an HTML page",
    "pointer": "git lfs pull",
    "two pickles": "two parts of one name",
    "damaged": "cannot be read",
    "safetensors": "its header says",
    "no safetensors": "an HTML page",
    "pkl": "a pickle",
    "onnx": "cannot be judged",
}


def test_weights_of_torch_are_accepted(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.BatchNorm3d(2)).bfloat16()
    torch.save({"network": network.state_dict(), "step": 3, "p": network[0].weight}, tmp_path / "a.pt")
    assert weights.why_not(tmp_path / "a.pt") == ""
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    assert weights.why_not(tmp_path / "a.npz") == ""


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_pickles_and_their_like_are_named_and_not_loaded(bundle: Path, kind: str) -> None:  # B5, B6, F9
    path = make_bad(kind, bundle / "model.pt")
    findings = [found for found in judge_bundle(bundle) if found.what != "no digest"]
    assert only(findings).file == path.name
    assert BAD[kind] in only(findings).why
    assert not (bundle / "ran").exists()


def test_a_pickle_is_known_under_any_name(bundle: Path) -> None:
    write(bundle, "docs/notes.txt", pickle.dumps(RunsCode(bundle / "ran")))
    assert any("old form" in found.why for found in judge_bundle(bundle))
