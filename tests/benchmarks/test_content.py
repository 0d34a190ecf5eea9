"""The benchmark of children without content: counts that can be checked by hand."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from benchmarks import content

LEVELS = content.Levels("tiny", ((64, 64, 64), (32, 32, 32), (16, 16, 16)), (32, 32, 32))


def test_air_is_empty_and_noise_is_not():
    air = torch.full((1, 64, 64, 64), -1000, dtype=torch.int16)
    noise = torch.randint(-900, 900, (1, 64, 64, 64), generator=torch.Generator().manual_seed(0)).short()
    everything = content.count_empty([lambda: air], 3, LEVELS)
    assert set(everything.values()) == {100.0, 0.0} and everything["level 3 prefer, level 2 filled %"] == 0  # none
    assert set(content.count_empty([lambda: noise], 3, LEVELS).values()) == {0.0}
    # the draws take scans in turn: two of air and one of noise
    assert content.count_empty([lambda: air, lambda: noise], 3, LEVELS)["level 3 any %"] == pytest.approx(200 / 3)


def test_prefer_leaves_fewer_empty():
    half = torch.full((1, 64, 64, 64), -1000, dtype=torch.int16)
    half[:, :24] = torch.randint(-900, 900, (1, 24, 64, 64), generator=torch.Generator().manual_seed(0)).short()
    shares = content.count_empty([lambda: half], 10, LEVELS)
    # 4 of 8 tokens have content, 5 are masked, 4 of these drawn: "any" leaves half empty; "prefer" 0, 1, 2 or 3 of 4,
    # since 4, 3, 2 or 1 of the masked ones have content: (4 * 0 + 24 * 1 + 24 * 2 + 4 * 3) / 56 = 1.5 of 4
    assert 40 < shares["level 2 any %"] < 60
    assert 25 < shares["level 2 prefer %"] < 50
    assert shares["level 3 prefer %"] < shares["level 3 any %"]


def test_table_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("a_ct", "a_mask"):
        hu = np.random.default_rng(0).integers(-1000, 400, (70, 66, 40)).astype(np.int16)
        nib.save(nib.Nifti1Image(hu, np.diag([-1.0, -1.0, 1.0, 1.0])), tmp_path / f"{name}.nii.gz")
    sizes = ["--thin", "64,64,48", "--thick", "64,64,20", "--input_size", "32,32,32"]
    levels = ["--levels", "64,64,32", "32,32,32", "16,16,16"]
    out = tmp_path / "out.json"
    content.main([str(tmp_path), "--match", "*_ct.nii.gz", "--draws", "2", *sizes, *levels, "--json", str(out)])
    rows = json.loads(out.read_text())["tables"]["Children without content"]
    assert [row["levels"] for row in rows] == ["default", "default", "default", "small"]
    assert [row["scans"] for row in rows] == [4, 4, 1, 1] and rows[2]["data"] == tmp_path.name
    assert "level 3 prefer %" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"no volume matches \*_cbct"):
        content.real_scans(tmp_path, ["*_cbct*"])
