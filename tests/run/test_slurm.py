"""`torchrun` inside a SLURM job, where Ignite takes the local rank from SLURM: two processes, a faked environment.

The file is its own program: the fixture starts it twice, as torchrun does, and each process records its observations.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("local_id", ["0", None])  # local id of the only task of a machine; None: not started by srun
def test_every_process_keeps_its_own_device_and_prepares_its_share(
    local_id: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    in_two_processes: Callable[[str, Path, int], list[dict[str, Any]]],
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.delenv("SLURM_LOCALID", raising=False)
    if local_id is not None:
        monkeypatch.setenv("SLURM_LOCALID", local_id)
    seen = in_two_processes(__file__, tmp_path, 120)
    assert [each["device"] for each in seen] == ["cuda:0", "cuda:1"]
    assert [each["share"] for each in seen] == [[0, 2], [1]]


def main(folder: Path) -> None:
    import ignite.distributed as idist
    import torch

    from mim_components.data.prepare.team import Team
    from mim_components.run import local_device, start_processes, stop_processes

    start_processes("gloo")
    idist.get_rank()  # where Ignite meets the process group
    share = [*Team("the same").share(range(3))]
    torch.cuda.is_available = lambda: True
    device = str(local_device())
    torch.cuda.is_available = lambda: False
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps({"device": device, "share": share}))
    stop_processes()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
