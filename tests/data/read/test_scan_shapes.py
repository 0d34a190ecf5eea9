"""Sizes of scans after resampling, computed from their headers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from mim_components.data import resampled_shapes
from mim_components.data.read import headers as scan_shapes


def test_voxels_follow_the_spacing_whatever_the_orientation(tmp_path: Path) -> None:
    turned = np.array([[0.0, 0, 3, 0], [-1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(np.zeros((10, 20, 30), np.int16), turned), tmp_path / "a.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 5, 2), np.int16), np.eye(4)), tmp_path / "b.nii.gz")
    (tmp_path / "c.nii.gz").write_bytes(b"no scan")
    items: list[dict[str, object]] = [
        {"image": str(tmp_path / name)} for name in ("a.nii.gz", "b.nii.gz", "c.nii.gz", "gone.nii")
    ]
    items[0] = {"image": [items[0]["image"], "other channel"]}
    # 6000 voxels of 6 mm3 become voxels of 12 mm3; 80 of 1 mm3
    assert resampled_shapes(items, (2.0, 2.0, 3.0), 5) == [(5, 3000), (5, 7)]


def test_scan_whose_spacing_is_not_in_its_header_counts_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_shapes, "read_header", lambda source: SimpleNamespace(shape=(2, 3, 4), affine=None))
    assert resampled_shapes([{"image": "a.mha"}], (2.0, 2.0, 3.0), 2) == [(2, 24)]
