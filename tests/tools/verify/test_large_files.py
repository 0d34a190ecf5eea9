from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mim_tools.verify import Finding, judge_bundle
from tests.tools.verify.good import only, write


def listed(bundle: Path, **change: Any) -> list[Finding]:
    path = write(bundle, "models/model.safetensors", b"")
    save_file({"a": torch.zeros(2)}, path)
    entry = {
        "path": "models/model.safetensors",
        "url": "https://example.org/model.safetensors",
        "hash_val": hashlib.sha256(path.read_bytes()).hexdigest(),
        "hash_type": "sha256",
    }
    entry = {name: value for name, value in (entry | change).items() if value is not None}
    write(bundle, "large_files.yml", json.dumps({"large_files": [entry]}))  # JSON is YAML
    return judge_bundle(bundle)


def test_listed_weights_are_clean(bundle: Path) -> None:
    assert listed(bundle) == []


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"path": "../evil.pt"}, "leads out of the bundle"),  # F8
        ({"path": "/etc/passwd"}, "leads out of the bundle"),
        ({"url": "file:///etc/passwd"}, "no plain https|not a plain https"),
        ({"url": "http://example.org/x"}, "not a plain https"),
        ({"url": "https://you:secret@example.org/x"}, "not a plain https"),
        ({"hash_val": None, "hash_type": None}, "no sha256"),
        ({"hash_type": "md5", "hash_val": "0" * 32}, "no sha256"),
        ({"hash_val": "0" * 64}, "is not the file"),
    ],
)
def test_large_files(bundle: Path, change: dict[str, Any], why: str) -> None:
    findings = listed(bundle, **change)
    assert any(part in found.why for found in findings for part in why.split("|")), findings


def test_list_of_another_form_is_named(bundle: Path) -> None:
    write(bundle, "large_files.json", '{"large_files": [1]}')
    assert "no list of files" in only(judge_bundle(bundle)).why


def test_weights_without_digest_are_named(bundle: Path) -> None:
    save_file({"a": torch.zeros(2)}, bundle / "model.safetensors")
    assert "no sha256 in large_files.yml" in only(judge_bundle(bundle)).why


def test_digest_beside_the_weights_counts(bundle: Path) -> None:
    path = bundle / "model.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    write(bundle, "model.safetensors.sha256", f"{digest}  model.safetensors\n".encode())
    assert judge_bundle(bundle) == []
    save_file({"a": torch.ones(2)}, path)
    assert "is not the file of its digest" in only(judge_bundle(bundle)).why
