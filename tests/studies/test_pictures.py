from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from studies.pictures import comparison_figure


def write(folder: Path, name: str, voxels: np.ndarray, axes: str) -> Path:
    """Write a volume at the same position, whatever the order and direction of its axes."""
    image = nib.Nifti1Image(voxels, np.diag([2.0, 2.0, 4.0, 1.0]))
    turn = nib.orientations.axcodes2ornt(tuple(axes))
    nib.save(
        image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), turn)), folder / name
    )
    return folder / name


def test_the_same_picture_whatever_the_axes_of_the_files(tmp_path: Path) -> None:
    scan = np.random.default_rng(0).integers(-160, 240, (20, 24, 12)).astype(np.int16)
    label = np.zeros(scan.shape, np.uint8)
    label[3:8, 4:9, 2:5] = 1
    label[12:15, 10:20, 6:9] = 2
    pixels = []
    for axes in (("RAS", "RAS", "RAS"), ("LPS", "PIR", "RAS")):
        files = [
            write(tmp_path, f"{name}_{turn}.nii.gz", voxels, turn)
            for name, voxels, turn in zip(
                ("scan", "label", "pred"), (scan, label, np.roll(label, 1, 0)), axes, strict=True
            )
        ]
        texts = {"heads": ["arm: Dice 50.0 %"], "title": "scan", "names": ["a", "b"]}
        figure = comparison_figure(files[0], files[1], files[2:], window=(-160.0, 240.0), **texts)
        figure.canvas.draw()
        pixels.append(np.asarray(figure.canvas.buffer_rgba()))  # type: ignore[attr-defined]
    assert np.array_equal(*pixels)
    panels = [axes.images[0].get_array() for axes in figure.axes]
    # axial and coronal, each of the label and of one arm; the largest slices of both boxes: z = 2, y = 10
    assert [panel.shape for panel in panels] == [(24, 20), (24, 20), (12, 20), (12, 20)]
    grey = (scan.astype(float) + 160) / 400
    assert np.allclose(panels[0], grey[:, :, 2].T[::-1, ::-1], atol=1e-6)
