"""The benchmark of inference runs, compares the class maps, and reports differences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import inference, own_process
from benchmarks.inference import MONAI, OURS, main, make_volume, share_of_differences


def test_tables_and_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def here(inferer: str, network: str, options: object, path: Path) -> dict[str, float]:
        return inference.run_case(inferer, network, options, path)  # type: ignore[arg-type]

    monkeypatch.setattr(inference, "in_process", here)  # a new process spends seconds on imports
    path = tmp_path / "inference.json"
    main(["--quick", "--json", str(path)])
    assert "voxels that differ" in capsys.readouterr().out
    tables = json.loads(path.read_text())["tables"]
    assert list(tables) == [
        "hybrid_swin_unetr, 48x40x32 voxels, windows of 32x32x32",
        "one convolution, 64x64x48 voxels, windows of 32x32x32",
    ]
    for rows in tables.values():
        assert [row["inferer"] for row in rows] == [OURS, MONAI]
        assert rows[-1]["voxels that differ"] == 0 and rows[-1]["peak GiB, last row = 1"] == 1


def test_a_case_prints_its_numbers_and_keeps_its_class_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = "--size 20,16,16 --roi 16,16,16 --large_size 20,18,16".split()
    main([*sizes, "--case", OURS, "one convolution", str(tmp_path / "classes.pt")])
    assert json.loads(capsys.readouterr().out).keys() == {"seconds", "cpu", "peak"}
    assert torch.load(tmp_path / "classes.pt").shape == (1, 1, 20, 18, 16)


def test_class_maps_that_differ_are_an_error(tmp_path: Path) -> None:
    paths = [tmp_path / "0.pt", tmp_path / "1.pt"]
    maps = torch.zeros(1, 1, 100, 100, 10, dtype=torch.uint8)
    torch.save(maps, paths[1])
    maps[0, 0, 0, 0, 0] = 1
    torch.save(maps, paths[0])
    assert share_of_differences(paths) == pytest.approx([1e-5, 0])
    maps[0, 0, 0, :20] = 1  # 200 of 100,000
    torch.save(maps, paths[0])
    with pytest.raises(RuntimeError, match=r"differ in 0\.20% of the voxels"):
        share_of_differences(paths)


def test_a_process_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ended = own_process.subprocess.CompletedProcess([], -9)
    monkeypatch.setattr(own_process.subprocess, "run", lambda *arguments, **options: ended)
    options = inference.argparse.Namespace(size=(8,) * 3, large_size=(8,) * 3, roi=(8,) * 3, preset="nano")
    with pytest.raises(RuntimeError, match="process of ClassMapInferer ended with -9; -9: the machine has too little"):
        inference.in_process(OURS, "one convolution", options, tmp_path / "x")


def test_volume_has_air_around_it() -> None:
    volume = make_volume((20, 16, 12))[0, 0]
    assert volume[10, 8, 6] > 0 and not volume[0].any() and not volume[:, 0].any() and not volume[..., 0].any()
