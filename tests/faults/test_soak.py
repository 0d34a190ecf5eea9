"""The script that kills runs at random: two kills, and its report about runs that differ."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from mim_components.utils.tensor_files import read_checkpoint, save_safely
from tests.faults.soak import Kill, Soak, compare, run_soak


@pytest.mark.slow
@pytest.mark.long
def test_two_kills_and_a_difference(tmp_path: Path) -> None:
    soak = run_soak("pretrain", 2, 0, tmp_path, max_steps=6, checkpoint_interval=2)
    assert soak.good and len(soak.kills) == 2 and soak.iterations == 6 * soak.runs >= 6
    assert {kill.code for kill in soak.kills} <= {-9, -15, 143}
    sigkill = sum(kill.signal == "SIGKILL" for kill in soak.kills)
    text = f"2 random kills ({sigkill} SIGKILL, {2 - sigkill} SIGTERM), 0 iterations differ, final weights identical\n"
    assert str(soak).startswith(text)

    other = Path(shutil.copytree(tmp_path / "run_0", tmp_path / "other"))
    rows = (other / "metrics.jsonl").read_text().splitlines()
    (other / "metrics.jsonl").write_text("\n".join([rows[0].replace('"loss": ', '"loss": 1'), *rows[1:-1], ""]))
    weights = read_checkpoint(other / "models" / "model.pt")
    name = next(iter(weights))
    weights[name].view(torch.int32).view(-1)[0] += 1  # the last bit of one number
    save_safely(other / "models" / "model.pt", weights)
    compare(soak, other, tmp_path / "reference")
    assert not soak.good and soak.differing == 2 and soak.other_weights == 1  # another loss, and a missing step


def test_what_is_said_of_runs_that_differ() -> None:
    kills = [Kill("SIGKILL", True, 2, 1.5, "training", -9), Kill("SIGTERM", False, 0, 2.0, "saving", 143),
             Kill("SIGKILL", False, 1, 0.5, "training", -9)]  # fmt: skip
    soak = Soak("pretrain", 0, 24, kills, runs=2, iterations=48, differing=3, other_weights=1, seconds=61.2)
    assert str(soak).splitlines() == [
        "3 random kills (2 SIGKILL, 1 SIGTERM), 3 iterations differ, final weights differ in 1 runs",
        "pretrain: 2 runs of 24 steps, 48 iterations compared, 61 s; killed in training 2, saving 1",
    ]
