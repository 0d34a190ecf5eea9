"""A bundle without findings, and helpers to modify and check it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mim_tools.verify import Finding, judge_bundle

GOOD = {
    "imports": ["$import torch", "$import numpy as np", "$import monai"],
    "bundle_root": {"_target_": "mim_components.run.bundle_root"},
    "dataset_dir": "/data/scans",
    "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
    "size": [96, 96, 96],
    "network": {"_target_": "UNet", "channels": "$[2 * side for side in @size] + [len(@size)]"},
    "loss": {"_target_": "torch.nn.CrossEntropyLoss"},
    "optimizer": {"_target_": "torch.optim.AdamW", "params": "$@network.parameters()"},
    "copy": "%network",
    "load": {"_target_": "monai.transforms.LoadImaged", "keys": "image", "reader": ["NibabelReader", "itkreader"]},
    "folder": "$str(@bundle_root) + '/models'",
    "run": ["$@trainer.run()"],
}


def write(root: Path, name: str, content: str | bytes) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def with_config(bundle: Path, **entries: Any) -> list[Finding]:
    write(bundle, "configs/train.json", json.dumps(GOOD | entries))
    return judge_bundle(bundle)


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]
