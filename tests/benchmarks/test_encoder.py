"""The benchmark of the encoder runs, and its counts are right."""

import json

import pytest
import torch
from torch import nn

from benchmarks.encoder import kept_bytes, main, masked_volumes


def test_table_and_file(tmp_path, capsys):
    path = tmp_path / "encoder.json"
    main(["--preset", "nano", "--batch", "1", "2", "--size", "16", "--repetitions", "1", "--json", str(path)])
    printed = capsys.readouterr().out
    assert "times faster" in printed
    (rows,) = json.loads(path.read_text())["tables"].values()
    assert [(row["volumes"], row["form"]) for row in rows] == [
        (batch, form) for batch in (1, 2) for form in ("whole grid", "visible only")
    ]
    assert (
        [row["share kept"] == 1.0 for row in rows] == [row["times faster"] == 1.0 for row in rows] == [True, False] * 2
    )
    assert all(row["share kept"] < 1 for row in rows if row["form"] == "visible only")


def test_masks_hide_the_ratio():
    image, masked, visible = masked_volumes(3, 32, 8, 0.6)
    assert image.shape == (3, 1, 32, 32, 32)
    assert (~masked).sum(1).tolist() == [25] * 3 and visible == 25  # floor(64 * 0.4)


def test_kept_bytes_by_hand():
    x = torch.rand(10, 4)
    layer = nn.Linear(4, 3)
    # the layer keeps its input, exp its output: 10 * 4 and 10 * 3 numbers of 4 bytes; the weight does not count
    assert kept_bytes(lambda: layer(x).exp(), layer) == pytest.approx(4 * (40 + 30))
    assert kept_bytes(lambda: layer(x) * layer(x), layer) == 4 * (40 + 30 + 30)  # the input once
