"""Nearest voxels on another grid, against MONAI."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import ResampleToMatch, Spacing

from mim_components.metrics.probe import grids
from mim_components.metrics.probe.grids import nearest_on_grid


def turned(angle: float) -> torch.Tensor:
    """Voxels of 1.1 x 1.3 x 2.7 mm, turned about the third axis."""
    sine, cosine = torch.sin(torch.tensor(angle)), torch.cos(torch.tensor(angle))
    turn = torch.eye(4, dtype=torch.float64)
    turn[:2, :2] = torch.tensor([[cosine, -sine], [sine, cosine]])
    return turn @ torch.diag(torch.tensor([1.1, 1.3, 2.7, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("angle", [0.0, 0.3])
@pytest.mark.parametrize("spacing", [(2.3, 1.7, 1.9), (0.73, 0.61, 3.13)])
def test_equals_monai_without_its_map(
    spacing: tuple[float, ...], angle: float, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    own = MetaTensor(torch.rand(1, 21, 18, 13), affine=turned(angle))
    coarse = Spacing(spacing, mode="nearest")(own)
    classes = MetaTensor(torch.randint(0, 9, coarse.shape, dtype=torch.uint8), affine=coarse.affine)
    expected = ResampleToMatch(mode="nearest")(classes, own).as_tensor()
    monkeypatch.setattr(grids, "ResampleToMatch", lambda **options: pytest.fail("a map of coordinates"))
    found = nearest_on_grid(classes.as_tensor(), classes.affine, own)  # spacing keeps the directions of the axes
    assert found.dtype == torch.uint8 and torch.equal(found, expected.to(torch.uint8))


def test_oblique_to_each_other() -> None:
    classes = MetaTensor(torch.randint(0, 9, (1, 20, 20, 9), dtype=torch.uint8), affine=turned(0.1))
    own = MetaTensor(torch.rand(1, 21, 18, 13), affine=turned(0.0))
    expected = ResampleToMatch(mode="nearest")(classes, own).as_tensor()
    found = nearest_on_grid(classes.as_tensor(), classes.affine, own)
    assert found.dtype == torch.uint8 and torch.equal(found, expected.to(torch.uint8))
