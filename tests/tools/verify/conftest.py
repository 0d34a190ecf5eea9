from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tools.verify.good import GOOD, write


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    root = tmp_path / "bundle"
    (root / "configs").mkdir(parents=True)
    write(root, "configs/train.json", json.dumps(GOOD))
    write(root, "configs/metadata.json", json.dumps({"schema": "https://x.org/a.json", "description": "a/../b"}))
    return root
