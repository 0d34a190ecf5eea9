"""Settings all tests share: few threads, and the real volumes where they are."""

from __future__ import annotations

import os
from pathlib import Path

# before torch is imported: threads that spin while they wait take the few cores from each other
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import pytest
import torch

torch.set_num_threads(2)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of small real CT: MIM_TEST_DATA, or `shared/data` beside the repository."""
    folder = Path(os.environ.get("MIM_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real volumes at {folder}; set MIM_TEST_DATA to a folder of CT volumes")
    return folder
